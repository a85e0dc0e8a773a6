"""One measurement of bench/gpu.py, in a process of its own: what fails in one cannot spoil another.

python bench/gpu_row.py "fast mask" --out row.json             # under torchrun too
python bench/gpu_row.py kernels --out kernels.json --dry-run   # a tiny model on the CPU
"""

from __future__ import annotations

import argparse
import json
import os
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from diffusers import FluxTransformer2DModel
from gpu_parts import PARTS, in_short
from torch import Tensor

import cache_dit
from cache_dit import DBCacheConfig, Request, TaylorSeerCalibratorConfig
from cache_dit.compile import compile_repeated_blocks
from cache_dit.kernels import triton_kernels
from cache_dit.quantize import quantize

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
# No change between two steps is so small.
NEVER = 1e-9


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

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

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
        if self.cuda:
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


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is put on the model.

    Attributes:
        mask: Step mask of the cache; None: no mask.
        measured: A cache without a mask, which measures every step and skips none.
        taylor: TaylorSeer of the first order instead of the last value.
        compiled: The repeated blocks.
        graphs: With CUDA graphs.
        float8: Products in float8.
        attention: Name for `set_attn_backend`.
        triton: Signals and forecasts by Triton.
        offload: Weights in main memory, a block at a time, loaded ahead on a stream.
    """

    mask: str | None = None
    measured: bool = False
    taylor: bool = False
    compiled: bool = False
    graphs: bool = False
    float8: bool = False
    attention: str | None = None
    triton: bool = False
    offload: bool = False

    @property
    def label(self) -> str:
        cache = "measured, none skipped" if self.measured else f"{self.mask} mask"
        stacked = {
            "Taylor": self.taylor,
            "Triton": self.triton,
            str(self.attention): self.attention is not None,
            "compile": self.compiled,
            "CUDA graphs": self.graphs,
            "FP8": self.float8,
            "offload": self.offload,
        }
        return " + ".join(
            [cache if self.cached else "uncached", *(name for name, on in stacked.items() if on)]
        )

    @property
    def cached(self) -> bool:
        return self.measured or self.mask is not None

    @property
    def uncached(self) -> Setting:
        """The same without a cache."""
        kept = {
            name: getattr(self, name) for name in ("compiled", "graphs", "float8", "attention", "offload")
        }
        return Setting(**kept)

    def config(self, steps: int) -> DBCacheConfig:
        """Of the cache."""
        details: dict[str, Any] = {}
        if self.mask is not None:
            mask = cache_dit.steps_mask(mask_policy=self.mask, total_steps=steps)
            details = {"steps_computation_mask": mask, "steps_computation_policy": "static"}
        return DBCacheConfig(
            Fn_compute_blocks=1,
            max_warmup_steps=4 if steps > 8 else 1,
            residual_diff_threshold=NEVER if self.measured else 1.0,
            enable_separate_cfg=False,
            **details,
        )

    def applied(self, machine: Machine, parallelism: dict[str, Any]) -> Any:
        """A model of its own with all that switched on, in the order of docs/stack.md."""
        model = machine.model()
        if parallelism:
            cache_dit.enable_cache(model, **parallelism)
        if self.float8:
            # Multiplying in float8 needs a GPU; the dry run does with the weights.
            kind = "float8_weight_only" if machine.tiny else "float8_per_row"
            quantize(model, kind, report=lambda summary: print(str(summary).splitlines()[0], flush=True))
        if self.attention is not None:
            cache_dit.set_attn_backend(model, "_native_math" if machine.tiny else self.attention)
        if self.cached:
            calibrator = TaylorSeerCalibratorConfig(taylorseer_order=1) if self.taylor else None
            cache_dit.enable_cache(model, self.config(machine.steps), calibrator)
        if self.offload:
            model.to("cpu").enable_group_offload(
                machine.device, offload_type="block_level", num_blocks_per_group=1, use_stream=machine.cuda
            )
        if self.compiled:
            options = (
                {"backend": "eager"} if machine.tiny else {"mode": "reduce-overhead"} if self.graphs else {}
            )
            compile_repeated_blocks(model, clone_outputs=self.graphs, fullgraph=not self.offload, **options)
        return model


MASKS = ("slow", "medium", "fast", "ultra")
FAST = partial(Setting, mask="fast", taylor=True)
SETTINGS = (
    Setting(),
    *(Setting(mask=mask) for mask in MASKS),
    FAST(),
    Setting(measured=True),
    Setting(measured=True, triton=True),
    FAST(triton=True),
    Setting(attention="_native_cudnn"),
    FAST(attention="_native_cudnn"),
    Setting(compiled=True),
    FAST(compiled=True),
    Setting(compiled=True, graphs=True),
    FAST(compiled=True, graphs=True),
    Setting(float8=True),
    Setting(float8=True, compiled=True),
    FAST(float8=True, compiled=True),
    Setting(offload=True),
    FAST(offload=True),
)


@contextmanager
def counted_syncs(machine: Machine) -> Iterator[list[int]]:
    """How often the host waited for the device; empty where there is none."""
    found: list[int] = []
    if not machine.cuda:
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


def measured(setting: Setting, machine: Machine, rounds: int, parallelism: dict[str, Any]) -> dict[str, Any]:
    """Seconds of the fastest run, gigabytes at the peak, waits, and steps that were skipped."""
    model = setting.applied(machine, parallelism)
    given = machine.inputs(model)
    with triton_kernels() if setting.triton else nullcontext():
        denoise(machine, model, given)  # compiles, tunes and fills caches
        machine.wait()
        if machine.cuda:
            torch.cuda.reset_peak_memory_stats(machine.device)
        times = []
        # The bus is as slow in the second round as in the first.
        for _ in range(1 if setting.offload else rounds):
            start = time.perf_counter()
            denoise(machine, model, given)
            machine.wait()
            times.append(time.perf_counter() - start)
        peak = torch.cuda.max_memory_allocated(machine.device) / 1e9 if machine.cuda else None
        with counted_syncs(machine) as syncs:
            denoise(machine, model, given)
    skipped = 0
    if setting.cached:
        (stats,) = cache_dit.summary(model, logging=False)
        skipped = len(stats.cached_steps)
    return {"seconds": min(times), "skipped": skipped, "peak": peak, "syncs": sum(syncs) if syncs else None}


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
    yield own, {"parallelism_config": ParallelismConfig(ulysses_size=world)}
    # Not after an error: the other ranks may be waiting, and leaving ends them.
    dist.destroy_process_group()


def options(parser: argparse.ArgumentParser) -> None:
    """Those that bench/gpu.py passes on."""
    parser.add_argument("--dry-run", action="store_true", help="a tiny model on the CPU, few steps")
    parser.add_argument("--steps", type=int, default=None, help="default: 50, in a dry run 6")
    parser.add_argument("--size", type=int, default=None, help="default: 1024, in a dry run 64")
    parser.add_argument("--rounds", type=int, default=3)


def main() -> None:
    """Measure and write JSON: {"device": name, "found": figures}, or "error" in the place of "found"."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    settings = {setting.label: setting for setting in SETTINGS}
    parser.add_argument("row", choices=[*settings, *PARTS], metavar="ROW")
    parser.add_argument("--out", type=Path, required=True)
    options(parser)
    given = parser.parse_args()
    tiny = given.dry_run
    with torch.no_grad(), ranks("cpu" if tiny else "cuda") as (device, parallelism):
        machine = Machine(
            device, tiny, given.steps or (6 if tiny else 50), given.size or (64 if tiny else 1024)
        )
        name = torch.cuda.get_device_name(device) if machine.cuda else "CPU"
        told: dict[str, Any] = {"device": name}
        try:
            if given.row in PARTS:
                told["found"] = PARTS[given.row](device, tiny=tiny)
            else:
                told["found"] = measured(settings[given.row], machine, given.rounds, parallelism)
        except Exception as error:
            traceback.print_exc()
            told["error"] = in_short(error)
            if parallelism:
                given.out.write_text(json.dumps(told))
                raise
        if not parallelism or dist.get_rank() == 0:
            given.out.write_text(json.dumps(told))


if __name__ == "__main__":
    main()
