"""How often weights of blocks are loaded in each step, with offloading and the cache in both orders.

python bench/offload.py            # a minute
python bench/offload.py --write    # also writes bench/results/offload.md
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from accelerate import cpu_offload
from accelerate.hooks import AlignDevicesHook
from common import environment, write
from diffusers.hooks.group_offloading import ModuleGroup

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from tiny.models import FLUX
from tiny.runs import Denoising, decisions
from torch import nn

import cache_dit
from cache_dit import DBCacheConfig

CONFIG = DBCacheConfig(
    Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.9, max_continuous_cached_steps=2
)


def by_groups(model: Any, **options: Any) -> None:
    model.enable_group_offload("cpu", **options)


OFFLOADS: dict[str, Callable[[Any, str], None]] = {
    "group, one block each": lambda model, _: by_groups(
        model, offload_type="block_level", num_blocks_per_group=1
    ),
    "group, two blocks each": lambda model, _: by_groups(
        model, offload_type="block_level", num_blocks_per_group=2
    ),
    "group, leaves": lambda model, _: by_groups(model, offload_type="leaf_level"),
    "group, disk": lambda model, folder: by_groups(
        model, offload_type="block_level", num_blocks_per_group=1, offload_to_disk_path=folder
    ),
    "sequential (accelerate)": lambda model, _: cpu_offload(model, execution_device=torch.device("cpu")),
}


@contextmanager
def counted() -> Iterator[Counter[nn.Module]]:
    """Modules by how often their weights were asked for."""
    loads: Counter[nn.Module] = Counter()
    by_group, by_hook = ModuleGroup.onload_, AlignDevicesHook.pre_forward

    def onload_(group: ModuleGroup) -> None:
        loads.update(group.modules[:1])  # some have loose parameters only
        by_group(group)

    def pre_forward(hook: AlignDevicesHook, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        loads[module] += bool(hook.offload and next(module.parameters(recurse=False), None) is not None)
        return by_hook(hook, module, *args, **kwargs)

    with (
        mock.patch.object(ModuleGroup, "onload_", onload_),
        mock.patch.object(AlignDevicesHook, "pre_forward", pre_forward),
    ):
        yield loads


def row(name: str, first: str) -> str:
    """One line of the table; `first` is what is called first."""
    model: Any = FLUX.build()
    blocks = [*model.transformer_blocks, *model.single_transformer_blocks]
    inside = {part for block in blocks for part in block.modules()}
    with tempfile.TemporaryDirectory() as folder, counted() as loads:
        if first == "cache":
            cache_dit.enable_cache(model, CONFIG)
        OFFLOADS[name](model, folder)
        if first == "offload":
            cache_dit.enable_cache(model, CONFIG)
        denoising, counts = Denoising(model, 0), []
        while denoising.step < denoising.steps:
            before = sum(count for part, count in loads.items() if part in inside)
            denoising.advance()
            counts.append(sum(count for part, count in loads.items() if part in inside) - before)
    steps = "CCCCCC" if first == "no cache" else decisions(model)
    return f"| {name} | {first} | {steps} | {' '.join(map(str, counts))} | {sum(counts)} |"


def main() -> None:
    """Run all and print markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="write bench/results/offload.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row(name, first) for name in OFFLOADS for first in ("no cache", "cache", "offload")]
    text = "\n".join(
        (
            "# Offloading with the cache",
            "",
            environment(),
            "",
            "A tiny Flux of 11 blocks, 6 steps (C computed, S skipped), F1B0. Counted are loads of groups "
            "that belong to blocks, on a CPU that stands for the device; of accelerate's hooks, those of "
            "modules with weights of their own.",
            "",
            "| offloading | called first | steps | loads in each step | in all |",
            "| --- | --- | --- | --- | --- |",
            *rows,
        )
    )
    print(text)
    if given.write:
        print(f"\nwritten: {write('offload.md', text)}")


if __name__ == "__main__":
    main()
