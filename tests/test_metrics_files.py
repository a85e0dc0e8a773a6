"""Metrics of picture files against scikit-image and by hand, and what is said about files that do not fit."""

import csv
import math
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity

from cache_dit.errors import ConfigError, ConfigTypeError
from cache_dit.metrics import (
    Measured,
    compute_mse,
    compute_psnr,
    compute_ssim,
    interval_of_mean,
    write_scores,
)

ALL: list[Callable[..., Measured]] = [compute_psnr, compute_ssim, compute_mse]


def noisy_pair(seed: int, height: int, width: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """A smooth coloured picture and the same with noise, in 8 bits."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / (5 + c)) + np.cos(columns / (7 + c)) for c in range(3)]
    true = 127 + 60 * np.stack(waves, axis=-1)
    test = true + noise * random.standard_normal(true.shape)
    return tuple(np.clip(values, 0, 255).round().astype(np.uint8) for values in (true, test))


def save(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Four pairs; the third has a size of its own."""
    for number, height in enumerate((24, 24, 30, 24)):
        true, test = noisy_pair(number, height, 20, 5 + 5 * number)
        save(tmp_path / "true" / f"{number}.png", true)
        save(tmp_path / "test" / f"{number}.png", test)
    return tmp_path / "true", tmp_path / "test"


@pytest.mark.parametrize(("height", "width", "noise"), [(16, 23, 3), (64, 48, 25), (11, 40, 80)])
def test_files_against_scikit_image(tmp_path: Path, height: int, width: int, noise: float) -> None:
    true, test = noisy_pair(height, height, width, noise)
    paths = save(tmp_path / "true.png", true), save(tmp_path / "test.png", test)
    expected = structural_similarity(
        true,
        test,
        data_range=255,
        channel_axis=2,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert compute_ssim(*paths).value == pytest.approx(expected, abs=1e-9)
    assert compute_psnr(*paths).value == pytest.approx(peak_signal_noise_ratio(true, test), abs=1e-9)
    assert compute_mse(*paths).value == pytest.approx(mean_squared_error(true, test), abs=1e-9)


def test_the_uint8_trap(tmp_path: Path) -> None:
    """Noise of 36 grey levels: 16.9 dB, and 28.1 dB for whom differences and squares wrap at 256."""
    random = np.random.default_rng(0)
    true = random.integers(100, 156, (64, 64, 3)).astype(np.uint8)
    test = np.clip(true + 36.5 * random.standard_normal(true.shape), 0, 255).round().astype(np.uint8)
    wrapped = 10 * math.log10(255**2 / np.mean((true - test) ** 2))
    assert wrapped == pytest.approx(28.1, abs=0.1)
    psnr, n = compute_psnr(save(tmp_path / "true.png", true), save(tmp_path / "test.png", test))
    assert n == 1
    assert psnr == pytest.approx(16.9, abs=0.05)
    assert psnr == pytest.approx(
        10 * math.log10(255**2 / np.mean((true.astype(float) - test) ** 2)), abs=1e-9
    )


def test_by_hand(tmp_path: Path) -> None:
    """Off by 3 in one of three planes: mse 3; by 51 everywhere: a fifth of the range, 20 log10(5) dB."""
    grey = np.full((16, 16, 3), 100, np.uint8)
    true = save(tmp_path / "true.png", grey)
    assert compute_mse(true, save(tmp_path / "a.png", grey + np.array([3, 0, 0], np.uint8))).value == 3
    assert compute_psnr(true, save(tmp_path / "b.png", grey + np.uint8(51))).value == pytest.approx(
        20 * math.log10(5), abs=1e-9
    )
    equal = compute_psnr(true, true)
    assert tuple(equal) == (math.inf, 1)
    assert compute_ssim(true, true).value == 1


@pytest.mark.parametrize("measure", ALL)
def test_folders(folders: tuple[Path, Path], measure: Callable[..., Measured]) -> None:
    true, test = folders
    result = measure(true, test)
    singles = [measure(true / f"{number}.png", test / f"{number}.png").value for number in range(4)]
    value, n = result
    assert n == 4
    assert value == pytest.approx(sum(singles) / 4)
    assert result.scores == {f"{number}.png": single for number, single in enumerate(singles)}
    low, high = result.interval
    assert min(singles) <= low < value < high <= max(singles)
    assert measure(true, test, batch_size=3) == pytest.approx(tuple(result), abs=1e-12)


def test_values_by_item_are_written(folders: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "out" / "psnr.csv"
    result = compute_psnr(*folders, per_item=path)
    compute_psnr(*folders, per_item=str(path))
    with path.open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["item", "psnr"]
    assert {name: float(value) for name, value in rows} == result.scores
    (tmp_path / "notes.csv").write_text("mine")
    with pytest.raises(ConfigError, match=r"notes\.csv exists"):
        compute_psnr(*folders, per_item=tmp_path / "notes.csv")


def test_scores_of_several_metrics(tmp_path: Path) -> None:
    path = tmp_path / "all.csv"
    measured = {
        "psnr": Measured.mean({"a": 1.0, "b": 2.0}),
        "clip_score": Measured.mean({"b": 3.0, "c": 4.0}),
    }
    write_scores(path, {**measured, "fid": Measured.whole(1.0, 2)})
    assert path.read_text() == "item,psnr,clip_score\na,1.0,\nb,2.0,3.0\nc,,4.0\n"
    with pytest.raises(ConfigError, match="would be empty: fid"):
        write_scores(path, {"fid": Measured.whole(1.0, 2)})


def test_missing_files_are_listed(folders: tuple[Path, Path]) -> None:
    true, test = folders
    (true / "0.png").unlink()
    (test / "2.png").unlink()
    with pytest.raises(ConfigError, match="no partner") as caught:
        compute_psnr(true, test)
    for path in (true / "2.png", test / "0.png"):
        assert str(path) in str(caught.value)
    assert "1.png" not in str(caught.value)


def test_long_lists_are_cut(tmp_path: Path) -> None:
    for number in range(13):
        save(tmp_path / "true" / f"{number:02}.png", np.zeros((4, 4, 3), np.uint8))
    save(tmp_path / "test" / "other.png", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(ConfigError, match="and 4 more"):
        compute_psnr(tmp_path / "true", tmp_path / "test")


def test_different_sizes_are_listed_before_anything_is_computed(folders: tuple[Path, Path]) -> None:
    true, test = folders
    for number in (1, 3):
        save(test / f"{number}.png", np.zeros((24, 21, 3), np.uint8))
    (true / "0.png").write_bytes((true / "0.png").read_bytes()[:-40])  # would fail, when it is read
    with pytest.raises(ConfigError, match="sizes differ") as caught:
        compute_ssim(true, test)
    said = str(caught.value)
    assert f"{true / '1.png'} has 20x24 pixels, {test / '1.png'} 21x24" in said
    assert f"{test / '3.png'} 21x24" in said


@pytest.mark.parametrize(
    "damage", [lambda data: b"no picture", lambda data: data[: len(data) // 2]], ids=["text", "cut off"]
)
@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_corrupt_files(tmp_path: Path, damage: Callable[[bytes], bytes], ending: str) -> None:
    true, test = noisy_pair(0, 40, 40, 10)
    whole, broken = save(tmp_path / "whole.png", true), save(tmp_path / f"broken.{ending}", test)
    broken.write_bytes(damage(broken.read_bytes()))
    for pair in ((whole, broken), (broken, whole)):
        with pytest.raises(ConfigError, match=rf"broken\.{ending} cannot be read as a picture"):
            compute_psnr(*pair)


def test_a_picture_that_claims_a_gigantic_size(tmp_path: Path) -> None:
    path = save(tmp_path / "bomb.png", np.zeros((4, 4, 3), np.uint8))
    data = bytearray(path.read_bytes())
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"bomb\.png cannot be read"):
        compute_psnr(path, path)


@pytest.mark.parametrize(
    ("true", "test", "says"),
    [
        ("nowhere", "test", "nowhere does not exist"),
        ("true", "test/0.png", "a file and a folder"),
        ("empty", "test", "has no pictures"),
    ],
)
def test_paths_that_do_not_fit(folders: tuple[Path, Path], true: str, test: str, says: str) -> None:
    root = folders[0].parent
    (root / "empty").mkdir()
    (root / "empty" / "notes.txt").write_text("no picture")
    (root / "empty" / ".0.png").write_text("hidden")
    with pytest.raises(ConfigError, match=says):
        compute_psnr(root / true, root / test)


def test_ssim_needs_a_window(tmp_path: Path) -> None:
    small = save(tmp_path / "small.png", np.zeros((10, 30, 3), np.uint8))
    with pytest.raises(ConfigError, match=r"11x11 pixels; smaller are: .*small\.png"):
        compute_ssim(small, small)
    assert compute_mse(small, small).value == 0


def test_kinds_of_pictures(tmp_path: Path) -> None:
    """Grey is red = green = blue, a palette its colours, 16 bits are not cut down to 8."""
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    colour = save(tmp_path / "colour.png", np.stack([grey] * 3, axis=-1))
    assert compute_mse(colour, save(tmp_path / "grey.png", grey)).value == 0
    Image.fromarray(grey).convert("P").save(tmp_path / "palette.png")
    assert compute_mse(colour, tmp_path / "palette.png").value == 0
    deep = save(tmp_path / "deep.png", grey.astype(np.uint16) * 257)
    assert compute_mse(colour, deep).value == pytest.approx(0, abs=1e-20)
    finer = save(tmp_path / "finer.png", grey.astype(np.uint16) * 256 + 128)
    assert 0 < compute_mse(colour, finer).value < 0.26


def test_transparency(tmp_path: Path) -> None:
    opaque = np.full((12, 12, 4), 255, np.uint8)
    solid = save(tmp_path / "solid.png", opaque)
    assert compute_mse(solid, save(tmp_path / "white.png", opaque[..., :3])).value == 0
    opaque[0, 0, 3] = 254
    with pytest.raises(ConfigError, match=r"glass\.png has transparent pixels"):
        compute_psnr(solid, save(tmp_path / "glass.png", opaque))
    Image.fromarray(np.zeros((12, 12), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ConfigError, match="mode 'F'"):
        compute_psnr(tmp_path / "float.tif", tmp_path / "float.tif")


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"batchsize": 2}, ConfigTypeError, "did you mean batch_size"),
        ({"zzz": 2}, ConfigTypeError, "there are per_item, device"),
        ({"batch_size": 0}, ConfigError, "batch_size is 0"),
        ({"batch_size": -1}, ConfigError, "batch_size is -1"),
        ({"device": "gpu"}, ConfigError, "device is 'gpu'"),
    ],
)
def test_bad_options(
    folders: tuple[Path, Path], options: dict[str, object], error: type[Exception], says: str
) -> None:
    for measure in ALL:
        with pytest.raises(error, match=says):
            measure(*folders, **options)


def test_a_bar_is_for_terminals_only(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compute_psnr(*folders)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    compute_psnr(*folders, progress=False)
    assert capsys.readouterr() == ("", "")
    compute_psnr(*folders)
    out, err = capsys.readouterr()
    assert out == ""
    assert "psnr" in err


def test_interval_of_a_mean() -> None:
    """About the mean ± 1.96 standard errors for many values of a bell curve."""
    values = (10 + torch.randn(400, generator=torch.Generator().manual_seed(0))).tolist()
    low, high = interval_of_mean(values)
    error = 1.96 * float(np.std(values)) / 20
    assert low == pytest.approx(np.mean(values) - error, abs=0.02)
    assert high == pytest.approx(np.mean(values) + error, abs=0.02)


def test_interval_draws_whole_groups() -> None:
    """Ten copies of two values are as sure as two values: the ends are the values themselves."""
    values, groups = [1.0] * 10 + [3.0] * 10, ["a"] * 10 + ["b"] * 10
    assert interval_of_mean(values, groups) == (1.0, 3.0)
    low, high = interval_of_mean(values)
    assert 1.2 < low < 2 < high < 2.8
    assert all(math.isnan(end) for end in interval_of_mean(values, ["a"] * 20))
    assert all(math.isnan(end) for end in interval_of_mean([1.0]))
    assert all(math.isnan(end) for end in interval_of_mean([1.0, math.inf]))
    with pytest.raises(ConfigError, match="2 values and 1 groups"):
        interval_of_mean([1.0, 2.0], ["a"])


def test_interval_of_many_values_is_drawn_in_parts() -> None:
    low, high = interval_of_mean([0.0, 1.0] * 2000)
    assert low == pytest.approx(0.5 - 1.96 * 0.5 / math.sqrt(4000), abs=0.003)
    assert high == pytest.approx(0.5 + 1.96 * 0.5 / math.sqrt(4000), abs=0.003)
