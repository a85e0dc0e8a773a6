"""Weights and multiplications of fewer bits, by torchao and bitsandbytes, beside the cache.

`cache_dit.quantize` is the function; this package is what `from cache_dit.quantize import ...` reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import lazy_loader

# Importing this costs nothing: `cache_dit` does it at once, since a package that is imported later would take
# the place of the function of the same name.
if TYPE_CHECKING:
    from cache_dit.quantize.apply import Filter
    from cache_dit.quantize.summary import QuantizeSummary
    from cache_dit.quantize.types import QuantType

_Target = TypeVar("_Target")

# What embeds pixels, text and time is small, and what it loses no later layer can mend.
EXCLUDED = ("embed",)

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__, submod_attrs={"summary": ["QuantizeSummary"], "types": ["QuantType"]}
)
__all__ = ["QuantType", "QuantizeSummary", "quantize"]


def quantize(
    target: _Target,
    quant_type: QuantType | str = "float8_per_row",
    *,
    exclude_layers: Sequence[str] = EXCLUDED,
    filter_fn: Filter | None = None,
    report: Callable[[QuantizeSummary], Any] | None = print,
) -> _Target:
    """Quantize the Linear layers of a model in place, before or after `enable_cache`, but before offloading.

    Layers that a type cannot take (size, dtype) stay as they are, and the summary says why. What the types
    cost in quality and memory: bench/results/quantize.md.

    Args:
        target: A diffusers pipeline, of which the transformers are meant, or any module.
        quant_type: A `QuantType` or its value, such as "float8_weight_only".
        exclude_layers: Layers whose qualified name contains one of these texts stay as they are. Default:
            the embeddings.
        filter_fn: Called with each other Linear and its name; layers for which it is false stay too.
        report: What gets the summary of every model; None: nothing. Default: it is printed.

    Returns:
        The object that was given.

    Raises:
        ConfigError: The type is unknown, its package is not installed, this hardware cannot compute it, no
            layer can take it, an excluded name is in no layer, or weights are offloaded already. Nothing has
            been changed then.
        UnsupportedModelError: A pipeline has no known transformer.

    Examples:
        >>> cache_dit.quantize(pipe, "float8_weight_only")
        >>> cache_dit.enable_cache(pipe)
    """
    from cache_dit.quantize.apply import apply

    return apply(target, quant_type, exclude_layers, filter_fn, report)
