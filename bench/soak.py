"""A thousand runs of one tiny pipeline, each set up at random: does memory stay, and do results?

PYTHONPATH=tests python bench/soak.py                 # 1,000 runs, some minutes
PYTHONPATH=tests python bench/soak.py --write         # also writes bench/results/soak.md
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import hashlib
import math
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from tiny.base import Draw
from tiny.image_models import FLUX
from tiny.pipelines import FLUX_PIPELINE
from torch import Tensor

import cache_dit
from cache_dit import Preset, Request

RESULTS = Path(__file__).parent / "results"
CONFIGS = (
    "F1B0_W2M0MC2_R0.5_T1O1",
    "F1B1_W1M0MC0_R1_T0O1",
    "F2B0_W3M4MC1_R0.3_T1O2",
    "DBPrune_F1B0_W2M0MC0_P0.4",
    "F1B0_W2_SCM1101001_R0.5",
    "F1B0_W2R0.9_FoCa",
    "taylorseer(interval=2, order=1)",
    "easycache(threshold=0.5)",
    "seacache",
    "toca",
    "tolerance",
)
BEGINNING = 0.3  # of the runs: caches of Python, torch and the allocator fill


class Ending(Enum):
    """What becomes of a run."""

    DONE = "to its end"
    ABORTED = "aborted between two steps"
    BROKEN = "an exception inside of a block"
    THREADS = "two requests in two threads, the transformer alone"


@dataclass(frozen=True)
class Setup:
    """One run, drawn from its number alone.

    Attributes:
        number: Of the run.
        config: As a string for `parse_config`.
        steps: Of the run.
        size: Height and width in pixels.
        ending: What becomes of it.
        lora: An adapter is on the transformer.
        by_file: The configuration is written to a file and read back.
        disabled: Caching is switched off afterwards, not just replaced by the next.
    """

    number: int
    config: str
    steps: int
    size: tuple[int, int]
    ending: Ending
    lora: bool
    by_file: bool
    disabled: bool

    @classmethod
    def drawn(cls, number: int) -> Setup:
        chance = random.Random(number)
        return cls(
            number,
            chance.choice(CONFIGS),
            chance.randint(3, 7),
            (chance.choice((32, 48, 64)), chance.choice((32, 64))),
            chance.choices(tuple(Ending), (75, 8, 8, 9))[0],
            chance.random() < 0.2,
            chance.random() < 0.2,
            chance.random() < 0.3,
        )


class Aborted(RuntimeError):
    """Raised on purpose."""


def pipeline() -> Any:
    """The tiny Flux pipeline with 3 and 2 blocks."""
    pipe: Any = FLUX_PIPELINE.build()
    pipe.transformer.transformer_blocks = pipe.transformer.transformer_blocks[:3]
    pipe.transformer.single_transformer_blocks = pipe.transformer.single_transformer_blocks[:2]
    return pipe


def configured(setup: Setup, folder: Path) -> Any:
    """What `enable_cache` is given beside the pipeline."""
    made: Preset = cache_dit.parse_config(setup.config)
    cache = made.cache_config
    if cache.steps_computation_mask is not None:
        cache = dataclasses.replace(cache, steps_computation_mask=cache.steps_computation_mask[: setup.steps])
    given: dict[str, Any] = {"cache_config": cache, "calibrator_config": made.calibrator_config}
    if setup.by_file:
        cache_dit.save_configs(folder / "configs.yaml", **given)
        given = cache_dit.load_configs(folder / "configs.yaml")
    return given


@contextlib.contextmanager
def adapter(pipe: Any, setup: Setup) -> Iterator[None]:
    """A LoRA with weights of its own, where there is one; taken off behind the run."""
    if not setup.lora:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setup.number)
        pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    try:
        yield
    finally:
        pipe.transformer.unload_lora()


def take(pipe: Any, setup: Setup, folder: Path) -> list[Tensor]:
    """One run; its latents, or none where it was broken off."""
    cache_dit.enable_cache(pipe, **configured(setup, folder))
    try:
        with adapter(pipe, setup):
            if setup.ending is Ending.THREADS:
                return in_threads(pipe.transformer, setup)
            with contextlib.suppress(Aborted):
                return [drawn(pipe, setup)]
            return []
    finally:
        if setup.disabled:
            cache_dit.disable_cache(pipe)


def drawn(pipe: Any, setup: Setup) -> Tensor:
    """The latents of one call of the pipeline; raises `Aborted` where the set-up says so."""
    draw, at = Draw(setup.number), setup.steps // 2

    def stop(_pipe: Any, step: int, _time: Any, values: Any) -> Any:
        if setup.ending is Ending.ABORTED and step == at:
            raise Aborted
        return values

    def fail(*_: Any) -> None:
        if setup.ending is Ending.BROKEN:
            raise Aborted

    handle = pipe.transformer.single_transformer_blocks[0].register_forward_pre_hook(fail)
    try:
        return pipe(
            prompt_embeds=draw(1, 5, 24),
            pooled_prompt_embeds=draw(1, 20),
            height=setup.size[0],
            width=setup.size[1],
            num_inference_steps=setup.steps,
            generator=torch.Generator().manual_seed(setup.number),
            output_type="latent",
            return_dict=False,
            callback_on_step_end=stop,
        )[0]
    finally:
        handle.remove()


def in_threads(model: Any, setup: Setup) -> list[Tensor]:
    """Two requests at a time, each in a thread of its own, with an Euler step between forwards."""
    found: dict[int, Tensor] = {}

    def loop(which: int) -> None:
        inputs = FLUX.inputs(setup.number % 1000 + which)
        latents, request = inputs["hidden_states"], Request(setup.steps)
        for step in range(setup.steps):
            timestep = torch.full((len(latents),), 1.0 - step / setup.steps)
            given = inputs | {"hidden_states": latents, "timestep": timestep}
            with torch.no_grad(), request:
                latents = latents - model(**given, return_dict=False)[0] / setup.steps
        found[which] = latents

    threads = [threading.Thread(target=loop, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[which] for which in sorted(found)]


def digest(latents: Sequence[Tensor]) -> str:
    """All bits of them, in short."""
    return hashlib.sha256(b"".join(one.contiguous().numpy().tobytes() for one in latents)).hexdigest()[:16]


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def tensor_bytes() -> int:
    """Bytes of all tensors that anything refers to."""
    gc.collect()
    with_storage = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in _tensors()}
    return sum(with_storage.values())


def _tensors() -> Iterator[Tensor]:
    return (one for one in gc.get_objects() if type(one) in (Tensor, torch.nn.Parameter))


def slope(places: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Least squares: the slope and its standard error, as if the residuals were independent."""
    count = len(places)
    mid, mean = sum(places) / count, sum(values) / count
    spread = sum((place - mid) ** 2 for place in places)
    found = sum((p - mid) * (v - mean) for p, v in zip(places, values, strict=True)) / spread
    rest = sum((v - mean - found * (p - mid)) ** 2 for p, v in zip(places, values, strict=True))
    return found, math.sqrt(rest / max(1, count - 2) / spread)


