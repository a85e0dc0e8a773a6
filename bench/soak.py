"""A thousand runs of one tiny pipeline, each set up at random: does memory stay, and do results?

PYTHONPATH=tests python bench/soak.py                 # 1,000 runs, a minute or two
PYTHONPATH=tests python bench/soak.py --write         # also writes bench/results/soak.md
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import math
import random
import subprocess
import sys
import tempfile
import time
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from alive import in_heap, resident, rise, tensor_bytes
from soak_runs import RAISED, Ending, Setup, pipeline, take
from torch import Tensor

import cache_dit

BEGINNING = 0.3  # of the runs: caches of Python, torch and the allocator fill
EVERY = 20
RESULTS = Path(__file__).parent / "results"
MARKS = {
    "disabled": "cache disabled behind the run",
    "guided": "two branches of guidance",
    "lora": "a LoRA put on before, and taken off behind",
    "by_file": "configuration saved and loaded",
    "weights": "weights saved and loaded, with the cache on",
}


def digest(latents: Sequence[Tensor]) -> int:
    """All bits of them in 64; 0 for none."""
    content = b"".join(one.contiguous().numpy().tobytes() for one in latents)
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big") if content else 0


class Soaked(NamedTuple):
    """What many runs came to.

    Room for it is taken beforehand, so that what is counted is not this.

    Attributes:
        digests: Of the latents of every run.
        memory: Bytes of the process behind every run.
        objects: Of Python, behind some runs, with the cache off; as are the two below.
        tensors: Bytes of tensors that are alive.
        heap: Bytes that malloc has handed out.
    """

    digests: array[int]
    memory: array[int]
    objects: array[int]
    tensors: array[int]
    heap: array[int]


def soak(pipe: Any, count: int, folder: Path, *, every: int = EVERY) -> Soaked:
    """Take that many runs of one pipeline; what is alive is counted behind every `every`-th."""
    rooms = (count, count, *(count // every,) * 3)
    found = Soaked(*(array("Q", bytes(8 * room)) for room in rooms))
    for number in range(count):
        found.digests[number] = digest(take(pipe, Setup.drawn(number), folder))
        found.memory[number] = resident()
        place, left = divmod(number + 1, every)
        if left == 0:
            cache_dit.disable_cache(pipe)
            found.tensors[place - 1] = tensor_bytes()
            found.objects[place - 1] = len(gc.get_objects())
            found.heap[place - 1] = in_heap()
    return found


def fresh(number: int) -> int:
    """The digest of one run in a process of its own."""
    command = [sys.executable, __file__, "--only", str(number)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def report(found: Soaked, again: Mapping[int, bool], compared: Mapping[int, bool], seconds: float) -> str:
    """The tables: what was done, and what became of memory and results."""
    setups = [Setup.drawn(number) for number in range(len(found.digests))]
    endings = Counter(_ended(setup, found) for setup in setups)
    done = [
        ("runs", f"{len(setups):,}, {seconds / len(setups):.3f} s of the processor each, counting included"),
        *((ending.value, endings[ending]) for ending in Ending),
        ("configurations", len({setup.config for setup in setups})),
        ("steps", f"{min(s.steps for s in setups)} to {max(s.steps for s in setups)}"),
        ("shapes", len({(s.size, s.images) for s in setups})),
        ("cache enabled", f"{len(setups):,}, over the cache of the run before or none"),
        *((text, sum(getattr(setup, name) for setup in setups)) for name, text in MARKS.items()),
    ]
    kept = [
        _row("objects of Python, cache off", found.objects, EVERY),
        _row("bytes of live tensors, cache off", found.tensors, EVERY),
        _row("heap: bytes that malloc has handed out, cache off", found.heap, EVERY),
        _row("bytes of memory of the process", found.memory, 1),
    ]
    same = [
        ("runs repeated in the same process at the end, equal bit for bit", again),
        ("runs repeated in fresh processes, equal bit for bit", compared),
    ]
    return "\n".join(
        (
            "| done | |\n| --- | --- |",
            *(f"| {name} | {value} |" for name, value in done),
            "\n| kept | behind the beginning | in the end | a run adds, with 95 % interval |",
            "| --- | --- | --- | --- |",
            *kept,
            "\n| behind run | objects | bytes of tensors | bytes of heap | bytes of memory |",
            "| --- | --- | --- | --- | --- |",
            *_along(found),
            "\n| results | |\n| --- | --- |",
            *(f"| {name} | {sum(equal.values())} of {len(equal)} |" for name, equal in same),
        )
    )


def _ended(setup: Setup, found: Soaked) -> Ending:
    """A block that is called too seldom does not get to fail."""
    return Ending.DONE if setup.ending in RAISED and found.digests[setup.number] else setup.ending


def _row(name: str, values: Sequence[int], every: int) -> str:
    later = values[math.ceil(BEGINNING * len(values)) :]
    told = " +- ".join(f"{value / every:.2f}" for value in rise(later))
    return f"| {name} | {later[0]:,} | {later[-1]:,} | {told} |"


def _along(found: Soaked) -> Iterator[str]:
    """What there was at ten times."""
    count = len(found.heap)
    for place in range(count // 10 - 1, count, count // 10):
        run = (place + 1) * EVERY
        values = (found.objects[place], found.tensors[place], found.heap[place], found.memory[run - 1])
        yield f"| {run:,} | {' | '.join(f'{value:,}' for value in values)} |"


def main() -> int:
    """Soak, compare and print; 1 where a run differs from that of a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1_000)
    parser.add_argument("--compare", type=int, default=12, help="runs that are taken in fresh processes too")
    parser.add_argument("--again", type=int, default=50, help="runs that are taken once more at the end")
    parser.add_argument("--only", type=int, help="take one run and print its digest")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        pipe, folder = pipeline(), Path(name)
        if options.only is not None:
            print(digest(take(pipe, Setup.drawn(options.only), folder)))
            return 0
        start = time.process_time()
        found = soak(pipe, options.runs, folder)
        seconds = time.process_time() - start
        whole = [number for number, one in enumerate(found.digests) if one]
        repeated = random.Random(2).sample(whole, min(options.again, len(whole)))
        again = {n: digest(take(pipe, Setup.drawn(n), folder)) == found.digests[n] for n in repeated}
    sample = random.Random(1).sample(whole, min(options.compare, len(whole)))
    compared = {number: fresh(number) == found.digests[number] for number in sample}
    text = report(found, again, compared, seconds)
    print(text)
    differ = [number for number, equal in (*again.items(), *compared.items()) if not equal]
    print("differ:", differ)
    if options.write:
        from common import environment

        from cache_dit.files import write_whole

        head = f"{INTRODUCTION}\n{environment()}\n\n"
        write_whole(RESULTS / "soak.md", f"{head}{text}\n", mark="# Many runs")
    return bool(differ)


INTRODUCTION = """# Many runs of one pipeline

A tiny Flux pipeline (random weights, 3 and 2 blocks) is run again and again. Configuration, steps, size,
batch, guidance, LoRA, files and ending are drawn anew for each run; caching is enabled over that of the run
before, or switched off between. Counted is what is left: behind every 20th run with the cache off, and the
memory of the process behind every run. The beginning is the first 30 % of the runs, in which caches of
Python, torch, diffusers and the allocator fill. A rise is the slope of a line through the means of ten
stretches, its interval Student's.

A leak shows in the objects, the tensors or the heap. These rise in steps and stay between them: at the first
use of something, such as the class of options that a file is checked against. The memory of the process has
besides them what the allocator keeps free, which is not the package's to give back.
"""

if __name__ == "__main__":
    raise SystemExit(main())
