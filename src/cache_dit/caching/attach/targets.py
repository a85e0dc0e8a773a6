"""From what the user hands to `enable_cache` to the transformers and block lists that are meant."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import repeat
from types import NoneType
from typing import Any

from torch import nn

from cache_dit.caching.attach.declared import Lists, parameters_of
from cache_dit.caching.attach.observe import DECLARE, path_of, undeclared
from cache_dit.caching.attach.override import attachment_of, plain_class
from cache_dit.caching.block_adapters.adapter import BlockAdapter
from cache_dit.caching.block_adapters.register import adapter_of
from cache_dit.caching.forward_pattern import ENCODER, HIDDEN, ForwardPattern
from cache_dit.caching.models.row import LISTS, BlockList
from cache_dit.caching.models.rows import ROWS, row_of
from cache_dit.caching.models.unsupported import UNSUPPORTED
from cache_dit.caching.patch_functors import Patch, apply_patch
from cache_dit.errors import ConfigError, PatternError, UnsupportedModelError, nearest


def uncompiled(model: Any) -> Any:
    """The module inside of what `torch.compile` returned, or the module itself."""
    return getattr(model, "_orig_mod", model)


def transformers_of(adapter: BlockAdapter) -> list[nn.Module]:
    """The transformers that an adapter means."""
    return list(map(uncompiled, _as_given(adapter)))


def compiled_of(target: Any) -> list[nn.Module]:
    """Those of the transformers that were given as what `torch.compile` returned."""
    return [model for model in _meant_or_cached(target) if uncompiled(model) is not model]


def cached_models(target: Any) -> list[nn.Module]:
    """The transformers and ControlNets of a target that are cached, or what it means where none is."""
    models = list(map(uncompiled, _meant_or_cached(target)))
    # Once each: what was compiled is found in its wrapper and by itself.
    return list(dict.fromkeys(model for model in models if attachment_of(model) is not None)) or models


def _meant_or_cached(target: Any) -> list[nn.Module]:
    """What is meant, and what is cached beside it in a pipeline: a ControlNet, alone or among several."""
    adapter = adapter_of(target)
    modules = [one for part in _parts(adapter.pipe).values() for one in part.modules()]
    cached = [module for module in modules if attachment_of(uncompiled(module)) is not None]
    beside = [module for module in cached if not _is_denoiser(uncompiled(module))]
    return [*_as_given(adapter), *beside]


def _as_given(adapter: BlockAdapter) -> list[nn.Module]:
    given: Any = adapter.transformer
    if given is None:
        given = getattr(adapter.pipe, "transformer", None)
        said = adapter.auto or adapter.forward_pattern is not None
        named = adapter.blocks is not None or adapter.blocks_name is not None
        declared = named or (said and row_of(type(given)) is None)
        if not declared or not isinstance(given, nn.Module):
            return [adapter.pipe] if isinstance(adapter.pipe, nn.Module) else _known_components(adapter.pipe)
    models = [given] if isinstance(given, nn.Module) else given
    if not isinstance(models, (list, tuple)) or not all(isinstance(one, nn.Module) for one in models):
        raise ConfigError(
            f"BlockAdapter: transformer is of type {type(given).__name__}; give one nn.Module or a list."
        )
    return list(models)


@contextmanager
def patched(adapter: BlockAdapter) -> Iterator[dict[nn.Module, Patch]]:
    """What an adapter's functor changes on transformers not cached yet; taken back if the block raises."""
    functor = adapter.patch_functor
    if functor is None:
        yield {}
        return
    fresh: dict[nn.Module, Patch] = {}
    with ExitStack() as undo:
        for model in map(uncompiled, _as_given(adapter)):
            attached = attachment_of(model)
            if attached is None:
                fresh[model] = apply_patch(functor, model)
                undo.callback(fresh[model].undo)
            elif attached.patch is None or type(attached.patch.functor) is not type(functor):
                raise ConfigError(
                    f"BlockAdapter: patch_functor is a {type(functor).__name__} but "
                    f"{plain_class(model).__name__} is cached already without it; call "
                    "cache_dit.disable_cache first."
                )
        yield fresh
        undo.pop_all()


def lists_of(adapter: BlockAdapter) -> list[Lists]:
    """The block lists of every transformer that an adapter means, checked against the model."""
    models = list(map(uncompiled, _as_given(adapter)))
    several = adapter.transformer is not None and not isinstance(adapter.transformer, nn.Module)
    blocks, names, patterns = (
        _per_model(name, getattr(adapter, name), len(models), several)
        for name in ("blocks", "blocks_name", "forward_pattern")
    )
    members = map(_members, models, blocks, names)
    return list(map(_lists, models, members, patterns, repeat(adapter.auto)))


