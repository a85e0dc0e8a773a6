"""Time, memory, overhead and synchronisations of caching on a GPU, and Triton's kernels against torch.

bench/gpu.sh              # on a machine with GPUs: everything, about an hour on one
bench/gpu.sh --dry-run    # the same code on a tiny model on the CPU

Weights are random, so that nothing has to be downloaded and dynamic decisions would mean nothing: which steps
are computed is given by step masks. Every row is a process of its own (bench/gpu_row.py): one that fails says
why in its row, and the table is written after each.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import environment, write
from gpu_parts import PARTS
from gpu_row import SETTINGS, Setting, options

ROW = Path(__file__).with_name("gpu_row.py")
Told = dict[str, Any]


def told_by(row: str, passed: list[str], ranks: int, limit: float) -> Told:
    """What the process of one row has written, or what became of it.

    Args:
        row: Label of a setting, or a key of `PARTS`.
        passed: Further options.
        ranks: Processes that share a sample.
        limit: Seconds that it may take.
    """
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "row.json")
        command = [sys.executable, *launch, str(ROW), row, "--out", str(out), *passed]
        code = ended(command, limit)
        if code is None:
            return {"error": f"not done after {limit:.0f} s"}
        return json.loads(out.read_text()) if out.exists() else {"error": f"ended with code {code}"}


def ended(command: list[str], limit: float, grace: float = 60) -> int | None:
    """The exit code of a process; None where it was ended, since it took longer than `limit` seconds."""
    with subprocess.Popen(command) as process:
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            # torchrun ends its processes when it is asked to end, not when it is killed.
            process.terminate()
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            process.kill()
        return None


def setting_row(setting: Setting, told: dict[str, Told], steps: int) -> str:
    """One line of the table of settings."""
    mine = told[setting.label]
    if "error" in mine:
        return f"| {setting.label} | {mine['error']} | | | | | | |"
    found = mine["found"]
    seconds, skipped = found["seconds"], found["skipped"]
    plain, same = (told.get(one.label, {}).get("found") for one in (Setting(), setting.uncached))
    gain = f"{plain['seconds'] / seconds:.2f}" if plain else "-"
    beyond = None if same is None else seconds - (steps - skipped) / steps * same["seconds"]
    added = left = "-"
    if setting.cached and beyond is not None:
        added = f"{beyond / steps * 1000:.2f}"
        left = f"{beyond / skipped * 1000:.2f}" if skipped else "-"
    peak = "-" if found["peak"] is None else f"{found['peak']:.2f}"
    syncs = "-" if found["syncs"] is None else str(found["syncs"])
    return f"| {setting.label} | {skipped} | {seconds:.3f} | {peak} | {syncs} | {gain} | {left} | {added} |"


def part_rows(name: str, told: dict[str, Told], columns: int) -> list[str]:
    """The lines of one of `PARTS`."""
    mine = told.get(name, {"error": "not measured"})
    if "error" in mine:
        return [f"| {mine['error']} |{' |' * (columns - 1)}"]
    return [f"| {' | '.join(row)} |" for row in mine["found"]]


def report(told: dict[str, Told], given: argparse.Namespace, steps: int, size: int) -> str:
    """The whole markdown, of what has been told so far."""
    device = next((one["device"] for one in told.values() if "device" in one), "no device")
    model = "a tiny model (dry run: figures mean nothing)" if given.dry_run else "FLUX.1-dev's size, random"
    return "\n".join(
        (
            f"# {given.ranks} x {device}" if given.ranks > 1 else f"# {device}",
            "",
            environment(),
            f"- model: {model}, {steps} steps at {size}x{size}, batch 1, no guidance",
            f"- CUDA {torch.version.cuda}, ranks {given.ranks} (Ulysses)",
            "",
            "Seconds: the fastest of the rounds (with offloading of one), the whole denoising loop. Peak: "
            "largest memory allocated in it, GB. Syncs: how often the host waited for the device in a run. "
            "*Skipped step*: what is left of the time for each, ms, and *added*: the same for every step of "
            "the run, when computed ones take as long as in the uncached run of the same kind. The cache "
            "that measures and skips none shows what its decisions cost.",
            "",
            "| setting | steps skipped | s | peak | syncs | times as fast | skipped step | added |",
            f"|{' --- |' * 8}",
            *(setting_row(one, told, steps) for one in SETTINGS if one.label in told),
            "",
            "Kernels on tensors of one stream, microseconds, and the relative difference to torch.",
            "",
            "| sum | torch | Triton | difference |",
            f"|{' --- |' * 4}",
            *part_rows("kernels", told, 4),
            "",
            "One Linear of the model, 4608 rows, bfloat16, not compiled: relative L2 error of its result, "
            "bytes and time as ratios to the one that is not quantized.",
            "",
            "| type | error | bytes | time |",
            f"|{' --- |' * 4}",
            *part_rows("types", told, 4),
        )
    )


def main() -> None:
    """Run all rows and print markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options(parser)
    parser.add_argument("--ranks", type=int, default=1, help="GPUs that share every sample")
    parser.add_argument("--only", nargs="*", metavar="ROW", help="labels of settings, kernels, types")
    parser.add_argument("--limit", type=float, default=1800, help="seconds that one row may take")
    parser.add_argument("--write", action="store_true", help="write bench/results/gpu-<date>-<device>.md")
    given = parser.parse_args()
    rows = [*(setting.label for setting in SETTINGS), *(PARTS if given.ranks == 1 else ())]
    unknown = sorted(set(given.only or ()) - set(rows))
    if unknown:
        parser.error(f"--only: no row {unknown[0]!r}; there are {', '.join(rows)}")
    if not given.dry_run and not torch.cuda.is_available():
        raise SystemExit("there is no GPU here; give --dry-run to run the same code on a tiny model.")
    steps = given.steps or (6 if given.dry_run else 50)
    size = given.size or (64 if given.dry_run else 1024)
    passed = [f"--steps={steps}", f"--size={size}", f"--rounds={given.rounds}"]
    passed += ["--dry-run"] if given.dry_run else []
    told: dict[str, Told] = {}
    for row in given.only or rows:
        told[row] = told_by(row, passed, given.ranks, given.limit)
        print(f"{row}: {told[row].get('error') or told[row]['found']}", flush=True)
        text = report(told, given, steps, size)
        if given.write:
            device = next((one["device"] for one in told.values() if "device" in one), "no device")
            short = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
            label = "dry-run" if given.dry_run else f"{short}-x{given.ranks}"
            path = write(f"gpu-{datetime.date.today().isoformat()}-{label}.md", text)
    print(text)
    if given.write:
        print(f"\nwritten: {path}")


if __name__ == "__main__":
    main()
