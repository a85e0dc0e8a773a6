"""Presets named after papers, with what their authors have set."""

from __future__ import annotations

from collections.abc import Sequence

from cache_dit.caching.config import DBCacheConfig, Place
from cache_dit.caching.forecasters.dicache import DiCacheCalibratorConfig
from cache_dit.caching.forecasters.dmd import DMDCalibratorConfig
from cache_dit.caching.forecasters.fastercache import FasterCacheCalibratorConfig
from cache_dit.caching.forecasters.foca import FoCaCalibratorConfig
from cache_dit.caching.forecasters.freqca import FreqCaCalibratorConfig
from cache_dit.caching.forecasters.hicache import HiCacheCalibratorConfig
from cache_dit.caching.forecasters.spectrum import SpectrumCalibratorConfig
from cache_dit.caching.forecasters.taylorseer import TaylorSeerCalibratorConfig
from cache_dit.caching.gates.delta_dit import DeltaDiTConfig
from cache_dit.caching.gates.dicache import DiCacheConfig
from cache_dit.caching.gates.duca import DuCaConfig
from cache_dit.caching.gates.easycache import EasyCacheConfig
from cache_dit.caching.gates.growing import GrowingIntervalConfig
from cache_dit.caching.gates.interval import IntervalConfig
from cache_dit.caching.gates.magcache import MagCacheConfig
from cache_dit.caching.gates.pab import PABConfig
from cache_dit.caching.gates.scheduled import ScheduleConfig
from cache_dit.caching.gates.seacache import SeaCacheConfig
from cache_dit.caching.gates.speca import SpeCaConfig
from cache_dit.caching.gates.teacache import FLUX_COEFFICIENTS, TeaCacheConfig
from cache_dit.caching.gates.toca import ToCaConfig
from cache_dit.caching.maths.schedule import Schedule
from cache_dit.caching.options import one_of, optional
from cache_dit.presets.preset import Preset


def fbcache(threshold: float = 0.08) -> Preset:
    """First block cache (ParaAttention): the first block tells whether the others are needed.

    Args:
        threshold: Relative L1 change of the first block's residual below which a step is skipped.
    """
    return Preset(DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=0, residual_diff_threshold=threshold))


def fora(interval: int = 3) -> Preset:
    """FORA (arXiv 2407.01425): attention and feed-forward outputs are repeated.

    Args:
        interval: Every how many steps they are computed.
    """
    return Preset(IntervalConfig(place=Place.SUBMODULES, interval=interval, max_warmup_steps=0))


def toca(interval: int = 5, share: float = 0.1) -> Preset:
    """ToCa (arXiv 2410.05317): outputs are repeated, but those of some tokens computed; see `ToCaConfig`.

    Args:
        interval: Every how many steps all is computed.
        share: Of the tokens that feed-forward and cross-attention modules compute in between.
    """
    return Preset(ToCaConfig(interval=interval, share=share))


def duca(interval: int = 5, share: float = 0.1) -> Preset:
    """DuCa (arXiv 2412.18911): on every other skipped step some tokens are computed, chosen at random.

    Args:
        interval: Every how many steps all is computed.
        share: Of the tokens that feed-forward and cross-attention modules compute on those steps.
    """
    return Preset(DuCaConfig(interval=interval, share=share))


def taylorseer(interval: int = 5, order: int = 2) -> Preset:
    """TaylorSeer (arXiv 2503.06923) as published: attention and feed-forward outputs are forecast.

    Args:
        interval: Every how many steps they are computed, behind a warm-up of 3.
        order: Order of the forecast; every module keeps one tensor more than that.
    """
    calibrator = TaylorSeerCalibratorConfig(taylorseer_order=order, differences="published")
    return Preset(IntervalConfig(place=Place.SUBMODULES, interval=interval), calibrator)


def taylorseer_lite(interval: int = 5, order: int = 1) -> Preset:
    """TaylorSeer on the output of the transformer alone, as the lite mode of diffusers.

    Args:
        interval: Every how many steps it is computed, behind a warm-up of 3.
        order: Order of the forecast.
    """
    return Preset(
        IntervalConfig(place=Place.OUTPUT, interval=interval),
        TaylorSeerCalibratorConfig(taylorseer_order=order, calibrator_cache_type="hidden_states"),
    )


def foca(interval: int = 5) -> Preset:
    """FoCa (arXiv 2508.16211): attention and feed-forward outputs are forecast, and the forecast calibrated.

    Args:
        interval: Every how many steps they are computed, behind a warm-up of 3.
    """
    return Preset(IntervalConfig(place=Place.SUBMODULES, interval=interval), FoCaCalibratorConfig())


def hicache(interval: int = 5, order: int = 2, sigma: float = 0.5) -> Preset:
    """HiCache (arXiv 2508.16984): attention and feed-forward outputs are forecast by Hermite polynomials.

    Args:
        interval: Every how many steps they are computed, behind a warm-up of 3.
        order: Highest polynomial.
        sigma: Contraction: 0.5 is common; 0.3 was used for the few steps of FLUX.1-schnell.
    """
    calibrator = HiCacheCalibratorConfig(order=order, sigma=sigma)
    return Preset(IntervalConfig(place=Place.SUBMODULES, interval=interval), calibrator)


def spectrum(growth: float = 0.75, blend: float = 0.5) -> Preset:
    """Spectrum (arXiv 2603.01623): what leaves the last block is fitted over all computed steps.

    Args:
        growth: What the window grows by after each computed step: 0.75 or 3, about 3.5 and 4.8 times as
            fast on FLUX with 50 steps.
        blend: Share of the fit in the forecast; the rest is the line.
    """
    calibrator = SpectrumCalibratorConfig(blend=blend, calibrator_cache_type="hidden_states")
    return Preset(GrowingIntervalConfig(growth=growth), calibrator)


