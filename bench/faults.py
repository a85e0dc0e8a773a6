"""Faults put into runs and writers on purpose, and what is left of them: nothing.

PYTHONPATH=tests python bench/faults.py             # a minute or two
PYTHONPATH=tests python bench/faults.py --write     # also writes bench/results/faults.md
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import gc
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from fault_files import FILE_FAULTS
from tiny.image_models import FLUX
from tiny.runs import small_flux
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import cache_dit
from cache_dit import Request
from cache_dit.api import attachments_of
from cache_dit.caching.engine.state import SegmentState

RESULTS = Path(__file__).parent / "results"
CONFIGS = (
    "F1B0_W2M0MC2_R1_T1O1",
    "DBPrune_F1B0_W2M0MC0_P0.4",
    "taylorseer(interval=2, order=1)",
    "easycache(threshold=5.0)",
    "trajectory(compute=0.5)",
)
STEPS = 6
SIGMAS = tuple(1.0 - step / STEPS for step in range(STEPS + 1))


class Broken(RuntimeError):
    """Raised on purpose."""


class Interrupted(KeyboardInterrupt):
    """As Ctrl-C, and told from a real one."""


RAISED: dict[str, Callable[[], BaseException]] = {
    "an exception": lambda: Broken("on purpose"),
    "a KeyboardInterrupt": lambda: Interrupted("on purpose"),
    "an out-of-memory error": lambda: torch.OutOfMemoryError("on purpose"),
}
ODD = (float("nan"), float("inf"), 3e38)


@dataclass
class Row:
    """One kind of fault, how often it was put in, and after how many everything held.

    Attributes:
        fault: In words.
        held: What has to hold.
        put: Times that the fault happened; a place that a run does not reach does not count.
        good: Times that everything held behind it.
    """

    fault: str
    held: str
    put: int = 0
    good: int = 0

    def count(self, good: bool) -> None:
        self.put += 1
        self.good += good


@functools.cache
def _inputs(step: int) -> dict[str, Tensor]:
    first, second, sigma = FLUX.inputs(0), FLUX.inputs(1)["hidden_states"], SIGMAS[step]
    mixed = first["hidden_states"] + 0.1 * (1.0 - sigma) * second
    return first | {"hidden_states": mixed, "timestep": torch.full((len(mixed),), sigma)}


class Bench:
    """A cached model, the outputs of a run before any fault, and runs with faults.

    Args:
        config: As a string for `parse_config`.
    """

    def __init__(self, config: str) -> None:
        made = cache_dit.parse_config(config)
        self.model: Any = cache_dit.enable_cache(small_flux(), made.cache_config, made.calibrator_config)
        (attached,) = attachments_of(self.model)
        self.session = attached.session
        self.expected = self.run(Request(STEPS, sigmas=SIGMAS))

    @property
    def blocks(self) -> list[nn.Module]:
        """All of them, in order."""
        return [*self.model.transformer_blocks, *self.model.single_transformer_blocks]

    def forward(self, request: Request, step: int) -> Tensor:
        """One step, whose inputs do not depend on the outputs before, so that only the cache joins them."""
        with torch.no_grad(), request:
            output: Tensor = self.model(**_inputs(step), return_dict=False)[0]
        return output

    def run(self, request: Request, steps: int = STEPS) -> list[Tensor]:
        """The outputs of so many steps."""
        return [self.forward(request, step) for step in range(steps)]

    def sound(self) -> bool:
        """No run is left, and the next one is bit for bit that before all faults."""
        gc.collect()
        if len(list(self.session.live._runs)):
            return False
        return all(map(torch.equal, self.run(Request(STEPS, sigmas=SIGMAS)), self.expected))


@contextlib.contextmanager
def hooked(block: nn.Module, at: int, act: Callable[[Any], Any]) -> Iterator[list[int]]:
    """Behind the block's `at`-th call, from 1, `act` gets its output; yields the calls in which it did."""
    calls, acted = 0, []

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            acted.append(calls)
            return act(output)
        return None

    handle = block.register_forward_hook(hook)
    try:
        yield acted
    finally:
        handle.remove()


