"""What a cache keeps and what a skipped step costs: measured small, held against the formula, told large.

python bench/scaling.py            # some minutes of the processor
python bench/scaling.py --write    # also writes bench/results/scaling.md
"""

from __future__ import annotations

import argparse
import gc
import itertools
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from alive import in_heap
from common import environment, write

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from tiny.image_models import FLUX

import cache_dit
from cache_dit import DBCacheConfig, DBPruneConfig, Preset, Request, TaylorSeerCalibratorConfig, presets
from cache_dit.bench.flops_models import INPUTS, KNOWN
from cache_dit.bench.memory import as_dtype, state_size

TOKENS = (4_096, 16_384, 65_536, 262_144, 1_048_576)
TAYLOR = Preset(
    DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=1.0),
    TaylorSeerCalibratorConfig(taylorseer_order=1),
)
EACH_BLOCK = Preset(DBPruneConfig(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=1.0))
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


def by_requests(tokens: int, counts: Sequence[int]) -> list[tuple[object, ...]]:
    """Many requests held at once, two steps into their runs: formula, `state_bytes` and the heap."""
    model = cache_dit.enable_cache(FLUX.build(), TAYLOR.with_options(max_live_requests=-1))
    told = state_size(FLUX.build(), inputs_at(tokens, 0), TAYLOR)
    rows: list[tuple[object, ...]] = []
    with torch.no_grad():
        _advance(model, Request(num_inference_steps=10), tokens, 3)  # what torch takes once
        gc.collect()
        held: list[Request] = []
        before = in_heap()
        for count in counts:
            while len(held) < count:
                held.append(Request(num_inference_steps=10))
                _advance(model, held[-1], tokens, 2)
            (stats,) = cache_dit.summary(model, logging=False)
            grown = in_heap() - before
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
        rows.append((tokens, "0, all dropped", "0", "0", amount(max(0, in_heap() - before)), ""))
    return rows


def _advance(model: Any, request: Request, tokens: int, steps: int) -> None:
    with request:
        for step in range(steps):
            model(**inputs_at(tokens, step), return_dict=False)


def by_steps(preset: Preset, counts: Sequence[int], tokens: int = 256) -> list[tuple[object, ...]]:
    """Runs of more and more steps: what is kept at most, and what the record of the decisions takes."""
    told = state_size(FLUX.build(), inputs_at(tokens, 0), preset)
    rows: list[tuple[object, ...]] = []
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


def by_blocks(preset: Preset, counts: Sequence[int]) -> list[tuple[object, ...]]:
    """What a run keeps of models with more and more blocks."""
    known: Any = FLUX.build()
    rows: list[tuple[object, ...]] = []
    for count in counts:
        model = type(known).from_config(dict(known.config) | {"num_single_layers": count}).eval()
        rows.append((count + len(model.transformer_blocks), *_held(model, preset, 1)))
    return rows


def by_batch(preset: Preset, counts: Sequence[int]) -> list[tuple[object, ...]]:
    """What a run keeps for larger and larger batches."""
    return [(count, *_held(FLUX.build(), preset, count)) for count in counts]


def _held(model: Any, preset: Preset, batch: int, tokens: int = 256) -> tuple[str, str]:
    """Bytes that a run of ten steps keeps, and whether that is the formula's number."""
    told = state_size(model, inputs_at(tokens, 0, batch), preset).total()
    cache_dit.enable_cache(model, preset)
    with torch.no_grad(), Request(num_inference_steps=10):
        for step in range(10):
            model(**inputs_at(tokens, step, batch), return_dict=False)
    (stats,) = cache_dit.summary(model, logging=False)
    cache_dit.disable_cache(model)
    return f"{stats.state_bytes:,}", "yes" if stats.state_bytes == told else f"no, {told:,}"


def by_tokens(rounds: int) -> list[tuple[object, ...]]:
    """Seconds of the processor for a computed and for a skipped forward."""
    rows: list[tuple[object, ...]] = []
    for tokens in (256, 1024, 2048):
        model = cache_dit.enable_cache(FLUX.build(), TAYLOR)
        computed: list[float] = []
        skipped: list[float] = []
        with torch.no_grad():
            for _ in range(rounds):
                with Request(num_inference_steps=4):
                    for step in range(4):
                        inputs = inputs_at(tokens, step)
                        before = time.process_time()
                        model(**inputs, return_dict=False)
                        (computed if step < 2 else skipped).append(time.process_time() - before)
        whole, short = min(computed), min(skipped)
        rows.append((tokens, f"{whole * 1e3:.2f}", f"{short * 1e3:.2f}", f"{short / whole:.3f}"))
    return rows


def measured(rounds: int) -> Iterator[str]:
    """The tables of what the tiny model does; times are of the fastest of so many runs."""
    yield "What is measured is the tiny Flux of the tests (11 blocks, 32 wide, float32) on long sequences."
    yield "## Requests: formula, what the engine counts, and the heap"
    yield "DBCache F1B0 with a line, two steps into each run. The heap is what malloc has handed out, exact."
    yield table(
        ("tokens", "requests held", "formula", "counted", "the heap has grown by", "of the formula"),
        [row for tokens in (256, 1024) for row in by_requests(tokens, (4, 16, 64))],
    )
    head = ("steps", "computed", "kept at most", "as the formula says", "record, bytes a step")
    yield "## Steps"
    yield "DBCache F1B0 with a line: nothing grows but the record of the decisions, which `summary` shows."
    yield table(head, by_steps(TAYLOR, (8, 64, 256)))
    yield "The estimate keeps every computed output, and all of them end with the run:"
    yield table(head, by_steps(presets.trajectory(), (8, 32, 128)))
    yield "## Blocks and batch"
    yield "One run of ten steps, 256 tokens. With the change of all blocks in between (`MIDDLE`):"
    yield table(("blocks", "bytes kept", "as the formula says"), by_blocks(TAYLOR, (3, 6, 24)))
    yield "With one of each block (DBPrune):"
    yield table(("blocks", "bytes kept", "as the formula says"), by_blocks(EACH_BLOCK, (3, 6, 24)))
    yield "Larger batches (`MIDDLE`):"
    yield table(("batch", "bytes kept", "as the formula says"), by_batch(TAYLOR, (1, 2, 8)))
    yield "## Time"
    yield "Milliseconds of the processor, of the fastest forward; a skipped one runs 1 of 11 blocks, 9.1 %."
    yield table(("tokens", "computed", "skipped", "ratio"), by_tokens(rounds))


def large() -> Iterator[str]:
    """The tables of published models, by arithmetic."""
    yield "## Predicted"
    yield (
        f'By `cache_dit.bench.memory.state_size` on the device "meta". The estimate: {COMPUTED} computed '
        "steps. Multiply by the batch, and by 2 for guidance in two calls."
    )
    yield predicted("FLUX.1-dev", ((512, 512, 1), (1024, 1024, 1), (16384, 16384, 1)))
    yield predicted("Wan2.1-T2V-14B", ((480, 832, 17), (720, 1280, 81), (720, 1280, 1165)))


def main() -> None:
    """Measure, predict and print markdown as it comes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="runs of which the fastest forwards count")
    parser.add_argument("--write", action="store_true", help="write bench/results/scaling.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    parts = ["# Long and large", environment()]
    for part in itertools.chain(measured(given.rounds), large()):
        print(part, flush=True)
        parts.append(part)
    if given.write:
        path = write("scaling.md", "\n\n".join(parts))
        print(f"\nwritten: {path}")


if __name__ == "__main__":
    main()
