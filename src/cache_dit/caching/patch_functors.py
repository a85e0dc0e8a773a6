"""`PatchFunctor`: changes a model whose blocks cannot be cached as they are; and what takes that back."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import Any

from torch import nn

from cache_dit.errors import ConfigError

_ABSENT = object()
_Table = dict[str, Any]


class PatchFunctor(ABC):
    """Changes one transformer so that its blocks can be cached; given as `BlockAdapter(patch_functor=...)`.

    Needed where blocks are not called as modules one after the other: a loop that calls `block.forward`, one
    that is written out in the forward, streams that travel in a dict. A subclass changes the instance, never
    its class: its `forward`, the class of a block, modules that are added. `disable_cache` takes back every
    such change to the transformer and its modules.

    Examples:
        >>> class CallsItsBlocks(PatchFunctor):
        ...     def apply(self, transformer, **kwargs):
        ...         transformer.forward = types.MethodType(forward_with_a_plain_loop, transformer)
        ...         return transformer
    """

    @abstractmethod
    def apply(self, transformer: nn.Module, **kwargs: Any) -> nn.Module:
        """Change a transformer; called once by `enable_cache`, before anything is looked up in it.

        Args:
            transformer: The transformer of the adapter, one after the other where there are several.
            **kwargs: Nothing, unless who calls it gives more.

        Returns:
            The same object.
        """


class _Nothing(PatchFunctor):
    def apply(self, transformer: nn.Module, **kwargs: Any) -> nn.Module:
        return transformer


class HiDreamPatchFunctor(_Nothing):
    """Changes nothing, for programs that give it: blocks of HiDream are cached as they are."""


class ChromaPatchFunctor(_Nothing):
    """Changes nothing, for programs that give it: blocks of Chroma are cached as they are."""


@dataclasses.dataclass(frozen=True, slots=True)
class Patch:
    """What a functor changed on one transformer.

    Attributes:
        functor: The functor.
        entries: Attribute table, name, value before and value set, of modules' attributes.
        classes: Module, class before and class set.
    """

    functor: PatchFunctor
    entries: tuple[tuple[_Table, str, Any, Any], ...]
    classes: tuple[tuple[nn.Module, type, type], ...]

    def undo(self) -> None:
        """Take the changes back, where nobody has changed the same thing again (loaded a LoRA, say)."""
        for module, before, changed in self.classes:
            if type(module) is changed:
                module.__class__ = before
        for table, name, before, changed in self.entries:
            if table.get(name, _ABSENT) is changed:
                table[name] = before
                if before is _ABSENT:
                    del table[name]


def apply_patch(functor: PatchFunctor, model: nn.Module) -> Patch:
    """Let a functor change a transformer; if it raises or returns another object, nothing stays changed."""
    modules = [(module, type(module)) for module in model.modules()]
    # The attributes of a module, and what of them are tables themselves: parameters, children, hooks.
    parts = [part for module, _ in modules for part in (vars(module), *vars(module).values())]
    tables = [(part, dict(part)) for part in parts if isinstance(part, dict)]
    returned: nn.Module | None = None
    try:
        returned = functor.apply(model)
    finally:
        patch = Patch(
            functor,
            tuple(
                (table, name, before.get(name, _ABSENT), table.get(name, _ABSENT))
                for table, before in tables
                for name in before | table
                if before.get(name, _ABSENT) is not table.get(name, _ABSENT)
            ),
            tuple((module, kind, type(module)) for module, kind in modules if type(module) is not kind),
        )
        if returned is not model:
            patch.undo()
    if returned is not model:
        raise ConfigError(
            f"{type(functor).__name__}.apply returned an object of type {type(returned).__name__}; change "
            f"the {type(model).__name__} that it was given and return that."
        )
    return patch