def raised(bench: Bench, row: Row, make: Callable[[], BaseException]) -> None:
    """In every block, in its first and third call."""

    def fail(_output: Any) -> None:
        raise make()

    for block in bench.blocks:
        for at in (1, 3):
            with hooked(block, at, fail) as acted, contextlib.suppress(type(make())):
                bench.run(request := Request(STEPS, sigmas=SIGMAS))
            if acted:
                row.count(not request.states and bench.sound())


def spoilt(bench: Bench, row: Row) -> None:
    """An odd number in what a block returns; all steps behind it have finite outputs."""
    for block in bench.blocks:
        for value in ODD:

            def spoil(output: Any, value: float = value) -> Any:
                for leaf in tree_leaves(output):
                    leaf[(0,) * leaf.ndim] = value
                return output

            for at in (1, 3):
                outputs: list[Tensor] = []
                request, spoilt_at = Request(STEPS, sigmas=SIGMAS), -1
                with hooked(block, at, spoil) as acted:
                    for step in range(STEPS):
                        outputs.append(bench.forward(request, step))
                        spoilt_at = step if acted and spoilt_at < 0 else spoilt_at
                if acted:
                    row.count(_finite(outputs[spoilt_at + 1 :]) and bench.sound())


def odd_signal(bench: Bench, row: Row) -> None:
    """Everything that enters the model in one step is odd."""
    for value in ODD:
        for at in range(STEPS):
            request, outputs = Request(STEPS, sigmas=SIGMAS), []
            for step in range(STEPS):
                handle = bench.model.x_embedder.register_forward_hook(
                    lambda _module, _args, output, odd=value if step == at else 1.0: output * odd
                )
                outputs.append(bench.forward(request, step))
                handle.remove()
            row.count(_finite(outputs[at + 1 :]) and bench.sound())


def odd_forecast(bench: Bench, row: Row) -> None:
    """The first forecast of a run is odd, in all of its tensors."""
    plain = SegmentState.forecast
    for value in ODD:
        calls = 0

        def forecast(self: SegmentState, *args: Any, value: float = value) -> tuple[Any, ...]:
            nonlocal calls
            calls += 1
            found = plain(self, *args)
            return (
                tuple(one * value if isinstance(one, Tensor) else one for one in found)
                if calls == 1
                else found
            )

        request, outputs, at = Request(STEPS, sigmas=SIGMAS), [], STEPS
        with mock.patch.object(SegmentState, "forecast", forecast):
            for step in range(STEPS):
                outputs.append(bench.forward(request, step))
                at = min(at, step) if calls else at
        if calls:
            row.count(_finite(outputs[at + 1 :]) and bench.sound())


def _finite(outputs: Sequence[Tensor]) -> bool:
    return all(bool(output.isfinite().all()) for output in outputs)


def between_steps(bench: Bench, row: Row) -> None:
    """The loop is left behind every step: by `close`, or by letting go of the request."""
    for steps in range(1, STEPS):
        for closes in (True, False):
            bench.run(request := Request(STEPS, sigmas=SIGMAS), steps)
            if closes:
                request.close()
            del request
            row.count(bench.sound())


def cancelled(bench: Bench, row: Row) -> None:
    """A task is cancelled between two of its forwards, beside one that goes on."""

    async def denoise() -> list[Tensor]:
        request, outputs = Request(STEPS, sigmas=SIGMAS), []
        for step in range(STEPS):
            outputs.append(bench.forward(request, step))
            await asyncio.sleep(0)
        return outputs

    async def both(after: int) -> bool:
        dies, lives = asyncio.create_task(denoise()), asyncio.create_task(denoise())
        for _ in range(after):
            await asyncio.sleep(0)
        dies.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await dies
        return dies.cancelled() and all(map(torch.equal, await lives, bench.expected))

    for after in range(1, STEPS):
        row.count(asyncio.run(both(after)) and bench.sound())


