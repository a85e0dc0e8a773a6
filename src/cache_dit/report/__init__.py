"""What caching did, in data and in words."""

from cache_dit.report.findings import Finding, Problem, diagnose
from cache_dit.report.stats import CacheStats, stats_of
from cache_dit.report.summary import strify, summary
from cache_dit.report.supported import supported_matrix, supported_pipelines

__all__ = [
    "CacheStats",
    "Finding",
    "Problem",
    "diagnose",
    "stats_of",
    "strify",
    "summary",
    "supported_matrix",
    "supported_pipelines",
]
