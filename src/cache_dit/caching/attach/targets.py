"""From what the user hands to `enable_cache` to the transformers and block lists that are meant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from cache_dit.caching.attach.override import attachment_of, plain_class
from cache_dit.caching.attach.planning import Lists, parameters_of
from cache_dit.caching.block_adapters.adapter import BlockAdapter
from cache_dit.caching.block_adapters.register import BlockAdapterRegister
from cache_dit.caching.forward_pattern import ENCODER, HIDDEN, ForwardPattern
from cache_dit.caching.models.row import BlockList
from cache_dit.caching.models.rows import known_names, row_of
from cache_dit.errors import ConfigError, PatternError, UnsupportedModelError, nearest


def uncompiled(model: Any) -> Any:
    """The module inside of what `torch.compile` returned, or the module itself."""
    return getattr(model, "_orig_mod", model)


def pipeline_of(target: Any) -> Any | None:
    """The pipeline that the target is or names, or None."""
    if isinstance(target, BlockAdapter):
        return target.pipe
    return None if isinstance(target, nn.Module) else target


def transformers_of(target: Any) -> list[nn.Module]:
    """The transformers that the target means.

    Raises:
        UnsupportedModelError: It is no pipeline, transformer or adapter, or has no known transformer.
    """
    return [uncompiled(model) for model in _as_given(target)]


def compiled_of(target: Any) -> list[nn.Module]:
    """Those of the transformers that were given as what `torch.compile` returned."""
    return [model for model in _as_given(declared_by(target)) if uncompiled(model) is not model]


def _as_given(target: Any) -> list[nn.Module]:
    if isinstance(target, BlockAdapter):
        given = target.transformer
        if given is None:
            own = getattr(target.pipe, "transformer", None)
            said = target.auto or target.forward_pattern is not None
            declared = target.blocks is not None or (said and row_of(type(own)) is None)
            if not declared or not isinstance(own, nn.Module):
                return _as_given(target.pipe)
            given = own
        models = [given] if isinstance(given, nn.Module) else given
        if not isinstance(models, (list, tuple)) or not all(isinstance(one, nn.Module) for one in models):
            raise ConfigError(
                f"BlockAdapter: transformer is of type {type(given).__name__}; give one nn.Module or a list."
            )
        return list(models)
    return [target] if isinstance(target, nn.Module) else _known_components(target)


def cached_models(target: Any) -> list[nn.Module]:
    """The transformers of a target that are cached, or all that it means where none is.

    Raises:
        UnsupportedModelError: It is no pipeline, transformer or adapter, or has no known transformer.
    """
    models = transformers_of(declared_by(target))
    return [model for model in models if attachment_of(model) is not None] or models


def declared_by(target: Any) -> Any:
    """The adapter of a pipeline for which a user registered one, or the target itself."""
    return target if isinstance(target, nn.Module) else adapter_of(target) or target


def adapter_of(target: Any) -> BlockAdapter | None:
    """The adapter that the target is, or that a user's registered family makes of it."""
    if isinstance(target, BlockAdapter):
        return target
    family = BlockAdapterRegister.find(target)
    return None if family is None else family(target)


def lists_of(target: Any) -> list[Lists]:
    """The block lists of every transformer that the target means.

    Raises:
        UnsupportedModelError: The class is not known and nothing is said of it.
        ConfigError: The lists of an adapter have different lengths or are no block lists.
        PatternError: The blocks cannot have the declared pattern.
    """
    adapter = adapter_of(target)
    if adapter is None:
        return [_lists_by_row(model) for model in transformers_of(target)]
    models = transformers_of(adapter)
    if adapter.blocks is None and adapter.forward_pattern is None and not adapter.auto:
        return [_lists_by_row(model) for model in models]
    several = adapter.transformer is not None and not isinstance(adapter.transformer, nn.Module)
    blocks = _per_model("blocks", adapter.blocks, len(models), several)
    patterns = _per_model("forward_pattern", adapter.forward_pattern, len(models), several)
    return [
        _lists_by_hand(model, *given)
        for model, given in zip(models, zip(blocks, patterns, strict=True), strict=True)
    ]


def _known_components(pipe: Any) -> list[nn.Module]:
    parts = getattr(pipe, "components", None)
    parts = parts if isinstance(parts, dict) else getattr(pipe, "__dict__", {})
    modules = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
    found = [
        module
        for module in modules.values()
        # A class without a row may have been declared by an adapter.
        if _is_denoiser(type(uncompiled(module))) or attachment_of(uncompiled(module)) is not None
    ]
    if found:
        return found
    if "transformer" in modules:
        raise _unknown(uncompiled(modules["transformer"]))
    raise UnsupportedModelError(
        f"An object of type {type(pipe).__name__} is no transformer (nn.Module), no BlockAdapter and no "
        "pipeline with a known transformer. Give a diffusers pipeline, its transformer, or "
        "cache_dit.BlockAdapter(transformer=..., blocks=..., forward_pattern=...)."
    )


def _is_denoiser(kind: type) -> bool:
    row = row_of(kind)
    return row is not None and not row.on_request


_DECLARE = """Declare its blocks:
    cache_dit.enable_cache(
        cache_dit.BlockAdapter(
            transformer=transformer,
            blocks=transformer.{path},
            forward_pattern=cache_dit.ForwardPattern.Pattern_1,  # see its docstring
        )
    )"""


def _unknown(model: nn.Module) -> UnsupportedModelError:
    name = plain_class(model).__name__
    near = nearest(name, known_names())
    hint = f"; the nearest known class is {near}" if near else ""
    lists = [path for path, part in model.named_children() if isinstance(part, nn.ModuleList)]
    declare = _DECLARE.format(path=lists[0] if lists else "...")
    return UnsupportedModelError(f"{name} is not known{hint}. {declare}")