@dataclass(frozen=True)
class Soaked:
    """What many runs came to: digests by number, memory behind each, tensors behind some, by number."""

    digests: dict[int, str]
    memory: dict[int, int]
    tensors: dict[int, int]


def soak(count: int, folder: Path, *, every: int = 20) -> Soaked:
    """Take that many runs of one pipeline; bytes of tensors are counted behind every `every`-th."""
    pipe, found = pipeline(), Soaked({}, {}, {})
    for number in range(count):
        found.digests[number] = digest(take(pipe, Setup.drawn(number), folder))
        found.memory[number] = resident()
        if number % every == every - 1:
            if not Setup.drawn(number).disabled:
                cache_dit.disable_cache(pipe)
            found.tensors[number] = tensor_bytes()
    return found


def fresh(number: int) -> str:
    """The digest of one run in a process of its own."""
    command = [sys.executable, __file__, "--only", str(number)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]


def report(found: Soaked, compared: dict[int, bool], seconds: float) -> str:
    """The table."""
    later = [number for number in found.memory if number >= BEGINNING * len(found.memory)]
    rise, error = slope(later, [found.memory[number] for number in later])
    setups = [Setup.drawn(number) for number in found.digests]
    endings = Counter(setup.ending for setup in setups)
    tensors = [found.tensors[number] for number in sorted(found.tensors)]
    said = ", ".join(f"{ending.value} {endings[ending]}" for ending in Ending)
    rows = [
        ("runs", f"{len(setups):,} in {seconds:.0f} s: {said}"),
        (
            "configurations",
            f"{len({setup.config for setup in setups})}, {min(s.steps for s in setups)} to "
            f"{max(s.steps for s in setups)} steps, {len({s.size for s in setups})} sizes",
        ),
        (
            "with a LoRA / by a file / switched off behind",
            " / ".join(
                str(sum(getattr(s, name) for s in setups)) for name in ("lora", "by_file", "disabled")
            ),
        ),
        (
            "memory of the process",
            f"{found.memory[later[0]] / 2**20:.1f} MiB behind run {later[0]}, "
            f"{found.memory[later[-1]] / 2**20:.1f} MiB behind run {later[-1]}",
        ),
        (
            "its slope from there on",
            f"{rise / 2**10:.2f} +- {error / 2**10:.2f} KiB a run (least squares, standard error)",
        ),
        (
            "bytes of live tensors, switched off",
            f"{tensors[0]:,} first, {min(tensors):,} to {max(tensors):,}, {tensors[-1]:,} last",
        ),
        ("runs equal to a fresh process, bit for bit", f"{sum(compared.values())} of {len(compared)}"),
    ]
    return "\n".join(("| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)))


def main() -> int:
    """Soak, compare and print; 1 where a run differs from that of a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1_000)
    parser.add_argument("--compare", type=int, default=12, help="runs that are taken in fresh processes too")
    parser.add_argument("--only", type=int, help="take one run and print its digest")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if options.only is not None:
            print(digest(take(pipeline(), Setup.drawn(options.only), Path(name))))
            return 0
        start = time.perf_counter()
        found = soak(options.runs, Path(name))
        seconds = time.perf_counter() - start
    whole = [n for n in found.digests if Setup.drawn(n).ending in (Ending.DONE, Ending.THREADS)]
    sample = random.Random(1).sample(whole, min(options.compare, len(whole)))
    compared = {number: fresh(number) == found.digests[number] for number in sample}
    text = report(found, compared, seconds)
    print(text)
    print("differ:", [number for number, equal in compared.items() if not equal])
    if options.write:
        from common import environment

        from cache_dit.files import write_whole

        head = f"{INTRODUCTION}\n{environment()}\n\n"
        write_whole(RESULTS / "soak.md", f"{head}{text}\n", mark="# Many runs")
    return not all(compared.values())


INTRODUCTION = """# Many runs of one pipeline

A tiny Flux pipeline (random weights, 3 and 2 blocks) is run again and again. Configuration, steps, size,
LoRA and ending are drawn anew for each run; caching is enabled over that of the run before, or switched off
between.
"""

if __name__ == "__main__":
    raise SystemExit(main())
