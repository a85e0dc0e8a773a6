"""What every type of quantization costs: error of one Linear, bytes, and pictures of the demo model.

python bench/quantize.py            # about five minutes on a quiet machine
python bench/quantize.py --write    # also writes bench/results/quantize.md
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from common import environment, write
from torch import Tensor, nn

import cache_dit
from cache_dit.demo import PROMPTS, generate, load_pipeline
from cache_dit.quantize import QuantizeSummary, QuantType, quantize
from cache_dit.quantize.types import SCHEMES

# These run on a GPU only; torch multiplies in float8 on a CPU too, so that error can be had without one.
EMULATED = (QuantType.FLOAT8_PER_ROW, QuantType.FLOAT8_PER_TENSOR)
ELSEWHERE = (QuantType.FLOAT8_BLOCKWISE, QuantType.INT4_WEIGHT_ONLY)
SEED = 1000
SIZE = 3072


@contextmanager
def float8_on_a_cpu() -> Iterator[None]:
    """Leave out the checks for a GPU, here and in torchao, where a CPU can do the same product."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch("torchao.quantization.quant_api._check_hardware_support"))
        allowed = {kind: replace(SCHEMES[kind], hardware=lambda: None) for kind in EMULATED}
        stack.enter_context(mock.patch.dict(SCHEMES, allowed))
        yield


def relative(got: Tensor, wanted: Tensor) -> float:
    """Relative error in the L2 norm."""
    return float((got - wanted).float().norm() / wanted.float().norm())


def linear_error(kind: QuantType) -> float:
    """Of one Linear with random weights and inputs, bfloat16."""
    generator = torch.Generator().manual_seed(SEED)
    net = nn.Sequential(nn.Linear(SIZE, SIZE, bias=False, dtype=torch.bfloat16))
    with torch.no_grad():
        net[0].weight.copy_(torch.randn(SIZE, SIZE, generator=generator) / math.sqrt(SIZE))
        given = torch.randn(512, SIZE, generator=generator).bfloat16()
        wanted = net(given)
        return relative(quantize(net, kind, report=None)(given), wanted)


def psnr(pictures: list[Tensor], others: list[Tensor]) -> float:
    """Mean over pictures, dB."""
    errors = [float((one - other).square().mean()) for one, other in zip(pictures, others, strict=True)]
    return sum(-10 * math.log10(max(error, 1e-12)) for error in errors) / len(errors)


def pictures(pipe: Any, count: int, steps: int) -> list[Tensor]:
    """Pictures of the demo model, without guidance."""
    return [
        generate(pipe, PROMPTS[place % len(PROMPTS)], seed=SEED + place, steps=steps, cfg=1.0)
        for place in range(count)
    ]


def demo_row(kind: QuantType, count: int, steps: int, plain: dict[str, list[Tensor]]) -> str:
    """One row: bytes, and PSNR to the pictures of the same pipeline that is not quantized."""
    pipe, dtype = load_pipeline(), "float32"
    if SCHEMES[kind].dtypes == (torch.bfloat16,):
        pipe, dtype = pipe.to(torch.bfloat16), "bfloat16"
    seen: list[QuantizeSummary] = []
    quantize(pipe, kind, report=seen.append)
    uncached = pictures(pipe, count, steps)
    cache_dit.enable_cache(pipe)
    cached = pictures(pipe, count, steps)
    (summary,) = seen
    share = summary.bytes_after / summary.bytes_before
    return (
        f"| {kind} | {dtype} | {len(summary.quantized)} of {len(summary.quantized) + len(summary.skipped)} | "
        f"{share:.2f} | {psnr(uncached, plain[dtype]):.1f} | {psnr(cached, plain[dtype]):.1f} |"
    )


def unquantized(count: int, steps: int) -> tuple[dict[str, list[Tensor]], list[str]]:
    """Pictures of the pipelines as they are, and their rows."""
    plain, rows = {}, []
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        pipe = load_pipeline().to(dtype)
        plain[name] = pictures(pipe, count, steps)
        cache_dit.enable_cache(pipe)
        cached = psnr(pictures(pipe, count, steps), plain[name])
        apart = "same" if name == "float32" else f"{psnr(plain[name], plain['float32']):.1f} to float32"
        rows.append(f"| none | {name} | 0 | 1.00 | {apart} | {cached:.1f} |")
    return plain, rows


def tried(kind: QuantType, measure: Callable[[QuantType], str]) -> str:
    """A cell or row, or that it needs a GPU."""
    return f"| {kind} | needs a GPU |" if kind in ELSEWHERE else measure(kind)


def main() -> None:
    """Run all and print markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=int, default=6)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--only", type=QuantType, nargs="*", default=list(QuantType))
    parser.add_argument("--write", action="store_true", help="write bench/results/quantize.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # one line for every product in float32
    with float8_on_a_cpu():
        errors = [tried(kind, lambda one: f"| {one} | {linear_error(one):.4f} |") for kind in given.only]
        plain, rows = unquantized(given.pictures, given.steps)
        for kind in given.only:
            if kind not in ELSEWHERE:
                rows.append(demo_row(kind, given.pictures, given.steps, plain))
                print(rows[-1], flush=True)
    text = "\n".join(
        (
            "# Quantization",
            "",
            environment(),
            "",
            f"One Linear of {SIZE} x {SIZE}, 512 rows, random values, bfloat16: relative L2 error of its "
            "result. The products of float8_per_row and float8_per_tensor are those of torch's float8 "
            "multiplication on a CPU, with torchao's check for a GPU left out.",
            "",
            "| type | error |",
            "| --- | --- |",
            *errors,
            "",
            f"The trained demo model, {given.pictures} pictures of {given.steps} steps without guidance, "
            "PSNR in dB to the same pipeline neither quantized nor cached; *cached* with the defaults of "
            "`enable_cache`. "
            "Bytes: of the whole transformer after to before. Its embeddings stay as they are. Not in the "
            "table: float8_blockwise, whose product is a Triton kernel, and int4_weight_only, whose is one "
            "of CUDA; `bench/gpu.sh` tells the error of both.",
            "",
            "| type | pictures in | Linear layers | bytes | uncached, dB | cached, dB |",
            "| --- | --- | --- | --- | --- | --- |",
            *rows,
        )
    )
    print(text)
    if given.write:
        print(f"\nwritten: {write('quantize.md', text)}")


if __name__ == "__main__":
    main()
