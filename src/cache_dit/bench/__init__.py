"""All caches against each other on the demo model: this package's, those of diffusers, and fewer steps."""

from cache_dit.bench.measure import Bench, Score
from cache_dit.bench.pictures import Cell, Picture, Purpose
from cache_dit.bench.report import write_report
from cache_dit.bench.run import measure
from cache_dit.bench.store import Setting, read
from cache_dit.bench.system import Kind, System
from cache_dit.bench.systems import all_systems
from cache_dit.bench.table import Row, best_at, contenders, curves, front, rows_of

__all__ = [
    "Bench",
    "Cell",
    "Kind",
    "Picture",
    "Purpose",
    "Row",
    "Score",
    "Setting",
    "System",
    "all_systems",
    "best_at",
    "contenders",
    "curves",
    "front",
    "measure",
    "read",
    "rows_of",
    "write_report",
]
