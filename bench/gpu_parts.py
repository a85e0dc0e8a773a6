"""Triton's kernels against torch, and one Linear in every type of quantization, on a GPU or a CPU.

python bench/gpu_parts.py            # the sizes of FLUX.1-dev
python bench/gpu_parts.py --tiny     # whether it would run
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cache_dit.caching.maths.kernels import chosen_kernels
from cache_dit.kernels import triton_kernels
from cache_dit.kernels.choice import torch_distance, torch_weighted_sum
from cache_dit.quantize import QuantizeSummary, QuantType, quantize


def kernels(device: torch.device, *, tiny: bool) -> list[list[str]]:
    """Kernels on tensors of one stream: name, microseconds of torch and of Triton, relative difference."""
    tokens, channels = (64, 64) if tiny else (4608, 3072)
    dtype = torch.float32 if tiny else torch.bfloat16
    values = [torch.randn(1, tokens, channels, device=device, dtype=dtype) for _ in range(4)]
    weights = [3.0, -3.0, 1.0, 0.5]
    cases: list[tuple[str, Callable[..., Any], str, tuple[Any, ...]]] = [
        ("gate signal", torch_distance, "distance", (values[0], values[1])),
        *(
            (f"sum of {count}", torch_weighted_sum, "weighted_sum", (values[:count], weights[:count]))
            for count in (2, 3, 4)
        ),
    ]
    rows = []
    for name, plain, kernel, args in cases:
        by_torch = f"{microseconds(partial(plain, *args), device, tiny=tiny):.1f}"
        try:
            rows.append([name, by_torch, *_by_triton(kernel, args, plain(*args), device, tiny=tiny)])
        except Exception as error:  # noqa: BLE001  # told in its row; the others are measured
            rows.append([name, by_torch, in_short(error), "-"])
    return rows


def _by_triton(
    kernel: str, args: tuple[Any, ...], wanted: Any, device: torch.device, *, tiny: bool
) -> tuple[str, str]:
    """Microseconds of a kernel, and its relative difference to torch."""
    with triton_kernels():
        call = partial(getattr(chosen_kernels.get(), kernel), *args)
        got = call()
        pairs = zip(got, wanted, strict=True) if isinstance(got, tuple) else [(got, wanted)]
        error = max(float((a.double() - b.double()).norm() / b.double().norm()) for a, b in pairs)
        return f"{microseconds(call, device, tiny=tiny):.1f}", f"{error:.0e}"


def types(device: torch.device, *, tiny: bool) -> list[list[str]]:
    """One Linear in every type: relative error of its result, bytes and time as ratios to bfloat16."""
    rows, columns, tokens = (128, 256, 64) if tiny else (12288, 3072, 4608)
    given = torch.randn(tokens, columns, device=device, dtype=torch.bfloat16)
    return [[kind.value, *_of_type(kind, given, rows, tiny=tiny)] for kind in QuantType]


@torch.no_grad()
def _of_type(kind: QuantType, given: Tensor, rows: int, *, tiny: bool) -> tuple[str, str, str]:
    torch.manual_seed(0)
    columns, seen = given.shape[1], list[QuantizeSummary]()
    net = nn.Sequential(nn.Linear(columns, rows, dtype=torch.bfloat16, device=given.device))
    nn.init.normal_(net[0].weight, std=1 / math.sqrt(columns))
    call = partial(net, given)
    wanted, plain = call(), microseconds(call, given.device, tiny=tiny)
    try:
        quantize(net, kind, report=seen.append)
        error = float((call() - wanted).float().norm() / wanted.float().norm())
        taken = microseconds(call, given.device, tiny=tiny) / plain
    except Exception as error:  # noqa: BLE001  # told in its row; the others are measured
        return in_short(error), "-", "-"
    return f"{error:.4f}", f"{seen[0].bytes_after / seen[0].bytes_before:.2f}", f"{taken:.2f}"


def microseconds(call: Callable[[], Any], device: torch.device, *, tiny: bool) -> float:
    """Of one call, the best of five rounds."""
    repeats, best = 2 if tiny else 50, math.inf
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    for _ in range(3):
        call()
    for _ in range(5):
        wait()
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        wait()
        best = min(best, (time.perf_counter() - start) / repeats * 1e6)
    return best


def in_short(error: Exception) -> str:
    """One line for a table."""
    first = (str(error).splitlines() or [""])[0].replace("|", "/")
    return f"{type(error).__name__}: {first}"[:200]


PARTS: dict[str, Callable[..., list[list[str]]]] = {"kernels": kernels, "types": types}


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="small tensors, few rounds")
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for part in PARTS.values():
        for row in part(device, tiny=given.tiny):
            print(f"| {' | '.join(row)} |", flush=True)
        print()


if __name__ == "__main__":
    main()