def _lists_by_row(model: nn.Module) -> Lists:
    row = row_of(type(model))
    if row is None:
        raise _unknown(model)
    flows = tuple(flow for flow in row.lists if flow.members(model))
    if not flows:
        paths = " and ".join(flow.label for flow in row.lists)
        raise ConfigError(f"{paths} of {plain_class(model).__name__} is empty, so there is nothing to cache.")
    return Lists(
        model=model,
        blocks=tuple(flow.members(model) for flow in flows),
        flows=flows,
        row=row,
        joined=row.joined,
    )


def _per_model(name: str, given: Any, count: int, several: bool) -> list[Any]:
    """One entry for each transformer from the shorter forms that an adapter allows."""
    if not several:
        return [given] * count
    if isinstance(given, (list, tuple)) and len(given) == count:
        return list(given)
    if given is None or isinstance(given, ForwardPattern):
        return [given] * count
    known = isinstance(given, (list, tuple))
    size = f"has {len(given)} entries" if known else f"is of type {type(given).__name__}"
    raise ConfigError(f"BlockAdapter: {name} {size} but transformer has {count}; give one entry for each.")


def _lists_by_hand(model: nn.Module, blocks: Any, patterns: Any) -> Lists:
    chosen = _patterns(patterns)
    given = _discover(model, chosen) if blocks is None else _lists(blocks)
    if len({block for members in given for block in members}) < sum(map(len, given)):
        raise ConfigError("BlockAdapter: blocks names a block twice; give every block list once.")
    if len(chosen) == 1:
        chosen = chosen * len(given)
    if len(chosen) != len(given):
        raise ConfigError(
            f"BlockAdapter: forward_pattern has {len(chosen)} entries but there are {len(given)} block "
            f"lists of {plain_class(model).__name__}; give one pattern for each list, or one for all."
        )
    row = row_of(type(model))
    flows = tuple(_flow(model, members, pattern) for members, pattern in zip(given, chosen, strict=True))
    return Lists(
        model=model,
        blocks=tuple(given),
        flows=flows,
        row=row,
        joined=row is not None and row.joined and flows == row.lists,
    )


def _patterns(given: Any) -> list[ForwardPattern]:
    patterns = list(given) if isinstance(given, (list, tuple)) else [given]
    for pattern in patterns:
        if not isinstance(pattern, ForwardPattern):
            raise ConfigError(
                f"BlockAdapter: forward_pattern is {pattern!r}; give one of "
                f"{', '.join(f'ForwardPattern.{known.name}' for known in ForwardPattern)}."
            )
    return patterns


def _lists(blocks: Any) -> list[tuple[nn.Module, ...]]:
    lists = [blocks] if _is_list(blocks) else blocks
    if not isinstance(lists, (list, tuple)) or not lists or not all(_is_list(members) for members in lists):
        raise ConfigError(
            f"BlockAdapter: blocks is of type {type(blocks).__name__}; give a ModuleList of at least one "
            "block, or a list of several."
        )
    return [tuple(members) for members in lists]


def _is_list(blocks: Any) -> bool:
    if isinstance(blocks, (nn.ModuleList, nn.Sequential)):
        return len(blocks) > 0
    return (
        isinstance(blocks, Sequence)
        and len(blocks) > 0
        and all(isinstance(block, nn.Module) and not isinstance(block, nn.ModuleList) for block in blocks)
    )


def _discover(model: nn.Module, patterns: list[ForwardPattern]) -> list[tuple[nn.Module, ...]]:
    """The lists of the transformer whose blocks take the streams of the pattern."""
    wanted = {name for pattern in patterns for name in pattern.slots if name is not None}
    found = [
        tuple(part)
        for _, part in model.named_children()
        if isinstance(part, nn.ModuleList) and len(part) > 1 and wanted <= set(parameters_of(part[0]))
    ]
    if not found:
        raise UnsupportedModelError(
            f"auto found no block list in {plain_class(model).__name__} whose blocks take "
            f"{' and '.join(sorted(wanted))}; name the list with BlockAdapter(blocks=...)."
        )
    return found


def _flow(model: nn.Module, members: tuple[nn.Module, ...], pattern: ForwardPattern) -> BlockList:
    """The data flow of a list; H and E are the first two arguments where they have other names."""
    names = parameters_of(members[0])
    continues: list[str | None] = []
    for stream in pattern.slots:
        place = 0 if stream == HIDDEN else 1
        if stream is None or stream in names:
            continues.append(stream)
        elif HIDDEN not in names and place < len(names):
            continues.append(names[place])
        else:
            raise PatternError(
                f"{type(members[0]).__name__} takes ({', '.join(names)}), so it cannot have {pattern.name} "
                f"{pattern.text}: there is no {'second stream' if stream == ENCODER else 'hidden state'}. "
                "Choose another pattern, see ForwardPattern."
            )
    main = continues[pattern.slots.index(HIDDEN)]
    assert main is not None  # every pattern has hidden states
    return BlockList(_path(model, members), tuple(continues), bare=pattern.bare, main=main)


def _path(model: nn.Module, members: tuple[nn.Module, ...]) -> str:
    path: str
    for path, part in model.named_modules():
        if isinstance(part, (nn.ModuleList, nn.Sequential)) and any(child is members[0] for child in part):
            return path
    raise ConfigError(
        f"BlockAdapter: {type(members[0]).__name__} is no part of {plain_class(model).__name__}; give the "
        "blocks of the transformer that is given."
    )
