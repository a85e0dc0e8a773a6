"""Metrics of videos: files without loss, folders of frames, and what does not fit."""

import math
import sys
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from skimage.metrics import structural_similarity

from cache_dit.errors import CacheDiTError, ConfigError
from cache_dit.metrics import Measured, compute_video_psnr, compute_video_ssim

BOTH: list[Callable[..., Measured]] = [compute_video_psnr, compute_video_ssim]


def frames(seed: int, count: int = 5, height: int = 16, width: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3)).astype(np.uint8)


def write(path: Path, video: np.ndarray, codec: str = "ffv1", pixels: str = "bgr0") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8)
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = pixels
        for values in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(values, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_frames(folder: Path, video: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    for number, values in enumerate(video):
        Image.fromarray(values).save(folder / f"{number:03}.png")
    return folder


def expected_psnr(true: np.ndarray, test: np.ndarray) -> float:
    return 10 * math.log10(255**2 / np.mean((true.astype(float) - test) ** 2))


def expected_ssim(true: np.ndarray, test: np.ndarray) -> float:
    how = {"data_range": 255, "channel_axis": 2, "gaussian_weights": True, "use_sample_covariance": False}
    return float(np.mean([structural_similarity(a, b, **how) for a, b in zip(true, test, strict=True)]))


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [("v.mkv", "ffv1", "bgr0"), ("v.mov", "png", "rgb24"), ("v.avi", "ffv1", "bgr0")],
)
def test_files(tmp_path: Path, name: str, codec: str, pixels: str) -> None:
    """The first frames are equal, as those of image-to-video are: the whole stays finite."""
    true, test = frames(0), frames(1)
    test[0] = true[0]
    paths = [
        write(tmp_path / folder / name, video, codec, pixels)
        for folder, video in (("true", true), ("test", test))
    ]
    result = compute_video_psnr(*paths)
    assert result == (pytest.approx(expected_psnr(true, test), abs=1e-9), 1)
    assert list(result.scores) == [name]
    assert compute_video_ssim(*paths) == (pytest.approx(expected_ssim(true, test), abs=1e-9), 1)
    assert compute_video_psnr(paths[0], paths[0]) == (math.inf, 1)


def test_lossy_files_are_read(tmp_path: Path) -> None:
    """A smooth video survives mpeg4 nearly."""
    rows = np.linspace(40, 200, 32).astype(np.uint8)
    video = np.broadcast_to(rows[None, :, None, None], (4, 32, 32, 3)).copy()
    lossy = write(tmp_path / "lossy.mp4", video, codec="mpeg4", pixels="yuv420p")
    exact = write_frames(tmp_path / "frames", video)
    assert 30 < compute_video_psnr(exact, lossy).value < math.inf


@pytest.mark.parametrize("measure", BOTH)
def test_folders_of_frames_and_of_videos(tmp_path: Path, measure: Callable[..., Measured]) -> None:
    videos = {
        name: (frames(seed), frames(seed + 10, count=5)) for seed, name in enumerate(("a.mkv", "b.mkv"))
    }
    for name, (true, test) in videos.items():
        write(tmp_path / "true" / name, true)
        write(tmp_path / "test" / name, test)
        write_frames(tmp_path / f"frames-{name}", test)
    singles = [measure(tmp_path / "true" / name, tmp_path / f"frames-{name}").value for name in videos]
    result = measure(tmp_path / "true", tmp_path / "test", per_item=tmp_path / "items.csv")
    assert list(result.scores.values()) == singles
    assert result == (pytest.approx(sum(singles) / 2), 2)
    assert (tmp_path / "items.csv").read_text().splitlines()[1].startswith("a.mkv,")
    (tmp_path / "test" / "b.mkv").unlink()
    with pytest.raises(ConfigError, match=r"b\.mkv has no partner"):
        measure(tmp_path / "true", tmp_path / "test")


@pytest.mark.parametrize("measure", BOTH)
@pytest.mark.parametrize(("first", "second"), [(5, 4), (3, 5)])
def test_lengths_that_differ(
    tmp_path: Path, measure: Callable[..., Measured], first: int, second: int
) -> None:
    true, test = write(tmp_path / "a.mkv", frames(0, first)), write_frames(tmp_path / "b", frames(1, second))
    with pytest.raises(ConfigError, match=rf"a\.mkv has {first} frames and .*b {second}; give videos"):
        measure(true, test)


@pytest.mark.parametrize("measure", BOTH)
def test_sizes_that_differ(tmp_path: Path, measure: Callable[..., Measured]) -> None:
    true, test = write(tmp_path / "a.mkv", frames(0)), write(tmp_path / "b.mkv", frames(0, width=16))
    with pytest.raises(ConfigError, match=r"a\.mkv have 24x16 pixels, of .*b\.mkv 16x16"):
        measure(true, test)


def test_small_frames(tmp_path: Path) -> None:
    small = write_frames(tmp_path / "small", frames(0, height=10))
    with pytest.raises(ConfigError, match="11x11"):
        compute_video_ssim(small, small)


def test_corrupt_files(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.mkv", frames(0))
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "head.mkv").write_bytes(whole.read_bytes()[:200])
    (tmp_path / "half.mkv").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    for name, says in (
        ("text.mp4", r"text\.mp4 cannot be read as a video"),
        ("head.mkv", r"head\.mkv (cannot be read as a video|has no frames)"),
        ("half.mkv", r"half\.mkv (cannot be read as a video|[0-4]; give videos of one length)"),
    ):
        with pytest.raises(ConfigError, match=says):
            compute_video_psnr(whole, tmp_path / name)


def test_files_without_pictures(tmp_path: Path) -> None:
    sound = tmp_path / "sound.mkv"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(ConfigError, match=r"sound\.mkv cannot be read as a video"):
        compute_video_psnr(sound, sound)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="has no videos"):
        compute_video_psnr(tmp_path / "empty", tmp_path / "empty")


def test_without_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = write(tmp_path / "a.mkv", frames(0))
    folder = write_frames(tmp_path / "frames", frames(0))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(CacheDiTError, match=r"pip install 'cache-dit\[video\]'"):
        compute_video_psnr(video, video)
    assert compute_video_psnr(folder, folder) == (math.inf, 1)
