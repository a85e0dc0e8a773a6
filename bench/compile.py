"""Graphs and breaks of ten classes under torch.compile with the cache on: a backend counts and runs them.

python bench/compile.py            # some minutes
python bench/compile.py --write    # also writes bench/results/compile.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import environment, write

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from tiny.models import TINY_MODELS, TinyModel, output_of
from torch import Tensor, fx

import cache_dit
from cache_dit import DBCacheConfig, Request
from cache_dit.compile import compile_repeated_blocks

CLASSES = (
    "FluxTransformer2DModel",
    "Flux2Transformer2DModel",
    "QwenImageTransformer2DModel",
    "WanTransformer3DModel",
    "HunyuanVideoTransformer3DModel",
    "LTXVideoTransformer3DModel",
    "SD3Transformer2DModel",
    "CogVideoXTransformer3DModel",
    "PixArtTransformer2DModel",
    "MochiTransformer3DModel",
)
STEPS = 6


class Counting:
    """A backend that counts graphs and runs them as they are."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, graph: fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., Any]:
        self.made += 1
        return graph.forward


def cached(model: Any) -> Any:
    """F1B0, one computed step, then every other one at most."""
    config = DBCacheConfig(
        Fn_compute_blocks=1,
        max_warmup_steps=1,
        residual_diff_threshold=1.0,
        max_continuous_cached_steps=1,
        enable_separate_cfg=False,
    )
    return cache_dit.enable_cache(model, config)


@torch.no_grad()
def run(model: Any, tiny: TinyModel) -> list[Tensor]:
    """One run in a request of its own."""
    with Request(STEPS):
        return [output_of(model, tiny.inputs(seed))[0] for seed in range(STEPS)]


def counted(tiny: TinyModel, whole: bool, with_cache: bool) -> tuple[list[int], int, float, str]:
    """Graphs after each of three runs, graph breaks, the error to the uncompiled model, and the steps."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    model: Any = tiny.build()
    wanted = run(cached(tiny.build()) if with_cache else tiny.build(), tiny)
    backend = Counting()
    if with_cache:
        cached(model)
    if whole:
        model.compile(backend=backend)
    else:
        compile_repeated_blocks(model, backend=backend)
    made, error = [], 0.0
    for _ in range(3):
        got = run(model, tiny)
        made.append(backend.made)
        error = max(error, *(float((a - b).norm() / b.norm()) for a, b in zip(got, wanted, strict=True)))
    breaks = sum(torch._dynamo.utils.counters["graph_break"].values())
    steps = ""
    if with_cache:
        (stats,) = cache_dit.summary(model, logging=False)
        steps = f"{len(stats.cached_steps)} of {STEPS}"
    return made, breaks, error, steps


def row(tiny: TinyModel) -> str:
    """One line of the table."""
    own = "yes" if getattr(tiny.build(), "_repeated_blocks", None) else "no"
    plain, _, _, _ = counted(tiny, whole=False, with_cache=False)
    blocks, breaks, error, steps = counted(tiny, whole=False, with_cache=True)
    whole, whole_breaks, whole_error, _ = counted(tiny, whole=True, with_cache=True)
    return (
        f"| {tiny.name} | {own} | {plain[-1]} | {' / '.join(map(str, blocks))} | {breaks} | {steps} | "
        f"{error:.0e} | {' / '.join(map(str, whole))} | {whole_breaks} | {whole_error:.0e} |"
    )


def main() -> None:
    """Run all and print markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="*", default=CLASSES)
    parser.add_argument("--write", action="store_true", help="write bench/results/compile.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in given.only:
        rows.append(row(next(tiny for tiny in TINY_MODELS if tiny.name == name)))
        print(rows[-1], flush=True)
    text = "\n".join(
        (
            "# Compiled models with the cache",
            "",
            environment(),
            "",
            f"Tiny models with random weights; three runs of {STEPS} steps, F1B0, at most one skipped step "
            "in a row. *Graphs*: made in all, after the first / second / third run. *Regional* is "
            "`compile_repeated_blocks` with `fullgraph=True`, which raises at a break. *Whole* is "
            "`transformer.compile()`, where the cache itself stays outside of the graphs. Breaks: those that "
            "dynamo counts. Error: largest relative one (L2) to the same run without compiling.",
            "",
            "| class | `_repeated_blocks` of diffusers | regional, uncached: graphs | "
            "regional, cached: graphs | breaks | steps skipped | error | whole, cached: graphs | breaks | "
            "error |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
            *rows,
        )
    )
    print(text)
    if given.write:
        print(f"\nwritten: {write('compile.md', text)}")


if __name__ == "__main__":
    main()
