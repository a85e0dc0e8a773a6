"""What caching did, in data and in words."""

from cache_dit.report.stats import CacheStats, stats_of
from cache_dit.report.summary import strify, summary

__all__ = ["CacheStats", "stats_of", "strify", "summary"]