def _parts(pipe: Any) -> dict[str, nn.Module]:
    parts = getattr(pipe, "components", None)
    parts = parts if isinstance(parts, dict) else getattr(pipe, "__dict__", {})
    return {name: part for name, part in parts.items() if isinstance(part, nn.Module)}


def _known_components(pipe: Any) -> list[nn.Module]:
    modules = _parts(pipe)
    found = [module for module in modules.values() if _is_denoiser(uncompiled(module))]
    if found:
        return found
    if "transformer" in modules:
        raise _unknown(uncompiled(modules["transformer"]))
    raise UnsupportedModelError(
        f"An object of type {type(pipe).__name__} is no transformer (nn.Module), no BlockAdapter and no "
        "pipeline with a known transformer. Give a diffusers pipeline, its transformer, or "
        "cache_dit.BlockAdapter(transformer=..., blocks=..., forward_pattern=...)."
    )


def _is_denoiser(model: nn.Module) -> bool:
    row = row_of(type(model))
    # A class without a row may have been declared by an adapter.
    return attachment_of(model) is not None if row is None else not row.on_request


def _unknown(model: nn.Module) -> UnsupportedModelError:
    name = plain_class(model).__name__
    if name in UNSUPPORTED:
        return UnsupportedModelError(f"{name} is not supported, because {UNSUPPORTED[name]}.")
    near = nearest(name, [row.name for row in ROWS])
    hint = f"; the nearest known class is {near}" if near else ""
    lists = [path for path, part in model.named_children() if isinstance(part, nn.ModuleList)]
    declare = DECLARE.format(path=lists[0] if lists else "...", pattern="Pattern_1")
    return UnsupportedModelError(
        f"{name} is not known{hint}. BlockAdapter(transformer=transformer, auto=True) finds its blocks in "
        f"the first forward. {declare}"
    )


def _lists_by_row(model: nn.Module) -> Lists:
    row = row_of(type(model))
    if row is None:
        raise _unknown(model)
    blocks = {flow: members for flow in row.lists if (members := flow.members(model))}
    if not blocks:
        paths = " and ".join(flow.label for flow in row.lists)
        raise ConfigError(f"{paths} of {plain_class(model).__name__} is empty, so there is nothing to cache.")
    return Lists(model=model, blocks=tuple(blocks.values()), flows=tuple(blocks), row=row, joined=row.joined)


def _per_model(name: str, given: Any, count: int, several: bool) -> list[Any]:
    """One entry for each transformer from the shorter forms that an adapter allows."""
    if not several or given is None or isinstance(given, (ForwardPattern, str)):
        return [given] * count
    known = isinstance(given, (list, tuple))
    if known and len(given) == count:
        return list(given)
    size = f"has {len(given)} entries" if known else f"is of type {type(given).__name__}"
    raise ConfigError(f"BlockAdapter: {name} {size} but transformer has {count}; give one entry for each.")


def _lists(model: nn.Module, given: list[tuple[nn.Module, ...]], patterns: Any, auto: bool) -> Lists:
    """The lists of one transformer as its row, the adapter or, with `auto`, its first forward tells."""
    if patterns is None and not given and (not auto or row_of(type(model)) is not None):
        return _lists_by_row(model)
    if patterns is None and auto:
        return undeclared(model, tuple(given))
    chosen = list(patterns) if isinstance(patterns, (list, tuple)) else [patterns]
    for pattern in chosen:
        if not isinstance(pattern, ForwardPattern):
            known = ", ".join(map(str, ForwardPattern))
            raise ConfigError(f"BlockAdapter: forward_pattern is {pattern!r}; give one of {known}.")
    given = given or _discover(model, chosen)
    if len(chosen) == 1:
        chosen = chosen * len(given)
    if len(chosen) != len(given):
        raise ConfigError(
            f"BlockAdapter: forward_pattern has {len(chosen)} entries but there are {len(given)} block "
            f"lists of {plain_class(model).__name__}; give one pattern for each list, or one for all."
        )
    flows = tuple(map(_flow, repeat(model), given, chosen))
    lists, row = Lists(model=model, blocks=tuple(given), flows=flows), row_of(type(model))
    return lists if row is None else replace(lists, row=row, joined=row.joined and flows == row.lists)


def _members(model: nn.Module, blocks: Any, names: Any) -> list[tuple[nn.Module, ...]]:
    """The blocks of each list that an adapter gives or names; none where it does neither."""
    lists = [blocks] if _is_list(blocks) else blocks
    if blocks is None:
        lists = []
    elif not isinstance(lists, (list, tuple)) or not lists or not all(map(_is_list, lists)):
        raise ConfigError(
            f"BlockAdapter: blocks is of type {type(blocks).__name__}; give a ModuleList of at least one "
            "block, or a list of several."
        )
    if not isinstance(names, (str, list, tuple, NoneType)):
        raise ConfigError(
            f"BlockAdapter: blocks_name is of type {type(names).__name__}; give the path of a list of "
            "blocks, or several."
        )
    given = [tuple(members) for members in lists]
    named = [_list_named(model, name) for name in ([names] if isinstance(names, str) else names or ())]
    if given and named and given != named:
        raise ConfigError(
            f"BlockAdapter: blocks are not those at blocks_name {names!r}; give one of the two."
        )
    return given or named


