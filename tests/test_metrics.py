"""PSNR and SSIM against values worked out by hand and against a loop that follows the paper's formulas."""

import math

import numpy as np
import pytest
import torch

from cache_dit.errors import CacheDiTError, ConfigError, ConfigTypeError
from cache_dit.metrics import psnr, ssim


def pictures(seed: int, shape: tuple[int, ...], noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    reference = torch.rand(shape, generator=generator)
    return (reference + noise * torch.randn(shape, generator=generator)).clamp(0, 1), reference


def slow_ssim(x: np.ndarray, y: np.ndarray, data_range: float) -> float:
    """Window by window, as the formulas stand in Wang et al. 2004."""
    offsets = np.arange(-5, 6)
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    values = []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            a, b = (plane[top : top + 11, left : left + 11] for plane in (x, y))
            mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
            var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
            covariance = (weights * (a - mean_a) * (b - mean_b)).sum()
            luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
            structure = (2 * covariance + c2) / (var_a + var_b + c2)
            values.append(luminance * structure)
    return float(np.mean(values))


@pytest.mark.parametrize(
    ("picture", "reference", "data_range", "expected"),
    [
        ([0.5], [0.4], 1.0, 20.0),  # mse 0.01
        ([0.0, 0.0, 0.0, 0.2], [0.0] * 4, 1.0, 20.0),  # mse 0.04 / 4
        ([0.0], [1.0], 1.0, 0.0),
        ([0.0], [10.0], 1.0, -20.0),  # worse than the whole range
        ([0.0], [25.5], 255.0, 20.0),
        ([1.0, -1.0], [-1.0, 1.0], 2.0, 0.0),
    ],
)
def test_psnr_by_hand(
    picture: list[float], reference: list[float], data_range: float, expected: float
) -> None:
    got = psnr(
        torch.tensor(picture, dtype=torch.float64), torch.tensor(reference).double(), data_range=data_range
    )
    assert got == pytest.approx(expected, abs=1e-5)


def test_psnr_of_equal_pictures_is_infinite() -> None:
    picture, _ = pictures(0, (3, 8, 8), 0.0)
    assert psnr(picture, picture.clone(), data_range=1.0) == math.inf


def test_psnr_is_nan_where_a_value_is_no_number() -> None:
    assert math.isnan(psnr(torch.tensor([math.nan]), torch.tensor([0.0]), data_range=1.0))


def test_the_uint8_trap() -> None:
    """Off by two grey levels, downward: 8-bit arithmetic would see 254."""
    reference, picture = np.full((16, 16), 5, np.uint8), np.full((16, 16), 3, np.uint8)
    wrapped = 10 * math.log10(255**2 / float(np.mean((picture - reference).astype(float) ** 2)))
    assert wrapped < 1
    expected = 10 * math.log10(255**2 / 4)
    assert psnr(picture, reference, data_range=255) == pytest.approx(expected, abs=1e-12)
    assert psnr(torch.from_numpy(picture), torch.from_numpy(reference), data_range=255) == pytest.approx(
        expected, abs=1e-12
    )
    as_floats = ssim(picture.astype(float) / 255, reference.astype(float) / 255, data_range=1.0)
    assert ssim(picture, reference, data_range=255) == pytest.approx(as_floats, abs=1e-12)


def test_small_errors_are_not_lost_in_float32() -> None:
    """1 + 1e-7 squared away in float32 would be 0 or wrong by far."""
    reference = torch.zeros(1000)
    assert psnr(reference + 1e-7, reference, data_range=1.0) == pytest.approx(140.0, abs=1e-4)


@pytest.mark.parametrize(("shape", "noise"), [((11, 11), 0.1), ((16, 23), 0.05), ((20, 14), 0.5)])
def test_ssim_against_the_formulas(shape: tuple[int, int], noise: float) -> None:
    picture, reference = pictures(1, shape, noise)
    expected = slow_ssim(picture.double().numpy(), reference.double().numpy(), 1.0)
    assert ssim(picture, reference, data_range=1.0) == pytest.approx(expected, abs=1e-12)
    assert ssim(reference, picture, data_range=1.0) == pytest.approx(expected, abs=1e-12)
    assert ssim(picture * 255, reference * 255, data_range=255) == pytest.approx(expected, abs=1e-6)


def test_ssim_of_flat_pictures_by_hand() -> None:
    """Without variance only the luminance term is left: (2 a b + c1) / (a² + b² + c1)."""
    got = ssim(torch.full((12, 12), 0.5), torch.full((12, 12), 0.25), data_range=1.0)
    assert got == pytest.approx((2 * 0.5 * 0.25 + 1e-4) / (0.5**2 + 0.25**2 + 1e-4), abs=1e-12)


def test_ssim_of_a_picture_and_its_opposite_by_hand() -> None:
    """A checkerboard around 0 and its negative: the means nearly vanish, the structure is opposite."""
    board = torch.tensor([[1.0, -1.0] * 8, [-1.0, 1.0] * 8] * 8)
    assert ssim(board, board, data_range=2.0) == 1.0
    assert ssim(board, -board, data_range=2.0) == pytest.approx(-1.0, abs=0.01)


def test_ssim_is_the_mean_over_channels() -> None:
    picture, reference = pictures(2, (2, 3, 16, 16), 0.2)
    each = [
        ssim(a, b, data_range=1.0)
        for a, b in zip(picture.flatten(0, 1), reference.flatten(0, 1), strict=True)
    ]
    assert ssim(picture, reference, data_range=1.0) == pytest.approx(sum(each) / 6, abs=1e-12)


@pytest.mark.parametrize(
    ("picture", "reference", "data_range", "error", "says"),
    [
        (torch.zeros(3, 16, 16), torch.zeros(16, 16, 3), 1.0, ConfigError, "(16, 16, 3)"),
        (torch.zeros(16, 16), torch.zeros(16, 16), 0.0, ConfigError, "data_range is 0.0"),
        (torch.zeros(16, 16), torch.zeros(16, 16), math.nan, ConfigError, "data_range is nan"),
        (torch.zeros(0, 16, 16), torch.zeros(0, 16, 16), 1.0, ConfigError, "empty"),
        (
            torch.zeros(16, 16, dtype=torch.complex64),
            torch.zeros(16, 16),
            1.0,
            ConfigTypeError,
            "complex",
        ),
    ],
)
def test_bad_input(
    picture: torch.Tensor,
    reference: torch.Tensor,
    data_range: float,
    error: type[CacheDiTError],
    says: str,
) -> None:
    for measure in (psnr, ssim):
        with pytest.raises(error) as caught:
            measure(picture, reference, data_range=data_range)
        assert says in str(caught.value)


@pytest.mark.parametrize("shape", [(16,), (10, 16), (16, 16, 3)])
def test_ssim_says_which_shapes_it_takes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="channels first"):
        ssim(torch.zeros(shape), torch.zeros(shape), data_range=1.0)
