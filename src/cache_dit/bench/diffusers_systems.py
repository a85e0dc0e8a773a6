"""The caches that diffusers brings, each over its strengths, put on with its own `enable_cache`.

Every option that was found to matter is in the lists, so that each is shown at its best on the training set.
"""

from __future__ import annotations

import ast
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from itertools import product
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from cache_dit.bench.pictures import Cell, Purpose, draw
from cache_dit.bench.system import Kind, System
from cache_dit.demo.model import SIZE

Config = Callable[[Any, Cell], Any]  # makes diffusers' configuration for a pipeline and a cell

REMARKS = (
    "FasterCache's part for the unconditional branch does not run: it splits a batch of both branches, and "
    "FluxPipeline calls the transformer once for each. Compared is what it does to attention",
    "TextKVCache does not run: it knows the blocks of Nucleus-Image only, and finds none in Flux",
    "PAB and FasterCache keep one state for both branches of guidance, so with guidance each takes what the "
    "other has left",
    "SeaCache computes every step of FluxPipeline, which does not tell it step and noise level; here the "
    "benchmark tells it both, and shows it the latents",
    "MagCache's ratios were calibrated on training pictures, with its own calibration, for each cell",
)


def diffusers_systems() -> list[System]:
    """All settings of all caches of diffusers that run on Flux."""
    calibration = _Calibration()
    return [
        *_taylor_lite(),
        *_taylor_modules(),
        *_taylor_attention(),
        *(
            _system(
                "FirstBlockCache", f"threshold {threshold:g}", partial(_first_block, threshold), fixed=False
            )
            for threshold in (0.03, 0.05, 0.08, 0.12, 0.16, 0.2, 0.25, 0.3, 0.4)
        ),
        *(
            _system(
                "MagCache",
                f"threshold {threshold:g}, retention {retention:g}, K {most}",
                partial(_mag, calibration, threshold, retention, most),
            )
            for threshold, (retention, most) in product(
                (0.02, 0.06, 0.12, 0.24, 0.5), ((0.2, 3), (0.1, 3), (0.1, 5))
            )
        ),
        *_sea(),
        *(
            _system("PAB", f"every {every}", partial(_pyramid, every, (100, 950)))
            for every in (2, 3, 4, 6, 8)
        ),
        *(
            _system("FasterCache", f"every {every}", partial(_faster, every, (-1, 900)))
            for every in (2, 3, 4, 6, 8)
        ),
    ]


# Steps from one computed step to the next, computed steps before the first skipped one, order.
_TAYLOR = tuple(product((2, 3, 4, 5, 6, 7, 8), (2, 3, 4, 5, 6, 8), (1, 2)))


def _taylor_lite() -> Iterator[System]:
    """TaylorSeer on the last projection alone: whole forwards are skipped, their output is forecast."""
    for interval, warmup, order in _TAYLOR:
        yield _taylor("TaylorSeer lite", interval, warmup, order, use_lite_mode=True)


def _taylor_modules() -> Iterator[System]:
    """TaylorSeer as in its paper: what every attention and feed-forward module adds is forecast."""
    active = [
        r"transformer_blocks\.\d+\.(attn|ff|ff_context)",
        r"single_transformer_blocks\.\d+\.proj_out",
    ]
    idle = [r"single_transformer_blocks\.\d+\.(attn|proj_mlp)"]
    patterns = {"cache_identifiers": active, "skip_predict_identifiers": idle}
    for interval, warmup, order in _TAYLOR:
        yield _taylor("TaylorSeer modules", interval, warmup, order, **patterns)


def _taylor_attention() -> Iterator[System]:
    """TaylorSeer as `TaylorSeerCacheConfig()` has it: attention modules alone are forecast."""
    for interval, warmup, order in product((2, 4, 6), (2, 3), (1, 2)):
        yield _taylor("TaylorSeer attention", interval, warmup, order)


def _taylor(name: str, interval: int, warmup: int, order: int, **modules: Any) -> System:
    def config(pipe: Any, cell: Cell) -> Any:
        from diffusers import TaylorSeerCacheConfig

        del pipe, cell
        return TaylorSeerCacheConfig(
            cache_interval=interval,
            disable_cache_before_step=warmup,
            max_order=order,
            taylor_factors_dtype=torch.float32,  # the default, bfloat16, would be a weaker rival
            **modules,
        )

    return _system(name, f"interval {interval}, warm-up {warmup}, order {order}", config)


