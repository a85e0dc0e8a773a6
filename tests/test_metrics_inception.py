"""FID's InceptionV3 with random weights, against the network written out step by step."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from cache_dit.errors import ConfigError
from cache_dit.metrics import compute_fid
from cache_dit.metrics.inception import Inception, shapes

State = dict[str, Tensor]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def state() -> State:
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, shape in shapes().items():
        noise = torch.randn(shape, generator=generator)
        if len(shape) == 4:
            found[name] = noise * math.sqrt(2 / math.prod(shape[1:]))  # keeps the size of what passes
        else:
            found[name] = 1 + 0.2 * noise.abs() if name.endswith(("weight", "var")) else 0.2 * noise
    return found


def written_out(x: Tensor, state: State) -> Tensor:
    def conv(x: Tensor, name: str, padding: tuple[int, int] = (0, 0), stride: int = 1) -> Tensor:
        y = F.conv2d(x, state[f"{name}.conv.weight"], stride=stride, padding=padding)
        weight, bias, mean, variance = (
            state[f"{name}.bn.{part}"].view(1, -1, 1, 1)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return ((y - mean) / (variance + 0.001).sqrt() * weight + bias).clamp(min=0)

    def mean(x: Tensor) -> Tensor:
        """Of the 3x3 pixels around each, those that exist."""
        total = F.avg_pool2d(x, 3, stride=1, padding=1, divisor_override=1)
        return total / F.avg_pool2d(torch.ones_like(x), 3, stride=1, padding=1, divisor_override=1)

    def half(x: Tensor) -> Tensor:
        return F.max_pool2d(x, 3, stride=2)

    x = conv(x, "Conv2d_1a_3x3", stride=2)
    x = conv(x, "Conv2d_2a_3x3")
    x = half(conv(x, "Conv2d_2b_3x3", (1, 1)))
    x = half(conv(conv(x, "Conv2d_3b_1x1"), "Conv2d_4a_3x3"))
    assert x.shape[1:] == (192, 35, 35)
    for m in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        five = conv(conv(x, f"{m}.branch5x5_1"), f"{m}.branch5x5_2", (2, 2))
        three = conv(conv(x, f"{m}.branch3x3dbl_1"), f"{m}.branch3x3dbl_2", (1, 1))
        three = conv(three, f"{m}.branch3x3dbl_3", (1, 1))
        x = torch.cat([conv(x, f"{m}.branch1x1"), five, three, conv(mean(x), f"{m}.branch_pool")], 1)
    m = "Mixed_6a"
    three = conv(conv(x, f"{m}.branch3x3dbl_1"), f"{m}.branch3x3dbl_2", (1, 1))
    three = conv(three, f"{m}.branch3x3dbl_3", stride=2)
    x = torch.cat([conv(x, f"{m}.branch3x3", stride=2), three, half(x)], 1)
    assert x.shape[1:] == (768, 17, 17)
    for m in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        seven = conv(conv(x, f"{m}.branch7x7_1"), f"{m}.branch7x7_2", (0, 3))
        seven = conv(seven, f"{m}.branch7x7_3", (3, 0))
        double = conv(x, f"{m}.branch7x7dbl_1")
        for number, padding in ((2, (3, 0)), (3, (0, 3)), (4, (3, 0)), (5, (0, 3))):
            double = conv(double, f"{m}.branch7x7dbl_{number}", padding)
        x = torch.cat([conv(x, f"{m}.branch1x1"), seven, double, conv(mean(x), f"{m}.branch_pool")], 1)
    m = "Mixed_7a"
    three = conv(conv(x, f"{m}.branch3x3_1"), f"{m}.branch3x3_2", stride=2)
    seven = conv(conv(x, f"{m}.branch7x7x3_1"), f"{m}.branch7x7x3_2", (0, 3))
    seven = conv(conv(seven, f"{m}.branch7x7x3_3", (3, 0)), f"{m}.branch7x7x3_4", stride=2)
    x = torch.cat([three, seven, half(x)], 1)
    assert x.shape[1:] == (1280, 8, 8)
    for m in ("Mixed_7b", "Mixed_7c"):
        three = conv(x, f"{m}.branch3x3_1")
        three = torch.cat(
            [conv(three, f"{m}.branch3x3_2a", (0, 1)), conv(three, f"{m}.branch3x3_2b", (1, 0))], 1
        )
        double = conv(conv(x, f"{m}.branch3x3dbl_1"), f"{m}.branch3x3dbl_2", (1, 1))
        double = torch.cat(
            [conv(double, f"{m}.branch3x3dbl_3a", (0, 1)), conv(double, f"{m}.branch3x3dbl_3b", (1, 0))], 1
        )
        pooled = mean(x) if m == "Mixed_7b" else F.max_pool2d(x, 3, stride=1, padding=1)
        x = torch.cat([conv(x, f"{m}.branch1x1"), three, double, conv(pooled, f"{m}.branch_pool")], 1)
    return x.mean(dim=(2, 3))


@torch.no_grad()
def test_against_the_network_written_out(state: State) -> None:
    pictures = torch.randint(0, 256, (1, 3, 299, 299), generator=torch.Generator().manual_seed(1)).byte()
    got = Inception(state, CPU)(pictures)
    expected = written_out(2 * pictures.float() / 255 - 1, state)
    assert got.shape == (1, 2048)
    assert expected.std() > 0.01
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def test_as_many_weights_as_torchvision_has() -> None:
    """Its Inception3 without auxiliary classifier has 23,834,568 parameters, 2,049,000 of them in `fc`."""
    trained = {name: shape for name, shape in shapes().items() if "running" not in name and "fc" not in name}
    assert sum(math.prod(shape) for shape in trained.values()) == 23_834_568 - 2_049_000


def colours(pictures: Tensor) -> Tensor:
    return pictures.float().mean(dim=(2, 3))


def test_fid_reads_a_file_of_weights(state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The features are those of the network; here it is asked for simpler ones, to save the time."""
    monkeypatch.setattr(Inception, "__call__", lambda _, pictures: colours(pictures))
    for folder, seed in (("true", 0), ("test", 5)):
        (tmp_path / folder).mkdir()
        for number in range(2):
            values = np.random.default_rng(seed + number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(values).save(tmp_path / folder / f"{number}.png")
    expected = compute_fid(tmp_path / "true", tmp_path / "test", colours)
    save_file(state, tmp_path / "inception.safetensors")
    torch.save(state, tmp_path / "inception.pth")
    for name in ("inception.safetensors", "inception.pth"):
        assert compute_fid(tmp_path / "true", tmp_path / "test", tmp_path / name) == expected
    assert expected.value > 0


def test_weights_of_another_network_are_refused(state: State) -> None:
    with pytest.raises(ConfigError, match=r"fc\.weight should be \[1008, 2048\] and is \[1000, 2048\]"):
        Inception({**state, "fc.weight": torch.zeros(1000, 2048)}, CPU)
    with pytest.raises(ConfigError, match=r"Mixed_6c.*is missing"):
        Inception({name: values for name, values in state.items() if "Mixed_6c" not in name}, CPU)