def _is_list(blocks: Any) -> bool:
    if isinstance(blocks, LISTS):
        return len(blocks) > 0
    members = blocks if isinstance(blocks, Sequence) else ()
    each = [isinstance(block, nn.Module) and not isinstance(block, nn.ModuleList) for block in members]
    return all(each) and len(each) > 0


def _list_named(model: nn.Module, name: Any) -> tuple[nn.Module, ...]:
    lists = {path: part for path, part in model.named_modules() if isinstance(part, LISTS) and len(part) > 0}
    if name in lists:
        return tuple(lists[name])
    known = [path for path, part in lists.items() if isinstance(part, nn.ModuleList) and len(part) > 1]
    hint = nearest(str(name), known)
    meant = f"Did you mean {hint!r}?" if hint else f"Its lists are {', '.join(known) or 'none'}."
    raise ConfigError(
        f"BlockAdapter: blocks_name is {name!r} but {plain_class(model).__name__} has no list of blocks "
        f"there. {meant}"
    )


def _discover(model: nn.Module, patterns: list[ForwardPattern]) -> list[tuple[nn.Module, ...]]:
    """The lists of the transformer whose blocks take the streams of the pattern, or those of its row."""
    wanted = {name for pattern in patterns for name in pattern.slots if name is not None}
    lists = [tuple(part) for part in model.children() if isinstance(part, nn.ModuleList)]
    found = [members for members in lists if len(members) > 1 and wanted <= {*parameters_of(members[0])}]
    if not found and row_of(type(model)) is not None:
        return list(_lists_by_row(model).blocks)
    if not found:
        raise UnsupportedModelError(
            f"auto found no block list in {plain_class(model).__name__} whose blocks take "
            f"{' and '.join(sorted(wanted))}; name the list with BlockAdapter(blocks=...)."
        )
    return found


def _flow(model: nn.Module, members: tuple[nn.Module, ...], pattern: ForwardPattern) -> BlockList:
    """The data flow of a list: as the row of the class has it, else as declared.

    What blocks return has changed between versions of diffusers, so a declaration that was right for another
    version is no error for a class that is known.
    """
    row, name = row_of(type(model)), plain_class(model).__name__
    # A class derived from a known one, or one with blocks of its own, may differ from the row.
    genuine = all(type(part).__module__.startswith("diffusers.") for part in (model, *members))
    known = row.lists if row is not None and row.name == name and genuine else ()
    flow = next((flow for flow in known if flow.members(model) == members), None)
    if flow is None:
        return _flow_by_hand(model, members, pattern)
    # In which slots the streams are, whatever they are called.
    known_slots = (flow.bare, [name is None for name in flow.continues], flow.continues.index(flow.main))
    said_slots = (pattern.bare, [name is None for name in pattern.slots], pattern.slots.index(HIDDEN))
    if said_slots != known_slots:
        streams = ", ".join(stream or "a side output" for stream in flow.continues)
        warnings.warn(
            f"BlockAdapter: {flow.label} of {name} was declared as {pattern.name} {pattern.text}, but its "
            f"blocks return {streams if flow.bare else f'({streams})'}; that is used. Leave out "
            "forward_pattern for a class that is known.",
            stacklevel=6,  # who called enable_cache
        )
    return flow


def _flow_by_hand(model: nn.Module, members: tuple[nn.Module, ...], pattern: ForwardPattern) -> BlockList:
    """The data flow of a list; H and E are the first two arguments where they have other names."""
    names = parameters_of(members[0])
    called = {
        stream: stream if stream in names or HIDDEN in names else names[place]
        for place, stream in enumerate((HIDDEN, ENCODER)[: len(names)])
    }
    lacking = [stream for stream in pattern.slots if stream and called.get(stream) not in names]
    if lacking:
        raise PatternError(
            f"{type(members[0]).__name__} takes ({', '.join(names)}), so it cannot have {pattern.name} "
            f"{pattern.text}: there is no {'second stream' if ENCODER in lacking else 'hidden state'}. "
            "Choose another pattern, see ForwardPattern."
        )
    slots = tuple(stream and called[stream] for stream in pattern.slots)
    return BlockList(path_of(model, members), slots, bare=pattern.bare, main=called[HIDDEN])
