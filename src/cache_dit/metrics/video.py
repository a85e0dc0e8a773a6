"""Metrics of videos, frame by frame."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias, Unpack

import torch
from torch import Tensor

from cache_dit.errors import CacheDiTError, ConfigError
from cache_dit.metrics.image import WINDOW, decibels, similarities, squared_errors
from cache_dit.metrics.measured import Measured
from cache_dit.metrics.options import Options, Run
from cache_dit.metrics.pictures import (
    PICTURES,
    Pair,
    PathLike,
    as_tensor,
    existing,
    files_in,
    load,
    matched,
    pictures_in,
)

VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
# Two frames [1, 3, height, width] in float64 from 0 to 1 -> [1].
Compare: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def compute_video_psnr(true: PathLike, test: PathLike, **options: Unpack[Options]) -> Measured:
    """Peak signal-to-noise ratio of videos, of the mean squared error over all their frames.

    That is never above the mean of the PSNR of the frames, and finite where only some frames are equal.

    Args:
        true: The reference: a video file, a folder of its frames as pictures (in the order of their names),
            or a folder of video files.
        test: What is compared with it, of the same kind and with equally many frames. Files of folders of
            videos are matched by their names.
        options: See `Options`. An item is a video; frames are computed one by one.

    Returns:
        Mean over the videos in decibels, `inf` for equal ones, and the number of videos.

    Raises:
        ConfigError: A path is missing, a file has no partner or is no video, or the numbers or sizes of the
            frames of a pair differ.
        ConfigTypeError: An option is unknown.
        CacheDiTError: PyAV, which reads video files, is not installed.
    """
    return _measure("video_psnr", true, test, options, squared_errors, lambda error: decibels(error, 1.0))


def compute_video_ssim(true: PathLike, test: PathLike, **options: Unpack[Options]) -> Measured:
    """Structural similarity of videos: the mean of the SSIM of their frames, see `compute_ssim`.

    Args:
        true: The reference: a video file, a folder of its frames as pictures (in the order of their names),
            or a folder of video files.
        test: What is compared with it, of the same kind and with equally many frames. Files of folders of
            videos are matched by their names.
        options: See `Options`. An item is a video; frames are computed one by one.

    Returns:
        Mean over the videos, at most 1.0, and the number of videos.

    Raises:
        ConfigError: A path is missing, a file has no partner or is no video, frames are smaller than 11x11,
            or the numbers or sizes of the frames of a pair differ.
        ConfigTypeError: An option is unknown.
        CacheDiTError: PyAV, which reads video files, is not installed.
    """
    return _measure("video_ssim", true, test, options, _ssim, float)


def holds_videos(path: PathLike) -> bool:
    """Whether a path is a video file, or a folder with such files.

    Args:
        path: A file or folder; of a file the ending counts.

    Returns:
        True for one video file or more.

    Raises:
        ConfigError: There is nothing at the path.
    """
    place = existing(path)
    files = place.iterdir() if place.is_dir() else [place]
    return any(file.suffix.lower() in VIDEOS for file in files)


def _ssim(first: Tensor, second: Tensor) -> Tensor:
    if min(first.shape[-2:]) < WINDOW:
        raise ConfigError(f"video_ssim needs frames of at least {WINDOW}x{WINDOW} pixels; give larger ones.")
    return similarities(first, second, data_range=1.0)


def _measure(
    name: str,
    true: PathLike,
    test: PathLike,
    options: Options,
    compare: Compare,
    summed_up: Callable[[float], float],
) -> Measured:
    run = Run.of(options)
    pairs = _pairs(true, test)
    scores: dict[str, float] = {}
    with torch.inference_mode():
        for (pair,) in run.track(([pair] for pair in pairs), len(pairs), name):
            frames = [compare(*both).item() for both in _frame_pairs(pair, run.device)]
            scores[pair.name] = summed_up(math.fsum(frames) / len(frames))
    return run.done(name, scores)


def _pairs(true: PathLike, test: PathLike) -> list[Pair]:
    first, second = existing(true), existing(test)
    if _is_video(first) and _is_video(second):
        return [Pair(second.name, first, second)]
    return matched(first, second, lambda folder: files_in(folder, VIDEOS, "videos"))


def _is_video(path: Path) -> bool:
    """Whether it is a file, or a folder of frames."""
    return not path.is_dir() or any(child.suffix.lower() in PICTURES for child in path.iterdir())


def _frame_pairs(pair: Pair, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Frames at the same place, [1, 3, height, width] each; one longer video is an error at its end."""
    counts = [0, 0]
    for frames in itertools.zip_longest(_frames(pair.true), _frames(pair.test)):
        counts = [count + (frame is not None) for count, frame in zip(counts, frames, strict=True)]
        first, second = frames
        if first is None or second is None:
            continue
        if first.shape != second.shape:
            sizes = [f"{frame.shape[2]}x{frame.shape[1]}" for frame in (first, second)]
            raise ConfigError(
                f"frames of {pair.true} have {sizes[0]} pixels, of {pair.test} {sizes[1]}; make them equal."
            )
        yield first.unsqueeze(0).to(device), second.unsqueeze(0).to(device)
    if counts[0] != counts[1]:
        raise ConfigError(
            f"{pair.true} has {counts[0]} frames and {pair.test} {counts[1]}; give videos of one length."
        )


def _frames(video: Path) -> Iterator[Tensor]:
    if video.is_dir():
        return (as_tensor(load(path)) for path in pictures_in(video).values())
    return _decoded(video)


def _decoded(file: Path) -> Iterator[Tensor]:
    try:
        import av
    except ModuleNotFoundError as error:
        raise CacheDiTError(
            f"{file} is read by PyAV, which is not installed; run `pip install 'cache-dit[video]'`, or give "
            "folders of frames."
        ) from error
    empty = True
    try:
        with av.open(str(file)) as container:
            for frame in container.decode(video=0):
                empty = False
                values = torch.from_numpy(frame.to_ndarray(format="rgb24"))
                yield values.permute(2, 0, 1).double() / 255
    # IndexError: there is no picture stream in the file.
    except (av.FFmpegError, IndexError) as error:
        raise ConfigError(f"{file} cannot be read as a video: {error}; make it again.") from error
    if empty:
        raise ConfigError(f"{file} has no frames; make it again.")
