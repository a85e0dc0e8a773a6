"""Every known class, measured on a tiny model: exact, restored, repeatable, and right where it skips.

python bench/models.py            # a few minutes
python bench/models.py --write    # also writes bench/results/models.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from common import environment, write

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from tiny.models import TINY_MODELS, TinyModel, output_of

import cache_dit
from cache_dit import CalibratorConfig, DBCacheConfig, Request, TaylorSeerCalibratorConfig

STEPS = 6
TOLERANCE = 1e-5

Outputs = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Line:
    """One line of the table; an error is the largest relative one of the outputs, in the L2 norm.

    Attributes:
        model: Class, and which of its configurations.
        lists: Labels of its block lists.
        exact: Bit-identical to the model without a cache when the threshold is 0.
        cached: Steps skipped of six at threshold 1 with F1B0 and one computed step.
        repeated: Error on a repeated input, F1B0.
        tail: The same with the last block computed, F1B1.
        taylor: The same with TaylorSeer of order 1.
        restored: Classes, outputs and `state_dict` keys after `disable_cache` are as before.
        rerun: A second run in a request of its own is bit-identical to the first.
        bare: Likewise with `num_inference_steps` alone, without any request or refresh.
        control: Error on a repeated input with ControlNet inputs; None where the forward takes none.
    """

    model: str
    lists: str
    exact: bool
    cached: int
    repeated: float
    tail: float
    taylor: float
    restored: bool
    rerun: bool
    bare: bool
    control: float | None

    @property
    def right(self) -> bool:
        """Whether every cell is as it should be."""
        errors = [
            error for error in (self.repeated, self.tail, self.taylor, self.control) if error is not None
        ]
        sound = self.exact and self.restored and self.rerun and self.bare
        return sound and self.cached > 0 and max(errors) < TOLERANCE


def measured(tiny: TinyModel) -> Line:
    """Measure one tiny model."""
    model: Any = tiny.build()
    keys, classes = list(model.state_dict()), [type(module) for module in model.modules()]
    plain = [output_of(model, tiny.inputs(seed)) for seed in range(STEPS)]

    off = enabled(model, residual_diff_threshold=0.0)
    exact = all(map(equal, run(off, tiny), plain))
    first, again = (run(enabled(model), tiny) for _ in range(2))
    (stats, *_) = cache_dit.summary(model, logging=False)
    bare = enabled(model, num_inference_steps=STEPS)
    bare_runs = [[output_of(bare, tiny.inputs(seed)) for seed in range(STEPS)] for _ in range(3)]
    errors = [
        repeated(model, tiny.inputs),
        repeated(model, tiny.inputs, Bn_compute_blocks=1),
        repeated(model, tiny.inputs, TaylorSeerCalibratorConfig(), max_warmup_steps=2),
    ]
    controls = [repeated(model, inputs) for name, inputs in tiny.variants.items() if "control" in name]
    cache_dit.disable_cache(model)
    after = [output_of(model, tiny.inputs(seed)) for seed in range(STEPS)]
    return Line(
        model=tiny.id,
        lists=", ".join(dict.fromkeys(tiny.block_lists)),
        exact=exact,
        cached=len(stats.cached_steps),
        repeated=errors[0],
        tail=errors[1],
        taylor=errors[2],
        restored=classes == [type(module) for module in model.modules()]
        and keys == list(model.state_dict())
        and all(map(equal, after, plain)),
        rerun=all(map(equal, first, again)),
        bare=all(all(map(equal, bare_runs[0], other)) for other in bare_runs[1:]),
        control=max(controls, default=None),
    )


def enabled(model: Any, calibrator: CalibratorConfig | None = None, **options: Any) -> Any:
    """The model with a cache: F1B0, one computed step, every other one skipped."""
    base = {"Fn_compute_blocks": 1, "max_warmup_steps": 1, "residual_diff_threshold": 1.0}
    return cache_dit.enable_cache(
        model, DBCacheConfig(**base | {"enable_separate_cfg": False} | options), calibrator
    )


def run(model: Any, tiny: TinyModel) -> list[Outputs]:
    """One run in a request of its own."""
    with Request(STEPS):
        return [output_of(model, tiny.inputs(seed)) for seed in range(STEPS)]


def repeated(
    model: Any,
    inputs: Callable[[int], dict[str, Any]],
    calibrator: CalibratorConfig | None = None,
    **options: Any,
) -> float:
    """Largest error over a run in which the input stays the same."""
    cache_dit.disable_cache(model)
    expected = output_of(model, inputs(0))
    enabled(model, calibrator, **options)
    with Request(4):
        return max(error(output_of(model, inputs(0)), expected) for _ in range(4))


def equal(outputs: Outputs, other: Outputs) -> bool:
    return all(map(torch.equal, outputs, other))


def error(outputs: Outputs, expected: Outputs) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(outputs, expected, strict=True))


def table(lines: Sequence[Line]) -> str:
    """Totals and one row a model, in markdown."""
    classes = {line.model.partition("-")[0] for line in lines}
    wrong = {line.model.partition("-")[0] for line in lines if not line.right}
    controlled = [line for line in lines if line.control is not None]
    flags = ", ".join(
        f"{name} {sum(getattr(line, name) for line in lines)} of {len(lines)}"
        for name in ("exact", "restored", "rerun", "bare")
    )
    worst = max(max(line.repeated, line.tail, line.taylor, line.control or 0.0) for line in lines)
    names = [field.name for field in fields(Line)]
    rows = [
        "| " + " | ".join(map(cell, astuple(line))) + " |"
        for line in sorted(lines, key=lambda one: one.model)
    ]
    return "\n".join(
        (
            f"**{len(classes) - len(wrong)} of {len(classes)} classes right in every cell**; {flags}; "
            f"{len(controlled)} with ControlNet inputs; largest error {worst:.0e}.",
            *([f"\nNot right: {', '.join(sorted(wrong))}."] if wrong else []),
            "",
            "| " + " | ".join(names) + " |",
            "| " + " | ".join("---" for _ in names) + " |",
            *rows,
        )
    )


def cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    return f"{value:.0e}" if isinstance(value, float) else str(value)


def main() -> None:
    """Measure all and print markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="a part of the class names")
    parser.add_argument("--write", action="store_true", help="write bench/results/models.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    lines = [measured(tiny) for tiny in TINY_MODELS if given.only in tiny.id]
    meaning = Line.__doc__.partition("Attributes:\n")[2]
    columns = "\n".join(f"- {line.strip()}" for line in meaning.strip().splitlines())
    text = "\n\n".join(("# Every known class", environment(), columns, table(lines)))
    print(text)
    if given.write:
        print(f"\nwritten: {write('models.md', text)}")


if __name__ == "__main__":
    main()