def dmd(interval: int = 4) -> Preset:
    """Dynamic mode decomposition (engrXiv 10.31224/7309): the blocks' change is forecast by exponentials.

    Args:
        interval: Every how many steps it is computed; the fit needs even distances.
    """
    return Preset(IntervalConfig(interval=interval), DMDCalibratorConfig())


def freqca(interval: int = 5) -> Preset:
    """FreqCa (arXiv 2510.08669): low frequencies of the blocks' change are repeated, high ones forecast.

    Args:
        interval: Every how many steps it is computed, behind a warm-up of 3.
    """
    return Preset(IntervalConfig(interval=interval), FreqCaCalibratorConfig())


def teacache(threshold: float = 0.25, model: str | None = "flux") -> Preset:
    """TeaCache (arXiv 2411.19108): a step is skipped while little has changed at the first block's input.

    Args:
        threshold: Compute when the changes add up to this. On FLUX 0.25, 0.4, 0.6 and 0.8 are about 1.5, 1.8,
            2 and 2.25 times as fast.
        model: Whose fit maps changes of the input to changes of the output: "flux" is that of FLUX.1-dev;
            None: no fit, and thresholds mean something else.

    Raises:
        ConfigError: Another model; give its fit to `TeaCacheConfig`.
    """
    fits: dict[str, tuple[float, ...]] = {"flux": FLUX_COEFFICIENTS}
    optional(one_of(*fits))("model", model)
    return Preset(
        TeaCacheConfig(rel_l1_thresh=threshold, coefficients=None if model is None else fits[model])
    )


def seacache(threshold: float = 0.3) -> Preset:
    """SeaCache (arXiv 2602.18993): a step is skipped while little of what matters has changed in the latent.

    Args:
        threshold: Compute when the changes add up to this; 0.3 and 0.6 are about 2.2 and 3.3 times as fast
            on FLUX.
    """
    return Preset(SeaCacheConfig(threshold=threshold), TaylorSeerCalibratorConfig())


def easycache(threshold: float = 0.05) -> Preset:
    """EasyCache (arXiv 2507.02860): the way from latent to output is repeated while that should hold.

    Args:
        threshold: Compute when the expected changes add up to this.
    """
    return Preset(EasyCacheConfig(threshold=threshold))


def magcache(ratios: Sequence[float], threshold: float = 0.06, max_skip: int = 3) -> Preset:
    """MagCache (arXiv 2506.09045): a table says how much the blocks' change grows from step to step.

    Args:
        ratios: The table of the model: `cache_dit.tune.magcache_ratios`.
        threshold: Compute when the errors add up to more than this.
        max_skip: Most skipped steps in a row.
    """
    return Preset(MagCacheConfig(ratios=ratios, threshold=threshold, max_continuous_cached_steps=max_skip))


def dicache(threshold: float = 0.4) -> Preset:
    """DiCache (arXiv 2508.17356): the first block tells when to compute, and what to expect else.

    Args:
        threshold: Compute when its changes add up to this: 0.4 on FLUX, 0.2 on Wan, 0.1 on HunyuanVideo.
    """
    return Preset(DiCacheConfig(threshold=threshold), DiCacheCalibratorConfig())


def speca(order: int = 2) -> Preset:
    """SpeCa (arXiv 2509.11628): TaylorSeer drafts a step, and the last block checks it.

    Args:
        order: Order of the drafts.
    """
    calibrator = TaylorSeerCalibratorConfig(taylorseer_order=order, differences="published")
    return Preset(SpeCaConfig(), calibrator)


def pab(spatial: int = 2, temporal: int = 4, cross: int = 6) -> Preset:
    """Pyramid Attention Broadcast (arXiv 2408.12588): attention outputs are repeated.

    Args:
        spatial: Interval of self-attention over a picture, or over picture and text.
        temporal: Interval of self-attention over time.
        cross: Interval of cross-attention.
    """
    return Preset(PABConfig(spatial=spatial, temporal=temporal, cross=cross))


def fastercache(interval: int = 5) -> Preset:
    """FasterCache (arXiv 2410.19355): attention outputs are moved on, the unconditional branch is forecast.

    Args:
        interval: Every how many steps that branch is computed, where it has calls of its own.
    """
    cache = PABConfig(spatial=2, temporal=2, cross=2, window=(0.0, 0.681), uncond_interval=interval)
    return Preset(cache, FasterCacheCalibratorConfig())


def delta_dit(interval: int = 2) -> Preset:
    """Δ-DiT (arXiv 2406.01125): rear blocks are skipped in the first half, front blocks in the second.

    Args:
        interval: Every how many steps they are computed.
    """
    return Preset(DeltaDiTConfig(interval=interval))


def lemica(schedule: Schedule) -> Preset:
    """LeMiCa (arXiv 2511.00090): a searched list of computed steps; the blocks' change is repeated.

    Args:
        schedule: From `cache_dit.tune.observe(..., search=LeMiCa())`.
    """
    return Preset(ScheduleConfig(schedule=schedule))


def dpcache(schedule: Schedule) -> Preset:
    """DPCache (arXiv 2602.22654): a searched list of computed steps; the output is forecast linearly.

    Args:
        schedule: From `cache_dit.tune.observe(..., search=DPCache())`.
    """
    return Preset(
        ScheduleConfig(schedule=schedule, place=Place.OUTPUT),
        TaylorSeerCalibratorConfig(calibrator_cache_type="hidden_states"),
    )
