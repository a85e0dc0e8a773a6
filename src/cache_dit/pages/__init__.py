"""A run as one HTML file that needs nothing else: what was computed, what it saved, and the pictures."""

from cache_dit.pages.fronts import Point, read_points
from cache_dit.pages.report import report

__all__ = ["Point", "read_points", "report"]
