"""Pictures with a cache beside the same ones without: what they cost, and how near they are."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cache_dit.api import disable_cache, enable_cache
from cache_dit.errors import ConfigError
from cache_dit.metrics import psnr, ssim
from cache_dit.presets import Preset
from cache_dit.stats import CacheStats, summary
from cache_dit.tune.target import Measure, Score

_HIGHEST = 120.0  # dB; equal pictures have infinitely many
_STEADY = 1.1
_WINDOW = 11  # pixels that SSIM needs


class Picture(NamedTuple):
    """What a pipeline is called with, and the seed of its noise, which no other picture has."""

    prompt: Any
    seed: int


class _Drawn(NamedTuple):
    picture: Tensor
    seconds: float


class Gallery:
    """Draws pictures with a pipeline and compares them with uncached ones, which are drawn once and kept.

    Args:
        pipe: A diffusers pipeline, not cached, that knows `output_type="pt"`.
        steps: Denoising steps.
        arguments: Other arguments of the pipeline.
    """

    def __init__(self, pipe: Any, steps: int, arguments: Mapping[str, Any]) -> None:
        self._pipe, self._steps, self._arguments = pipe, steps, arguments
        self._uncached: dict[int, _Drawn] = {}

    def uncached(self, picture: Picture) -> Tensor:
        """The picture without a cache, values from 0 to 1."""
        if picture.seed not in self._uncached:
            if not self._uncached:
                self._draw(picture)  # the first run of all is slow: not timed
            self._uncached[picture.seed] = self._draw(picture)
        return self._uncached[picture.seed].picture

    @property
    def steady(self) -> bool:
        """Whether the uncached runs took the same time but for a tenth, so that times can be compared."""
        seconds = [drawn.seconds for drawn in self._uncached.values()]
        return max(seconds) <= _STEADY * min(seconds)

    def scores(
        self, preset: Preset, pictures: Iterable[Picture], *, paired: bool = False
    ) -> tuple[Score, ...]:
        """Draw pictures with a cache and compare them.

        Args:
            preset: What is enabled for each of them; nothing is enabled afterwards.
            pictures: They are drawn in this order.
            paired: Time each against an uncached run of its own right before it, and not against the first.
        """
        return tuple(self._score(preset, picture, paired) for picture in pictures)

    def _score(self, preset: Preset, picture: Picture, paired: bool) -> Score:
        reference = self.uncached(picture)
        before = self._draw(picture).seconds if paired else self._uncached[picture.seed].seconds
        enable_cache(self._pipe, preset)
        try:
            drawn = self._draw(picture)
            flops = flops_fraction(summary(self._pipe, logging=False))
        finally:
            disable_cache(self._pipe)
        if drawn.picture.shape != reference.shape:
            raise ConfigError(
                f"{type(self._pipe).__name__} returned {tuple(drawn.picture.shape)} with a cache and "
                f"{tuple(reference.shape)} without; tuning needs outputs of one shape."
            )
        return _compared(drawn, reference, before, flops)

    def _draw(self, picture: Picture) -> _Drawn:
        generator = torch.Generator("cpu").manual_seed(picture.seed)
        start = _now()
        made = self._pipe(
            picture.prompt,
            num_inference_steps=self._steps,
            generator=generator,
            **{"output_type": "pt", **self._arguments},
        )
        seconds = _now() - start
        try:
            values = torch.as_tensor(made[0]).detach().cpu().float()
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"{type(self._pipe).__name__} returned no tensor ({error}); give the output_type with which "
                "it returns one."
            ) from error
        return _Drawn(values, seconds)


def flops_fraction(stats: Sequence[CacheStats]) -> float | None:
    """FLOPs of the last run as a fraction of those of the uncached one; None where they cannot be counted."""
    computed, whole = 0.0, 0
    for one in stats:
        if one.flops is None or one.flops_saved is None:
            return None
        full = one.flops * len({(step.branch, step.step) for step in one.steps})
        computed, whole = computed + full * (1.0 - one.flops_saved), whole + full
    return computed / whole if whole else None


def _compared(drawn: _Drawn, reference: Tensor, before: float, flops: float | None) -> Score:
    score = {
        Measure.PSNR: min(_HIGHEST, psnr(drawn.picture, reference, data_range=1.0)),
        Measure.TOLERANCE: math.sqrt(_mean_square(drawn.picture, reference)),
        Measure.TIME: drawn.seconds / before,
    }
    if reference.ndim >= 2 and min(reference.shape[-2:]) >= _WINDOW:
        score[Measure.SSIM] = ssim(drawn.picture, reference, data_range=1.0)
    if flops is not None:
        score[Measure.FLOPS] = flops
    if not all(map(math.isfinite, score.values())):
        raise ConfigError("a picture has values that are not finite; tune with what draws without a cache.")
    return score


def _mean_square(first: Tensor, second: Tensor) -> float:
    return float((first.double() - second.double()).square().mean())


def _now() -> float:
    """Seconds, once the accelerator is done."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()
