"""What `bench/calibrate.py` has measured of the demo model, a file for each method and cell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cache_dit.bench.pictures import Cell

SHARES = (0.6, 0.5, 0.4, 1 / 3, 0.3, 0.25, 0.22)
"""Shares of the steps that are computed, for methods that take one."""


def calibrated_file(method: str, cell: Cell) -> Path:
    """The file of a method in a cell, whether there is one or not."""
    return Path(__file__).parent / f"{method}-{cell.steps}-steps-cfg-{cell.cfg:g}.json"


def calibrated(method: str, cell: Cell) -> Any:
    """What is in the file: a list of ratios, or lists of computed steps by budget."""
    return json.loads(calibrated_file(method, cell).read_text(encoding="utf-8"))
