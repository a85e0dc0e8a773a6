"""The same pictures with and without caching: how much is saved, how much is lost."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cache_dit.api import disable_cache, enable_cache
from cache_dit.caching.config import CacheConfig, CalibratorConfig
from cache_dit.demo.model import PROMPTS, check_prompt, generate
from cache_dit.errors import ConfigError
from cache_dit.metrics import psnr, ssim
from cache_dit.stats import CacheStats, strify, summary


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Some measurements in three numbers, which are equal where there is one measurement.

    Attributes:
        median: Their median, in their unit.
        low: Lower quartile.
        high: Upper quartile.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        if len(values) == 1:
            return cls(median=values[0], low=values[0], high=values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median=median, low=low, high=high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One prompt and seed.

    Attributes:
        prompt: What was asked for.
        seed: Seed of the initial noise.
        branches: Names of the CFG branches; one empty name without guidance.
        cached_steps: Skipped steps of each branch.
        changes: Measured change by step for each branch; steps that are certain to be computed have none.
        flops: FLOPs of the transformer as a fraction of those of the uncached run.
        psnr: Decibels between the cached and the uncached picture, `inf` where they are equal.
        ssim: Structural similarity of the two, 1.0 where they are equal.
        uncached: float32 [3, height, width], values from 0 to 1.
        cached: Likewise.
    """

    prompt: str
    seed: int
    branches: tuple[str, ...]
    cached_steps: tuple[tuple[int, ...], ...]
    changes: tuple[dict[int, float], ...]
    flops: float
    psnr: float
    ssim: float
    uncached: Tensor = field(repr=False, compare=False)
    cached: Tensor = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class FewerSteps:
    """The control: no cache, but as many steps as cost about the same.

    Attributes:
        steps: How many.
        psnr: Decibels to the uncached picture of all steps, by sample.
        ssim: Structural similarity to it, by sample.
    """

    steps: int
    psnr: tuple[float, ...]
    ssim: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What `compare` found.

    Attributes:
        steps: Denoising steps.
        cfg: Scale of classifier-free guidance.
        config: Configuration in short form.
        threshold: `residual_diff_threshold`, the change under which a step may be skipped; None for methods
            without it.
        samples: One for each prompt and seed.
        fewer_steps: The control.
        seconds_uncached: Wall-clock time of a whole picture: text encoders, denoising and decoding.
        seconds_cached: Likewise with caching.
        speedup: Ratio of the two, over pairs that ran one right after the other.
    """

    steps: int
    cfg: float
    config: str
    threshold: float | None
    samples: tuple[Sample, ...]
    fewer_steps: FewerSteps
    seconds_uncached: Spread
    seconds_cached: Spread
    speedup: Spread

    @property
    def flops(self) -> float:
        """FLOPs of the transformer as a fraction of those of the uncached runs."""
        return statistics.fmean(sample.flops for sample in self.samples)

    @property
    def psnr(self) -> tuple[float, ...]:
        """Decibels between the cached and the uncached picture, by sample."""
        return tuple(sample.psnr for sample in self.samples)

    @property
    def ssim(self) -> tuple[float, ...]:
        """Structural similarity of the cached and the uncached picture, by sample."""
        return tuple(sample.ssim for sample in self.samples)


@dataclass(frozen=True, slots=True)
class _Pair:
    """One uncached and one cached run, back to back."""

    uncached: Tensor
    cached: Tensor
    seconds: tuple[float, float]
    stats: CacheStats | None


def compare(
    pipe: Any,
    cache_config: CacheConfig,
    calibrator_config: CalibratorConfig | None = None,
    *,
    prompts: Sequence[str] = PROMPTS,
    seeds: Sequence[int] = (0,),
    steps: int = 28,
    cfg: float = 2.0,
    repeats: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Make every picture uncached, cached and with fewer steps, and say what was saved and lost.

    Uncached and cached runs alternate, and which of them is first alternates too, so that a machine that
    is busy or warm for a while slows both. One thread is used: at this size more are slower.

    Args:
        pipe: The result of `load_pipeline`. Nothing is enabled on it afterwards.
        cache_config: What is skipped and when.
        calibrator_config: What skipped steps are filled with; None: the last computed value again.
        prompts: In the words that the model was taught.
        seeds: Each prompt is drawn once for each.
        steps: Denoising steps.
        cfg: Scale of classifier-free guidance; 1 turns it off.
        repeats: Timed pairs of each prompt and seed.
        progress: Called with the number of pictures made and that of all pictures. None: nothing is told.

    Returns:
        The figures, and the pictures that they are of.

    Raises:
        ConfigError: No prompt or seed, a word that the model was not taught, or an option that does not fit.
    """
    if not prompts or not seeds or repeats < 1:
        raise ConfigError(
            f"got {len(prompts)} prompts, {len(seeds)} seeds, {repeats} repeats; give one of each at least."
        )
    for prompt in prompts:
        check_prompt(pipe, prompt)
    runs = [(prompt, seed) for prompt in prompts for seed in seeds]
    tick = _counter(progress, len(runs) * (2 * repeats + 1))
    try:
        with one_thread():
            enable_cache(
                pipe, cache_config, calibrator_config
            )  # whatever is wrong shows before the first run
            short = strify(pipe)
            disable_cache(pipe)
            generate(
                pipe, prompts[0], steps=min(steps, 2), cfg=cfg
            )  # the first run of all is slow: not timed
            pairs: list[list[_Pair]] = []
            for prompt, seed in runs:
                pairs.append([])
                for repeat in range(repeats):
                    settings = {"prompt": prompt, "seed": seed, "steps": steps, "cfg": cfg}
                    cached_first = (len(pairs) + repeat) % 2 == 0
                    pairs[-1].append(
                        _pair(pipe, cache_config, calibrator_config, settings, cached_first, repeat == 0)
                    )
                    tick(2)
            samples = tuple(_sample(*run, done[0]) for run, done in zip(runs, pairs, strict=True))
            fraction = statistics.fmean(sample.flops for sample in samples)
            fewer = _fewer_steps(pipe, samples, max(1, round(steps * fraction)), cfg, tick)
    finally:
        disable_cache(pipe)
    seconds = [pair.seconds for done in pairs for pair in done]
    return Comparison(
        steps=steps,
        cfg=cfg,
        config=short,
        threshold=getattr(cache_config, "residual_diff_threshold", None),
        samples=samples,
        fewer_steps=fewer,
        seconds_uncached=Spread.of([uncached for uncached, _ in seconds]),
        seconds_cached=Spread.of([cached for _, cached in seconds]),
        speedup=Spread.of([uncached / cached for uncached, cached in seconds]),
    )


