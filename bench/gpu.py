"""Time, memory, overhead and synchronisations of caching on a GPU, and Triton's kernels against torch.

bench/gpu.sh              # on a machine with GPUs: everything, about 20 minutes
bench/gpu.sh --dry-run    # the same code on a tiny model on the CPU

Weights are random, so that nothing has to be downloaded and dynamic decisions would mean nothing: which steps
are computed is given by step masks.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import os
import platform
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from common import environment, write
from diffusers import FluxTransformer2DModel
from torch import Tensor

import cache_dit
from cache_dit import DBCacheConfig, Request, TaylorSeerCalibratorConfig
from cache_dit.compile import compile_repeated_blocks
from cache_dit.errors import CacheDiTError
from cache_dit.kernels import triton_kernels
from cache_dit.kernels.choice import torch_distance, torch_weighted_sum
from cache_dit.quantize import QuantizeSummary, quantize

# FLUX.1-dev, and a model of its layout that a CPU runs in no time.
FULL: dict[str, Any] = {"guidance_embeds": True}
TINY: dict[str, Any] = {
    "in_channels": 4,
    "num_layers": 2,
    "num_single_layers": 4,
    "attention_head_dim": 16,
    "num_attention_heads": 4,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "axes_dims_rope": (4, 4, 8),
    "guidance_embeds": True,
}
MASKS = ("slow", "medium", "fast", "ultra")


@dataclass(frozen=True)
class Machine:
    """Where it runs, and on what.

    Attributes:
        device: Of the model.
        tiny: The tiny model instead of the large one.
        steps: Of a run.
        size: Pixels of a side.
    """

    device: torch.device
    tiny: bool
    steps: int
    size: int

    def model(self) -> Any:
        """A model with random weights, made on the device."""
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32 if self.tiny else torch.bfloat16)
        try:
            with self.device:
                return FluxTransformer2DModel(**(TINY if self.tiny else FULL)).eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(before)

    def inputs(self, model: Any) -> dict[str, Any]:
        """What a forward gets beside the timestep: 2 x 2 latent pixels a token, and 512 tokens of text."""
        side, config = self.size // 16, model.config
        text = 16 if self.tiny else 512
        make = partial(torch.randn, device=self.device, dtype=model.dtype)
        rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        places = torch.stack((torch.zeros_like(rows), rows, columns), -1).reshape(-1, 3)
        return {
            "hidden_states": make(1, side * side, config.in_channels),
            "encoder_hidden_states": make(1, text, config.joint_attention_dim),
            "pooled_projections": make(1, config.pooled_projection_dim),
            "img_ids": places.to(self.device, model.dtype),
            "txt_ids": torch.zeros(text, 3, device=self.device, dtype=model.dtype),
            "guidance": torch.full((1,), 3.5, device=self.device, dtype=model.dtype),
            "return_dict": False,
        }

    def wait(self) -> None:
        """Until the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@torch.no_grad()
def denoise(machine: Machine, model: Any, given: dict[str, Any]) -> Tensor:
    """One run: Euler steps from 1 to 0."""
    latents = given["hidden_states"]
    with Request(machine.steps):
        for step in range(machine.steps):
            timestep = torch.full((1,), 1 - step / machine.steps, device=machine.device, dtype=model.dtype)
            velocity = model(**given | {"hidden_states": latents}, timestep=timestep)[0]
            latents = latents - velocity / machine.steps
    return latents


@dataclass(frozen=True)
class Setting:
    """One line: a step mask (None: no cache), and what is stacked on it."""

    mask: str | None = None
    compiled: bool = False
    float8: bool = False
    taylor: bool = False

    @property
    def label(self) -> str:
        parts = ["uncached" if self.mask is None else f"{self.mask} mask"]
        stacked = {"Taylor": self.taylor, "compile": self.compiled, "FP8": self.float8}
        return " + ".join(parts + [name for name, on in stacked.items() if on])

    def applied(self, machine: Machine, parallelism: Any) -> Any:
        """A model of its own with all that switched on."""
        model = machine.model()
        if self.float8:
            # Multiplying in float8 needs a GPU; the dry run does with the weights.
            kind = "float8_weight_only" if machine.tiny else "float8_per_row"
            quantize(model, kind, report=_on_stderr)
        config = None
        if self.mask is not None:
            config = DBCacheConfig(
                Fn_compute_blocks=1,
                max_warmup_steps=4 if machine.steps > 8 else 1,
                residual_diff_threshold=1.0,
                enable_separate_cfg=False,
                steps_computation_mask=cache_dit.steps_mask(mask_policy=self.mask, total_steps=machine.steps),
                steps_computation_policy="static",
            )
        calibrator = TaylorSeerCalibratorConfig(taylorseer_order=1) if self.taylor else None
        if config is not None:
            cache_dit.enable_cache(model, config, calibrator, **parallelism)
        elif parallelism:
            cache_dit.enable_cache(model, **parallelism)
        if self.compiled:
            compile_repeated_blocks(model, **({"backend": "eager"} if machine.tiny else {}))
        return model


