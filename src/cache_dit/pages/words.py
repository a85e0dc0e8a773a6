"""What is seen, in short sentences, and numbers with their units."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from cache_dit.pages.pictures import Pair
from cache_dit.pages.run import Block, Grid, Run, Step, Track

_BRANCHES = {"cond": "with the prompt", "uncond": "without the prompt"}
_UNITS = ("", "k", "M", "G", "T", "P", "E")
_THIN = "\u202f"  # a narrow space that does not break


def percent(fraction: float) -> str:
    """`48.7 %`."""
    return f"{100.0 * fraction:.1f}{_THIN}%"


def flops(count: float) -> str:
    """`74.4 TFLOP`."""
    power = 0 if count < 1000 else min(int(math.log10(count) / 3), len(_UNITS) - 1)
    return f"{count / 1000**power:.3g}{_THIN}{_UNITS[power]}FLOP"


def size(count: float) -> str:
    """`1.25 MiB`."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1000:
            return f"{count:.3g}{_THIN}{unit}"
        count /= 1024
    return f"{count:.3g}{_THIN}GiB"


def seconds(count: float) -> str:
    """`0.61 s`."""
    return f"{count:.3g}{_THIN}s"


def branch(name: str) -> str:
    """A branch of guidance in words."""
    return _BRANCHES.get(name, name)


def title(track: Track) -> str:
    """What a track is of."""
    lists = " + ".join(track.lists)
    return f"{lists}, {branch(track.branch)}" if track.branch else lists


def lead(run: Run) -> str:
    """`14 of 28 steps computed; 48.7 % of the FLOPs.`"""
    first = run.tracks[0]
    if any(track.blocks is not None for track in run.tracks):
        skipped, of = map(sum, zip(*(entry.pruned for entry in run.stats if entry.pruned), strict=True))
        text = f"{of - skipped} of {of} blocks computed"
    else:
        counts = sorted({len(track.steps) - len(track.cached) for track in run.tracks})
        computed = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        partly = any(0.0 < share < 1.0 for grid in run.grids for one in grid.blocks for share in one.skipped)
        text = f"{computed} of {len(first.steps)} steps computed{' in full' if partly else ''}"
    fraction = run.flops_fraction
    return f"{text}." if fraction is None else f"{text}; {percent(fraction)} of the FLOPs."


def steps(track: Track) -> str:
    """Which steps were skipped."""
    cached = track.cached
    if not cached:
        return "Every step was computed."
    longest = max(len(run) for run in _rows(cached))
    row = "" if longest == 1 else f", at most {longest} in a row"
    if track.blocks is None:
        named = ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in _rows(cached))
        return f"Cached {len(cached)} of {len(track.steps)} steps{row}: {named}."
    pruned = sum(step.skipped for step in track.steps) / len(track.steps)
    return f"{percent(pruned)} of the blocks were pruned, in {len(cached)} of {len(track.steps)} steps."


def measured(track: Track) -> str:
    """What the changes of a track are."""
    return (
        "Expected error"
        if track.limit is not None and track.limit.option == "tolerance"
        else "Relative change"
    )


def changes(track: Track) -> str:
    """How the measured changes stand to what they are held against, and why steps were computed."""
    known = [step for step in track.steps if step.change is not None]
    seen = ""
    if known and track.limit is None:
        seen = f"Measured in {len(known)} of {len(track.steps)} steps."
    elif track.limit is not None and track.limit.summed:
        seen = (
            f"Measured in {len(known)} of {len(track.steps)} steps. Changes are added up, and a step is "
            f"computed before the sum reaches {track.limit.option} = {track.limit.value:g}."
        )
    elif track.limit is not None:
        below = sum(step.change < track.limit.value for step in known if step.change is not None)
        mean = ", the mean over the blocks," if track.blocks is not None else ""
        what = measured(track).lower().removeprefix("relative ")
        seen = (
            f"The {what}{mean} was under {track.limit.option} = {track.limit.value:g} in {below} of "
            f"{len(known)} measured steps."
        )
    why = Counter(step.reason for step in track.steps if step.skipped == 0.0)
    told = ", ".join(f"{reason} ({count})" for reason, count in why.items())
    return f"{seen} Computed because of: {told}.".strip() if told else seen


def point(step: Step) -> str:
    """One step, as it is told where the reader points."""
    parts = [f"Step {step.step}"]
    if step.sigma is not None:
        parts.append(f"noise level {step.sigma:.3f}")
    if step.skipped in (0.0, 1.0):
        parts.append("cached" if step.skipped else "computed")
    else:
        parts.append(f"{percent(step.skipped)} cached")
    if step.change is not None:
        parts.append(f"change {step.change:.4f}")
    if step.error is not None:
        parts.append(f"forecast off by {percent(step.error)}")
    return f"{', '.join(parts)} ({step.reason})"


def picture(pair: Pair) -> str:
    """How near a picture is to its reference."""
    if pair.psnr is None:
        return ""
    if math.isinf(pair.psnr):
        return "The cached picture equals the uncached one."
    text = f"PSNR {pair.psnr:.1f}{_THIN}dB"
    return f"{text}, SSIM {pair.ssim:.4f} to the uncached picture." if pair.ssim is not None else f"{text}."


def _rows(numbers: Sequence[int]) -> list[list[int]]:
    rows: list[list[int]] = []
    for number in numbers:
        if rows and number == rows[-1][-1] + 1:
            rows[-1].append(number)
        else:
            rows.append([number])
    return rows


def block(one: Block) -> str:
    """One block and how often it was skipped."""
    return f"{one.path} {one.number}: {percent(sum(one.skipped) / len(one.skipped))} skipped"


def blocks(grid: Grid) -> str:
    """Which blocks were skipped most."""
    shares = [sum(one.skipped) / len(one.skipped) for one in grid.blocks]
    never, most = shares.count(0.0), max(shares)
    others = [share for share in shares if share]
    if not others:
        return "Every block ran in every step."
    if max(others) - min(others) < 0.005:
        return (
            f"{never} of {len(shares)} blocks ran in every step, the others in {percent(1.0 - most)} of them."
        )
    first = grid.blocks[shares.index(most)]
    text = f"Skipped most: {first.path} {first.number}, in {percent(most)} of the steps."
    return f"{text} {never} of {len(shares)} blocks ran in every step." if never else text
