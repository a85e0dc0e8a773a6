"""`BlockAdapter`: the block lists of one or more transformers, said by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from cache_dit.caching.config import CacheConfig, CalibratorConfig
from cache_dit.caching.forward_pattern import ForwardPattern
from cache_dit.caching.options import Options, Override, flag, instance_of, option, optional, options
from cache_dit.caching.patch_functors import PatchFunctor


@options
class ParamsModifier(Options):
    """Parameters of one block list, or of one transformer among several.

    Attributes:
        cache_config: `DBCacheConfig().reset(...)` changes the fields named; a whole config replaces all. None
            (default): the shared one.
        calibrator_config: A calibrator for this list. None (default): the shared one.
    """

    cache_config: CacheConfig | Override | None = option(
        optional(instance_of(CacheConfig, Override)), default=None
    )
    calibrator_config: CalibratorConfig | Override | None = option(
        optional(instance_of(CalibratorConfig, Override)), default=None
    )


Blocks = nn.ModuleList | Sequence[nn.Module]


@options
class BlockAdapter(Options):
    """What to cache in a pipeline or transformer, where the defaults are not wanted or the class is unknown.

    With several transformers `transformer`, `blocks`, `blocks_name` and `forward_pattern` are lists of one
    length, and each entry of the latter three may be a list again; with one transformer they are that entry.

    Attributes:
        pipe: The pipeline. None (default): a transformer without one.
        transformer: The transformer or transformers. None (default): `pipe.transformer`.
        blocks: The block list or lists, in the order in which the forward runs them. None (default): as
            the class is known, or with `auto` those that are found.
        blocks_name: Attribute path or paths of the block lists, such as `"decoder.layers"`, in place of
            `blocks`; looked up after `patch_functor` was applied. None (default): there are none.
        forward_pattern: What blocks take and return, one for all lists or one for each. None (default): as
            the class is known, or with `auto` as the first forward shows.
        params_modifiers: One for each list (each list then decides for itself), or one for each transformer.
            None (default): all have the same options, and the first list decides for all.
        has_separate_cfg: See `enable_separate_cfg` in the cache config, which goes first. None (default): it
            is found out.
        auto: Find the block lists. With a pattern those are taken whose blocks have its arguments. Without
            one, for a class that is not known, the first forward is run once more, uncached, and watched:
            which output of a block is an argument of the next. Default False.
        patch_functor: Applied to each transformer before anything is looked up in it. None (default): nothing
            is changed.

    Raises:
        ConfigTypeError: An option is unknown, or `patch_functor` or `auto` is of the wrong type. What does
            not fit the model is told by `enable_cache`.

    Examples:
        >>> BlockAdapter(
        ...     transformer=transformer,
        ...     blocks=transformer.transformer_blocks,
        ...     forward_pattern=ForwardPattern.Pattern_1,
        ... )
    """

    pipe: Any = None
    transformer: nn.Module | Sequence[nn.Module] | None = None
    blocks: Blocks | Sequence[Blocks | Sequence[Blocks]] | None = None
    blocks_name: str | Sequence[str | Sequence[str]] | None = None
    forward_pattern: ForwardPattern | Sequence[ForwardPattern | Sequence[ForwardPattern]] | None = None
    params_modifiers: ParamsModifier | Sequence[ParamsModifier | Sequence[ParamsModifier]] | None = None
    has_separate_cfg: bool | None = None
    auto: bool = option(flag, default=False)
    patch_functor: PatchFunctor | None = option(optional(instance_of(PatchFunctor)), default=None)