SETTINGS = (
    Setting(),
    *(Setting(mask) for mask in MASKS),
    Setting("fast", taylor=True),
    Setting(compiled=True),
    Setting(float8=True),
    Setting(compiled=True, float8=True),
    Setting("fast", taylor=True, compiled=True),
    Setting("fast", taylor=True, compiled=True, float8=True),
)


def _on_stderr(summary: QuantizeSummary) -> None:
    print(str(summary).splitlines()[0], flush=True)


@contextmanager
def counted_syncs(machine: Machine) -> Iterator[list[int]]:
    """How often the host waited for the device; empty where there is none."""
    found: list[int] = []
    if machine.device.type != "cuda":
        yield found
        return
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield found
        found.append(sum("synchronizing CUDA operation" in str(one.message) for one in caught))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def measured(setting: Setting, machine: Machine, rounds: int, parallelism: Any) -> tuple[float, str]:
    """Seconds of the fastest run, and the cells behind the label."""
    model = setting.applied(machine, parallelism)
    given = machine.inputs(model)
    denoise(machine, model, given)  # compiles, tunes and fills caches
    machine.wait()
    if machine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(machine.device)
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        denoise(machine, model, given)
        machine.wait()
        times.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated(machine.device) / 1e9 if machine.device.type == "cuda" else None
    with counted_syncs(machine) as syncs:
        denoise(machine, model, given)
    skipped = 0
    if setting.mask is not None:
        (stats,) = cache_dit.summary(model, logging=False)
        skipped = len(stats.cached_steps)
    memory = "-" if peak is None else f"{peak:.2f}"
    count = str(syncs[0]) if syncs else "-"
    return min(times), f"{skipped} | {min(times):.3f} | {memory} | {count}"


def table(machine: Machine, settings: tuple[Setting, ...], rounds: int, parallelism: Any) -> list[str]:
    """One line for each setting; what cannot run here says why."""
    rows, uncached = [], {}
    for setting in settings:
        gc.collect()
        try:
            seconds, cells = measured(setting, machine, rounds, parallelism)
        except (CacheDiTError, torch.OutOfMemoryError) as error:
            rows.append(
                f"| {setting.label} | - | {type(error).__name__}: {str(error).splitlines()[0]} | | | | |"
            )
            continue
        skipped = int(cells.split(" | ")[0])
        same = (setting.compiled, setting.float8)
        if setting.mask is None:
            uncached[same] = seconds
        full = uncached.get((False, False))
        gain = f"{full / seconds:.2f}" if full else "-"
        left = skipped_step(machine, seconds, skipped, uncached.get(same))
        rows.append(f"| {setting.label} | {cells} | {gain} | {left} |")
        print(rows[-1], flush=True)
    return rows


def skipped_step(machine: Machine, seconds: float, skipped: int, uncached: float | None) -> str:
    """Milliseconds of a skipped step: what is left when every computed one takes as long as uncached."""
    if not skipped or uncached is None:
        return "-"
    computed = (machine.steps - skipped) * uncached / machine.steps
    return f"{(seconds - computed) / skipped * 1000:.2f}"


def kernel_rows(machine: Machine) -> list[str]:
    """Triton's kernels against torch on tensors of the model's size, microseconds."""
    tokens, channels = (64, 64) if machine.tiny else (4608, 3072)
    dtype = torch.float32 if machine.tiny else torch.bfloat16
    values = [torch.randn(1, tokens, channels, device=machine.device, dtype=dtype) for _ in range(4)]
    weights = [3.0, -3.0, 1.0, 0.5]
    cases: list[tuple[str, Callable[[], Any], str, tuple[Any, ...]]] = [
        ("gate signal", partial(torch_distance, *values[:2]), "distance", (values[0], values[1]))
    ]
    for count in (2, 3, 4):
        args = (values[:count], weights[:count])
        cases.append((f"sum of {count}", partial(torch_weighted_sum, *args), "weighted_sum", args))
    rows = []
    for name, plain, kernel, args in cases:
        by_torch = microseconds(machine, plain)
        by_triton, error = triton_time(machine, kernel, args, plain())
        rows.append(f"| {name} | {by_torch:.1f} | {by_triton} | {error} |")
    return rows