def _pair(
    pipe: Any,
    cache: CacheConfig,
    calibrator: CalibratorConfig | None,
    settings: dict[str, Any],
    cached_first: bool,
    wanted: bool,
) -> _Pair:
    """One run of each kind in the order asked for; statistics, which take a moment, only where wanted."""
    pictures: dict[bool, Tensor] = {}
    seconds: dict[bool, float] = {}
    stats = None
    for cached in (cached_first, not cached_first):
        if cached:
            enable_cache(pipe, cache, calibrator)
        start = time.perf_counter()
        pictures[cached] = generate(pipe, **settings)
        seconds[cached] = time.perf_counter() - start
        if cached:
            stats = summary(pipe, logging=False)[0] if wanted else None
            disable_cache(pipe)
    return _Pair(pictures[False], pictures[True], (seconds[False], seconds[True]), stats)


def _sample(prompt: str, seed: int, pair: _Pair) -> Sample:
    stats = pair.stats
    assert stats is not None  # the first pair of a run always has them
    if stats.flops_saved is None:
        raise ConfigError(
            f"the FLOPs of {stats.model} cannot be counted; compare needs a model like the demo's."
        )
    places = range(len(stats.branches))
    return Sample(
        prompt=prompt,
        seed=seed,
        branches=stats.branches,
        cached_steps=tuple(tuple(stats.skipped(place)) for place in places),
        changes=tuple(stats.changes(place) for place in places),
        flops=1 - stats.flops_saved,
        psnr=psnr(pair.cached, pair.uncached, data_range=1.0),
        ssim=ssim(pair.cached, pair.uncached, data_range=1.0),
        uncached=pair.uncached,
        cached=pair.cached,
    )


def _fewer_steps(
    pipe: Any, samples: Sequence[Sample], steps: int, cfg: float, tick: Callable[[int], None]
) -> FewerSteps:
    scores = []
    for sample in samples:
        picture = generate(pipe, sample.prompt, seed=sample.seed, steps=steps, cfg=cfg)
        scores.append([measure(picture, sample.uncached, data_range=1.0) for measure in (psnr, ssim)])
        tick(1)
    return FewerSteps(
        steps=steps, psnr=tuple(score[0] for score in scores), ssim=tuple(score[1] for score in scores)
    )


def _counter(progress: Callable[[int, int], None] | None, total: int) -> Callable[[int], None]:
    done = 0

    def tick(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(done, total)

    tick(0)
    return tick


@contextmanager
def one_thread() -> Iterator[None]:
    """At this size of model more threads are slower, and times are those of the process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