def dying_thread(bench: Bench, row: Row) -> None:
    """A thread dies in the middle of a forward, beside one that goes on."""
    for at in range(STEPS):
        found: list[list[Tensor]] = []

        def live(found: list[list[Tensor]] = found) -> None:
            found.append(bench.run(Request(STEPS, sigmas=SIGMAS)))

        def die(at: int = at) -> None:
            with contextlib.suppress(Broken):
                bench.run(request := Request(STEPS, sigmas=SIGMAS), at)
                threading.current_thread().name = "dies"
                bench.forward(request, at)

        def fail(*_: Any) -> None:
            if threading.current_thread().name == "dies":
                raise Broken

        handle = bench.blocks[0].register_forward_hook(fail)
        threads = [threading.Thread(target=one) for one in (live, die)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        handle.remove()
        row.count(all(map(torch.equal, found[0], bench.expected)) and bench.sound())


FRESH = "nothing is kept; the next run is bit for bit that before all faults"
LATER = f"later outputs are finite; {FRESH}"
BESIDE = f"the other is bit for bit as alone; {FRESH}"


def engine_faults(configs: Sequence[str] = CONFIGS) -> list[Row]:
    """Put every fault of runs into every configuration."""
    rows = {
        **{name: Row(f"{name} behind a block, in each block", FRESH) for name in RAISED},
        "spoilt": Row("NaN, infinity or 3e38 in what a block returns, in each block", LATER),
        "signal": Row("the same in all that enters the blocks, in each step", LATER),
        "forecast": Row("the same in all of a forecast", LATER),
        "between": Row("the loop is left between two steps, behind each", FRESH),
        "cancelled": Row("a task is cancelled between two steps, beside another", BESIDE),
        "thread": Row("a thread dies in a forward, in each step, beside another", BESIDE),
    }
    for config in configs:
        bench = Bench(config)
        # What is there by now is not looked at in every collection.
        gc.freeze()
        for name, make in RAISED.items():
            raised(bench, rows[name], make)
        spoilt(bench, rows["spoilt"])
        odd_signal(bench, rows["signal"])
        odd_forecast(bench, rows["forecast"])
        between_steps(bench, rows["between"])
        cancelled(bench, rows["cancelled"])
        dying_thread(bench, rows["thread"])
        gc.unfreeze()
    return list(rows.values())


def file_faults(folder: Path) -> list[Row]:
    """Put every fault of files into every writer or reader."""
    rows = []
    for number, (fault, held, count) in enumerate(FILE_FAULTS):
        inner = folder / str(number)
        inner.mkdir()
        rows.append(Row(fault, held))
        for good in count(inner):
            rows[-1].count(good)
    return rows


def table(rows: Sequence[Row]) -> str:
    """Every fault with its counts."""
    lines = (f"| {row.fault} | {row.put:,} | {row.held} | {row.good:,} |" for row in rows)
    total = f"| **all** | **{sum(row.put for row in rows):,}** | | **{sum(row.good for row in rows):,}** |"
    return "\n".join(
        ("| fault | put in | what has to hold behind it | did |", "| --- | --- | --- | --- |", *lines, total)
    )


def main() -> int:
    """Put faults in, print the table; 1 where something did not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()
    with tempfile.TemporaryDirectory() as name:
        runs, files = engine_faults(), file_faults(Path(name))
    text = f"## In runs\n\n{table(runs)}\n\n## In files\n\n{table(files)}"
    print(text)
    failed = [row for row in (*runs, *files) if row.good < row.put]
    if options.write and not failed:
        from common import environment

        from cache_dit.files import write_whole

        with_what = f"- configurations: {', '.join(f'`{config}`' for config in CONFIGS)}"
        spent = f"- {time.process_time() - start:.0f} s of the processor"
        head = f"{INTRODUCTION}\n{environment()}\n{with_what}\n{spent}\n\n"
        write_whole(RESULTS / "faults.md", f"{head}{text}\n", mark="# Faults")
    return bool(failed)


INTRODUCTION = f"""# Faults

Put in on purpose, each a real one: runs of a tiny Flux (3 and 2 blocks, {STEPS} steps) with {len(CONFIGS)}
configurations, and files of every kind that the package writes or reads. A fault counts where it happened: a
block that a run does not reach a third time does not fail in its third call.
"""

if __name__ == "__main__":
    raise SystemExit(main())
