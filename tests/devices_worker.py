"""Runs of the tiny Flux on a second device, and over two, as JSON: a process of its own for test_devices."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import torch
from second_device import Watch, fetched, move, sent
from tiny.base import output_of
from tiny.models import FLUX
from torch import Tensor, nn

import cache_dit
from cache_dit import DBCacheConfig, Preset, Request, TaylorSeerCalibratorConfig, presets

STEPS = 6
SIGMAS = tuple(1.0 - step / STEPS for step in range(STEPS + 1))
MEASURED = DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.99)
LINE = TaylorSeerCalibratorConfig(taylorseer_order=1)
CASES: dict[str, Preset | None] = {
    "uncached": None,
    "fbcache": presets.fbcache(0.99),
    "dbcache, line": Preset(MEASURED, LINE),
    "dbprune": presets.dbprune(0.99).with_options(max_warmup_steps=3),
    "fora": presets.fora(3),
    "trajectory": presets.trajectory(),
    "tolerance": presets.tolerance(100.0),
    "easycache": presets.easycache(0.99).with_options(max_warmup_steps=2),
    "speca": presets.speca(),
    "dmd": presets.dmd(2),
}
# Those that are also run by a model over two devices.
SPLIT = ("fbcache", "dbcache, line")


def run(model: Any, preset: Preset | None, *, away: bool) -> tuple[list[Tensor], list[Any]]:
    """The outputs of all steps; what was seen in each, and behind that how many decisions skipped."""
    outputs, seen = [], []
    if preset is not None:
        cache_dit.enable_cache(model, preset)
    try:
        with Request(num_inference_steps=STEPS, sigmas=SIGMAS):
            for step in range(STEPS):
                # Steps that have something in common.
                inputs = FLUX.inputs(0) | {"timestep": FLUX.inputs(step)["timestep"]}
                inputs["hidden_states"] = inputs["hidden_states"] * (1.0 - 0.05 * step)
                with Watch() as watch, model.cache_context("cond"):
                    (output,) = output_of(model, sent(inputs) if away else inputs)
                outputs.append(fetched(output).clone())
                seen.append(watch.seen)
        records = cache_dit.summary(model, logging=False)[0].steps if preset is not None else []
        seen.append(sum(record.verdict.skip for record in records))
    finally:
        cache_dit.disable_cache(model)
    return outputs, seen


def difference(one: list[Tensor], other: list[Tensor]) -> float:
    """The largest relative one of all steps."""
    return max(float((a - b).norm() / b.norm()) for a, b in zip(one, other, strict=True))


def hand_over(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Inputs go to where a block is, as with the device_map of accelerate."""
    return tuple(sent(fetched(args))), sent(fetched(kwargs))


def split_model() -> nn.Module:
    """The last blocks of the second list, and all behind them, on the second device."""
    model: Any = FLUX.build()
    for module in (*model.single_transformer_blocks[2:], model.norm_out, model.proj_out):
        move(module)
        module.register_forward_pre_hook(hand_over, with_kwargs=True)
    return model  # type: ignore[no-any-return]


def tell(name: str, found: Any, expected: list[Tensor]) -> None:
    """Print an object."""
    outputs, seen = found
    steps = [Counter(f"{what} {where}" for what, where in step) for step in seen[:-1]]
    told = {"name": name, "difference": difference(outputs, expected), "steps": steps, "skipped": seen[-1]}
    print(json.dumps(told), flush=True)


def main() -> None:
    """Tell of every case, and of those of `SPLIT` over two devices."""
    torch.set_num_threads(1)
    here, there, over_both = FLUX.build(), move(FLUX.build()), split_model()
    for name, preset in CASES.items():
        expected, _ = run(here, preset, away=False)
        tell(name, run(there, preset, away=True), expected)
        if name in SPLIT:
            tell(f"{name}, over two devices", run(over_both, preset, away=False), expected)


if __name__ == "__main__":
    main()