def _sea() -> Iterator[System]:
    """SeaCache needs what FluxPipeline does not tell it: without help it computes every step."""
    limits = ((2, 2), (4, 2), (2, 5), (4, 5))
    for threshold, (most, retention) in product((0.1, 0.2, 0.35, 0.6, 1.0, 1.5), limits):
        yield System(
            name="SeaCache",
            strength=f"threshold {threshold:g}, at most {most}, retention {retention}",
            kind=Kind.DIFFUSERS,
            applied=partial(_sea_applied, threshold, most, retention),
            fixed=False,
        )


@contextmanager
def _sea_applied(threshold: float, most: int, retention: int, pipe: Any, cell: Cell) -> Iterator[None]:
    model, scheduler = pipe.transformer, pipe.scheduler
    plain = model.cache_context

    def told(self: Any, name: str) -> Any:
        del self
        step = scheduler.step_index or 0
        sigma = float(scheduler.sigmas[step])
        return plain(name, step_index=step, sigma=sigma, num_inference_steps=cell.steps)

    def latents(module: Any, args: Any, kwargs: dict[str, Any]) -> list[Tensor]:
        del module, args
        grids: Tensor = pipe._unpack_latents(kwargs["hidden_states"], SIZE, SIZE, pipe.vae_scale_factor)
        return list(grids.unsqueeze(2))  # [channels, time, height, width] of each picture

    def config(pipe: Any, cell: Cell) -> Any:
        from diffusers import SeaCacheConfig

        del pipe, cell
        return SeaCacheConfig(
            threshold=threshold,
            retention_steps=retention,
            max_consecutive_cached=most,
            power_exp=2.0,  # its documentation: 3.0 is for video
            raw_vision_callback=latents,
        )

    with _applied(config, pipe, cell):
        model.cache_context = MethodType(told, model)
        try:
            yield
        finally:
            del model.cache_context


class _Calibration:
    """The ratios that MagCache must be given, measured on training pictures by its own calibration."""

    def __init__(self) -> None:
        self._ratios: dict[Cell, list[float]] = {}

    def ratios(self, pipe: Any, cell: Cell) -> list[float]:
        if cell not in self._ratios:
            self._ratios[cell] = self._calibrate(pipe, cell)
        return self._ratios[cell]

    def _calibrate(self, pipe: Any, cell: Cell) -> list[float]:
        from diffusers import MagCacheConfig

        def config(pipe: Any, cell: Cell) -> Any:
            del pipe
            return MagCacheConfig(calibrate=True, num_inference_steps=cell.steps)

        with redirect_stdout(io.StringIO()) as printed, _applied(config, pipe, cell):
            draw(pipe, Purpose.TRAINING.pictures[:8], cell)
        lines = [line for line in printed.getvalue().splitlines() if line.startswith("[1.0,")]
        branches = [ast.literal_eval(line) for line in lines]
        return [sum(ratios) / len(ratios) for ratios in zip(*branches, strict=True)]


def _mag(
    calibration: _Calibration, threshold: float, retention: float, most: int, pipe: Any, cell: Cell
) -> Any:
    from diffusers import MagCacheConfig

    return MagCacheConfig(
        threshold=threshold,
        max_skip_steps=most,
        retention_ratio=retention,
        num_inference_steps=cell.steps,
        mag_ratios=calibration.ratios(pipe, cell),
    )


def _first_block(threshold: float, pipe: Any, cell: Cell) -> Any:
    from diffusers import FirstBlockCacheConfig

    del pipe, cell
    return FirstBlockCacheConfig(threshold=threshold)


def _pyramid(every: int, timesteps: tuple[int, int], pipe: Any, cell: Cell) -> Any:
    from diffusers import PyramidAttentionBroadcastConfig

    del cell
    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=every,
        spatial_attention_timestep_skip_range=timesteps,
        current_timestep_callback=lambda: pipe.current_timestep,
    )


def _faster(every: int, timesteps: tuple[int, int], pipe: Any, cell: Cell) -> Any:
    from diffusers import FasterCacheConfig

    del cell
    return FasterCacheConfig(
        spatial_attention_block_skip_range=every,
        spatial_attention_timestep_skip_range=timesteps,
        attention_weight_callback=lambda _: 0.5,  # its own default, which it warns about
        current_timestep_callback=lambda: pipe.current_timestep,
        is_guidance_distilled=True,
    )


def _system(name: str, strength: str, config: Config, *, fixed: bool = True) -> System:
    applied = partial(_applied, config)
    return System(name=name, strength=strength, kind=Kind.DIFFUSERS, applied=applied, fixed=fixed)


@contextmanager
def _applied(config: Config, pipe: Any, cell: Cell) -> Iterator[None]:
    made = config(pipe, cell)  # first: it may itself need the bare pipeline
    pipe.transformer.enable_cache(made)
    try:
        yield
    finally:
        pipe.transformer.disable_cache()
