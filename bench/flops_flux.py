"""The FLOPs column of the reference system's FLUX.1-dev tables, counted anew from numbers of cached steps.

Those tables do not say how many steps were cached. So the number that each total implies is derived first,
and two things that follow from it can then fail: it must be one that the limits of the configuration allow,
and totals of one number of first blocks must differ by whole multiples of what one cached step of one of the
200 pictures saves.

python bench/flops_flux.py            # a minute; prints the tables
python bench/flops_flux.py --write    # also writes bench/results/flops-flux.md
"""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Sequence

from common import environment, write

from cache_dit import parse_config
from cache_dit.bench.flops import Counted, count, implied

STEPS, PICTURES = 50, 200
BASE = 3726.87  # published, calflops
PUBLISHED = {
    "F8B0_W8M0MC0_T0O1_R0.08": 2162.19,
    "F8B0_W4M0MC0_T0O1_R0.08": 2064.81,
    "F4B0_W4M0MC2_T0O1_R0.12": 1678.98,
    "F8B0_W8M0MC3_T0O1_R0.12": 1977.69,
    "F8B0_W4M0MC2_T0O1_R0.12": 1935.73,
    "F8B0_W8M0MC2_T0O1_R0.12": 2072.18,
    "F8B0_W4M0MC3_T0O1_R0.12": 1816.58,
    "F8B0_W8M0MC4_T0O1_R0.12": 1897.61,
    "F4B0_W4M0MC3_T0O1_R0.12": 1507.83,
    "F4B0_W4M0MC0_T0O1_R0.08": 1654.72,
    "F8B0_W4M0MC4_T0O1_R0.12": 1753.48,
    "F4B0_W4M0MC4_T0O1_R0.12": 1400.08,
    "F1B0_W4M0MC4_T0O1_R0.12": 1401.61,
    "F1B0_W4M0MC3_T0O1_R0.12": 1457.62,
    "F8B0_W8M0MC3_T1O1_R0.12": 1974.49,
    "F8B0_W4M0MC0_T1O1_R0.08": 2079.23,
    "F4B0_W4M0MC3_T1O1_R0.12": 1499.51,
    "F8B0_W8M0MC0_T1O1_R0.08": 2172.76,
    "F8B0_W8M0MC2_T1O1_R0.12": 2074.10,
    "F1B0_W4M0MC3_T1O1_R0.12": 1457.62,
    "F4B0_W4M0MC4_T1O1_R0.12": 1388.30,
    "F8B0_W8M0MC4_T1O1_R0.12": 1912.99,
    "F4B0_W4M0MC2_T1O1_R0.12": 1668.58,
    "F1B0_W4M0MC4_T1O1_R0.12": 1404.17,
    "F4B0_W4M0MC0_T1O1_R0.08": 1659.92,
    "F8B0_W4M0MC3_T1O1_R0.12": 1817.86,
    "F8B0_W4M0MC2_T1O1_R0.12": 1936.69,
    "F8B0_W4M0MC4_T1O1_R0.12": 1762.45,
    "F1B0_W4M0MC0_T0O1_R0.08": 1729.60,
    "F1B0_W4M0MC0_T1O1_R0.08": 1730.70,
    "F1B0_W4M0MC2_T1O1_R0.12": 1604.04,
}

_TOTALS = """Cached steps: the mean over 200 pictures that the published total implies, both counts scaled to
one uncached total. It is no whole number, because the gate decides by the picture. At most: what warm-up and
limit allow. TFLOPs: counted with that mean, and with the nearest whole number. The error with the mean is
then that of the uncached total by construction; with a whole number it is at most half a cached step, 2.6 %
here. So agreement within 3 % says little, and the section below says more."""
_DIFFERENCES = f"""Two totals of one number of first blocks differ by a whole number of cached steps of single
pictures, over {PICTURES}. Unit: the saving of one, counted, times the ratio of the uncached totals. Distance:
of the differences of neighbouring totals from the nearest multiple, in units. A wrong unit would give 0.25 on
average."""


def main() -> None:
    """Count, compare, and print markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="write bench/results/flops-flux.md")
    given = parser.parse_args()
    counted = count("FLUX", height=1024, width=1024, text_tokens=512)
    text = "\n\n".join(
        (
            "# FLOPs of FLUX.1-dev, against published totals",
            environment(),
            f"A step at 1024x1024 (4096 + 512 tokens): {counted.step:.2f} TFLOP, {STEPS} of them "
            f"{STEPS * counted.step:.2f}; published {BASE} "
            f"({STEPS * counted.step / BASE - 1:+.2%}). Counted on the device meta, without weights.",
            "## Totals",
            _TOTALS,
            table(counted),
            "## Differences between totals",
            _DIFFERENCES,
            differences(counted),
        )
    )
    print(text)
    if given.write:
        print(f"\nwritten: {write('flops-flux.md', text)}")


def table(counted: Counted) -> str:
    """A line for each configuration."""
    lines = [
        "| Config | Published | Cached steps | At most | TFLOPs, mean | Error | Whole | TFLOPs | Error |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for text, published in PUBLISHED.items():
        preset = parse_config(text)
        # By the published uncached total: the count of calflops is a little higher throughout.
        scaled = published * STEPS * counted.step / BASE
        mean = implied(counted, preset, scaled, STEPS)
        cells = [text, f"{published:.2f}", f"{mean:.2f}", str(most(text))]
        for cached in (mean, round(mean)):
            total = STEPS * counted.step - cached * counted.saved(preset)
            cells += [f"{total:.2f}", f"{total / published - 1:+.2%}"]
        lines.append(f"| {' | '.join([*cells[:6], str(round(mean)), *cells[6:]])} |")
    return "\n".join(lines)


def most(text: str) -> int:
    """Cached steps that warm-up and limit allow."""
    options = parse_config(text).cache_config
    left, limit = STEPS - options.max_warmup_steps, options.max_continuous_cached_steps
    return left if limit < 0 else left - left // (limit + 1)


def differences(counted: Counted) -> str:
    """A line for each number of first blocks."""
    lines = [
        "| First blocks | Totals | Unit, TFLOP | Differences | Distance, mean | Largest |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for first in sorted({int(re.match(r"F(\d+)", text)[1]) for text in PUBLISHED}):  # type: ignore[index]
        totals = sorted({total for text, total in PUBLISHED.items() if text.startswith(f"F{first}B")})
        saved = counted.saved(parse_config(f"F{first}B0")) * BASE / (STEPS * counted.step)
        unit = saved / PICTURES
        far = distances(totals, unit)
        cells = (first, len(totals), f"{unit:.4f}", len(far), f"{sum(far) / len(far):.3f}", f"{max(far):.3f}")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def distances(totals: Sequence[float], unit: float) -> list[float]:
    """How far the differences of neighbours are from whole multiples of a unit, in units."""
    gaps = [(high - low) / unit for low, high in itertools.pairwise(totals)]
    return [abs(gap - round(gap)) for gap in gaps]


if __name__ == "__main__":
    main()
