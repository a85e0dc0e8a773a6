"""Weights and multiplications of fewer bits, by torchao and bitsandbytes, beside the cache.

`cache_dit.quantize` is the function; this package is what `from cache_dit.quantize import ...` reads.
"""

from cache_dit.quantize.apply import quantize
from cache_dit.quantize.summary import QuantizeSummary
from cache_dit.quantize.types import QuantType

__all__ = ["QuantType", "QuantizeSummary", "quantize"]
