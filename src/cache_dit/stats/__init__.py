"""What caching did, in data and in words."""

from cache_dit.stats.findings import Finding, Problem, diagnose
from cache_dit.stats.stats import CacheStats, Limit, stats_of
from cache_dit.stats.summary import strify, summary

__all__ = [
    "CacheStats",
    "Finding",
    "Limit",
    "Problem",
    "diagnose",
    "stats_of",
    "strify",
    "summary",
]