def triton_time(machine: Machine, kernel: str, args: tuple[Any, ...], wanted: Any) -> tuple[str, str]:
    """Time of a kernel and its relative error to torch; dashes where Triton cannot run."""
    from cache_dit.caching.maths.kernels import chosen_kernels

    if machine.device.type != "cuda":
        return "-", "-"
    try:
        with triton_kernels():
            call = partial(getattr(chosen_kernels.get(), kernel), *args)
            got = call()
            pairs = zip(got, wanted, strict=True) if isinstance(got, tuple) else [(got, wanted)]
            error = max(float((a.double() - b.double()).norm() / b.double().norm()) for a, b in pairs)
            return f"{microseconds(machine, call):.1f}", f"{error:.0e}"
    except CacheDiTError:
        return "no Triton", "-"


def microseconds(machine: Machine, call: Callable[[], Any], repeats: int = 50) -> float:
    """Of one call, the best of five rounds."""
    for _ in range(3):
        call()
    best = float("inf")
    for _ in range(5):
        machine.wait()
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        machine.wait()
        best = min(best, (time.perf_counter() - start) / repeats * 1e6)
    return best


@contextmanager
def ranks(device: str) -> Iterator[tuple[torch.device, dict[str, Any]]]:
    """The device of this process, and what shares the model out where `torchrun` started several."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield torch.device(device), {}
        return
    from cache_dit.parallelism import ParallelismConfig

    own = torch.device(device, int(os.environ["LOCAL_RANK"])) if device == "cuda" else torch.device(device)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    dist.init_process_group("nccl" if own.type == "cuda" else "gloo")
    try:
        yield own, {"parallelism_config": ParallelismConfig(ulysses_size=world)}
    finally:
        dist.destroy_process_group()


def heading(machine: Machine, world: int) -> tuple[str, str]:
    """Name of the device, and the first lines of the report."""
    cuda = machine.device.type == "cuda"
    name = torch.cuda.get_device_name(machine.device) if cuda else platform.processor() or "CPU"
    what = (
        "a tiny model (dry run: figures mean nothing)"
        if machine.tiny
        else "FLUX.1-dev's size, random weights"
    )
    return name, "\n".join(
        (
            f"# {world} x {name}" if world > 1 else f"# {name}",
            "",
            environment(),
            f"- model: {what}, {machine.steps} steps at {machine.size}x{machine.size}, batch 1, no guidance",
            f"- CUDA {torch.version.cuda}, ranks {world}" if cuda else f"- ranks {world}",
        )
    )


def main() -> None:
    """Run all and print markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dry-run", action="store_true", help="a tiny model on the CPU, few steps")
    parser.add_argument("--steps", type=int, default=None, help="default: 50, in a dry run 6")
    parser.add_argument("--size", type=int, default=None, help="default: 1024, in a dry run 64")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write bench/results/gpu-<date>-<device>.md")
    given = parser.parse_args()
    if not given.dry_run and not torch.cuda.is_available():
        raise SystemExit("there is no GPU here; give --dry-run to run the same code on a tiny model.")
    with ranks("cpu" if given.dry_run else "cuda") as (device, parallelism):
        steps = given.steps or (6 if given.dry_run else 50)
        machine = Machine(device, given.dry_run, steps, given.size or (64 if given.dry_run else 1024))
        world = dist.get_world_size() if parallelism else 1
        rows = table(machine, SETTINGS, given.rounds, parallelism)
        kernels = kernel_rows(machine)
        if world > 1 and dist.get_rank() > 0:
            return
        name, text = heading(machine, world)
        text = report(text, rows, kernels)
        print(text)
        if given.write:
            short = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
            label = "dry-run" if given.dry_run else f"{short}-x{world}"
            print(f"\nwritten: {write(f'gpu-{datetime.date.today().isoformat()}-{label}.md', text)}")


def report(head: str, rows: list[str], kernels: list[str]) -> str:
    """The whole markdown."""
    return "\n".join(
        (
            head,
            "",
            "Seconds: the fastest of the rounds, the whole denoising loop. Peak: largest memory allocated in "
            "it, GB. Syncs: how often the host waited for the device in a run. *Skipped step*: what is left "
            "of the time for each, when others take as long as in the uncached run of the same kind, ms.",
            "",
            "| setting | steps skipped | s | peak | syncs | times as fast | skipped step |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            "Kernels on tensors of one stream, microseconds, and the relative difference to torch.",
            "",
            "| sum | torch | Triton | difference |",
            "| --- | --- | --- | --- |",
            *kernels,
        )
    )


if __name__ == "__main__":
    main()
