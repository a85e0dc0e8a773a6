"""What a cache keeps and what a skipped step costs: measured small, held against the formula, told large.

python bench/scaling.py            # some minutes
python bench/scaling.py --write    # also writes bench/results/scaling.md
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from common import environment, write

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from tiny.models import FLUX

import cache_dit
from cache_dit import DBCacheConfig, Preset, Request, TaylorSeerCalibratorConfig, presets
from cache_dit.bench.flops_models import INPUTS, KNOWN
from cache_dit.bench.memory import as_dtype, state_size

TOKENS = (4_096, 16_384, 65_536, 262_144, 1_048_576)
TAYLOR = Preset(
    DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=1.0),
    TaylorSeerCalibratorConfig(taylorseer_order=1),
)
METHODS = {
    "DBCache F8, last value": presets.dbcache(),
    "DBCache F8, line": presets.dbcache_taylorseer(),
    "DiCache": presets.dicache(),
    "Spectrum": presets.spectrum(),
    "EasyCache": presets.easycache(),
    "TaylorSeer lite": presets.taylorseer_lite(),
    "DBPrune": presets.dbprune(),
    "FORA": presets.fora(),
    "TaylorSeer": presets.taylorseer(),
    "the estimate, of 50 steps half": presets.trajectory(),
}
COMPUTED = 25


class Law(NamedTuple):
    """Bytes of one run in one branch, batch 1: `fixed + tokens * each`."""

    fixed: float
    each: float

    def at(self, tokens: int) -> float:
        return self.fixed + tokens * self.each


def table(head: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """A markdown table."""
    lines = [head, ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def amount(size: float) -> str:
    """Bytes in a fitting unit."""
    for unit, factor in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if size >= factor:
            return f"{size / factor:,.1f} {unit}"
    return f"{size / 2**10:,.1f} KiB"


# --- predicted ---


def on_meta(name: str) -> Any:
    """A published model in bfloat16, without values."""
    known = KNOWN[name]
    with torch.device("meta"):
        return getattr(diffusers, known.kind).from_config(dict(known.config)).to(torch.bfloat16).eval()


def inputs_of(name: str, model: Any, height: int, width: int, frames: int) -> dict[str, Any]:
    """Inputs of a forward of a picture or video of this size, in bfloat16."""
    known = KNOWN[name]
    size = known.size.__class__(height=height, width=width, frames=frames, text_tokens=known.size.text_tokens)
    return as_dtype(INPUTS[known.kind](dict(model.config), size), torch.bfloat16)


def laws(name: str, model: Any, sizes: Sequence[tuple[int, int, int]]) -> dict[str, Law]:
    """The law of every method from the first two sizes; the others have to lie on it, to the byte."""
    made = [
        ((h // 16) * (w // 16) * ((frames - 1) // 4 + 1), inputs_of(name, model, h, w, frames))
        for h, w, frames in sizes
    ]
    found = {}
    for method, preset in METHODS.items():
        kept = [state_size(model, inputs, preset).total(computed_steps=COMPUTED) for _, inputs in made]
        each = (kept[1] - kept[0]) / (made[1][0] - made[0][0])
        law = Law(kept[0] - each * made[0][0], each)
        for (tokens, _), exact in zip(made[2:], kept[2:], strict=True):
            assert law.at(tokens) == exact, (method, tokens, law.at(tokens), exact)
        found[method] = law
        print(name, method, law, flush=True)
    return found


def predicted(name: str, sizes: Sequence[tuple[int, int, int]]) -> str:
    """Tables of one model: by tokens, and by requests at the smallest and the largest of them."""
    model = on_meta(name)
    found = laws(name, model, sizes)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    by_tokens = [
        (method, f"{law.each:,.0f}", *(amount(law.at(tokens)) for tokens in TOKENS))
        for method, law in found.items()
    ]
    many = (1, 10, 100, 1_000)
    by_requests = [
        (method, *(amount(count * law.at(TOKENS[0])) for count in many), amount(1_000 * law.at(TOKENS[-1])))
        for method, law in found.items()
    ]
    return "\n\n".join(
        (
            f"### {name}, bfloat16, batch 1, one branch of guidance (weights: {amount(weights)})",
            f"Linear in the tokens to the byte at {len(sizes)} sizes, the largest of them with "
            f"{(sizes[-1][0] // 16) * (sizes[-1][1] // 16) * ((sizes[-1][2] - 1) // 4 + 1):,} tokens:",
            table(("method", "bytes a token", *(f"{tokens:,} tokens" for tokens in TOKENS)), by_tokens),
            "Requests under way at once:",
            table(
                (
                    "method",
                    *(f"{count:,} of {TOKENS[0]:,} tokens" for count in many),
                    f"1,000 of {TOKENS[-1]:,} tokens",
                ),
                by_requests,
            ),
        )
    )


# --- measured ---


def inputs_at(tokens: int, step: int, batch: int = 1) -> dict[str, Any]:
    """Inputs of the tiny Flux with so many tokens of picture."""
    made = FLUX.inputs(0)
    generator = torch.Generator().manual_seed(step)
    made |= {name: made[name][:1].expand(batch, *made[name].shape[1:]) for name in made if "ids" not in name}
    made["hidden_states"] = torch.randn(batch, tokens, 16, generator=generator)
    made["img_ids"] = torch.arange(tokens)[:, None].expand(tokens, 3).float()
    made["timestep"] = torch.full((batch,), 1.0 - step / 1000)
    return made


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def by_requests(tokens: int, counts: Sequence[int]) -> list[tuple[object, ...]]:
    """Many requests held at once, two steps into their runs: formula, `state_bytes` and memory."""
    model = cache_dit.enable_cache(FLUX.build(), TAYLOR.with_options(max_live_requests=-1))
    told = state_size(FLUX.build(), inputs_at(tokens, 0), TAYLOR)
    rows = []
    with torch.no_grad():
        _advance(model, Request(num_inference_steps=10), tokens, 3)  # what torch takes once
        gc.collect()
        before, held = resident(), []
        for count in counts:
            while len(held) < count:
                held.append(Request(num_inference_steps=10))
                _advance(model, held[-1], tokens, 2)
            (stats,) = cache_dit.summary(model, logging=False)
            grown = resident() - before
            rows.append(
                (
                    tokens,
                    count,
                    amount(told.total(requests=count)),
                    amount(count * stats.state_bytes),
                    amount(grown),
                    f"{grown / told.total(requests=count):.3f}",
                )
            )
        del held
        gc.collect()
        rows.append((tokens, "0, all dropped", "0", "0", amount(max(0, resident() - before)), ""))
    return rows


def _advance(model: Any, request: Request, tokens: int, steps: int) -> None:
    with request:
        for step in range(steps):
            model(**inputs_at(tokens, step), return_dict=False)


def by_steps(preset: Preset, counts: Sequence[int], tokens: int = 256) -> list[tuple[object, ...]]:
    """Runs of more and more steps: what is kept at most, and what the record of the decisions takes."""
    told = state_size(FLUX.build(), inputs_at(tokens, 0), preset)
    rows = []
    for steps in counts:
        model = cache_dit.enable_cache(FLUX.build(), preset)
        request = Request(num_inference_steps=steps, sigmas=[1 - step / steps for step in range(steps + 1)])
        with torch.no_grad(), request:
            for step in range(steps):
                model(**inputs_at(tokens, step), return_dict=False)
        (stats,) = cache_dit.summary(model, logging=False)
        computed = steps - len(stats.cached_steps)
        record = sum(sys.getsizeof(entry) + sys.getsizeof(entry.verdict) for entry in stats.steps)
        exact = "yes" if told.total(computed_steps=computed) == stats.state_bytes else "no"
        rows.append((steps, computed, amount(stats.state_bytes), exact, f"{record / steps:.0f}"))
    return rows


def by_tokens(rounds: int) -> list[tuple[object, ...]]:
    """Seconds of a computed and of a skipped forward."""
    rows = []
    for tokens in (256, 1024, 4096):
        model = cache_dit.enable_cache(FLUX.build(), TAYLOR)
        computed, skipped = [], []
        with torch.no_grad():
            for _ in range(rounds):
                with Request(num_inference_steps=4):
                    for step in range(4):
                        inputs = inputs_at(tokens, step)
                        before = time.perf_counter()
                        model(**inputs, return_dict=False)
                        (computed if step < 2 else skipped).append(time.perf_counter() - before)
        whole, short = min(computed), min(skipped)
        rows.append((tokens, f"{whole * 1e3:.2f}", f"{short * 1e3:.2f}", f"{short / whole:.3f}"))
    return rows


def main() -> None:
    """Measure, predict and print markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="runs of which the fastest forwards count")
    parser.add_argument("--write", action="store_true", help="write bench/results/scaling.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    estimate = presets.trajectory()
    parts = [
        "# Long and large",
        environment(),
        "What is measured is the tiny Flux of the tests (11 blocks, 32 wide, float32) on long sequences.",
        "## Requests: formula, what the engine counts, and memory of the process",
        "DBCache F1B0 with a line, two steps into each run.",
        table(
            ("tokens", "requests held", "formula", "counted", "process has grown by", "of the formula"),
            [row for tokens in (1024, 4096) for row in by_requests(tokens, (4, 16, 32))],
        ),
        "## Steps",
        "DBCache F1B0 with a line: nothing grows but the record of the decisions, which `summary` shows.",
        table(
            ("steps", "computed", "kept at most", "as the formula says", "record, bytes a step"),
            by_steps(TAYLOR, (8, 64, 512)),
        ),
        "The estimate keeps every computed output, and all of them end with the run:",
        table(
            ("steps", "computed", "kept at most", "as the formula says", "record, bytes a step"),
            by_steps(estimate, (8, 64, 256)),
        ),
        "## Time",
        "Milliseconds of a forward, the fastest; a skipped one runs 1 of 11 blocks, 9.1 % of them.",
        table(("tokens", "computed", "skipped", "ratio"), by_tokens(given.rounds)),
        "## Predicted",
        f'By `cache_dit.bench.memory.state_size` on the device "meta". The estimate: {COMPUTED} computed '
        "steps. Multiply by the batch, and by 2 for guidance in two calls.",
        predicted("FLUX.1-dev", ((512, 512, 1), (1024, 1024, 1), (16384, 16384, 1))),
        predicted("Wan2.1-T2V-14B", ((480, 832, 17), (720, 1280, 81), (720, 1280, 1165))),
    ]
    text = "\n\n".join(parts)
    print(text)
    if given.write:
        print(f"\nwritten: {write('scaling.md', text)}")


if __name__ == "__main__":
    main()
