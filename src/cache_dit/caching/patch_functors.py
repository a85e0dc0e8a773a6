"""`PatchFunctor`: for models whose loop must be changed before their blocks can be cached."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import nn


class PatchFunctor(ABC):
    """Changes one transformer so that its blocks can be cached; given as `BlockAdapter(patch_functor=...)`.

    Needed where blocks are not called as modules one after the other: a loop that calls `block.forward`, one
    that is written out in the forward, streams that travel in a dict. A subclass changes the instance, never
    its class: its `forward`, the class of a block, modules that are added. `disable_cache` takes back every
    such change to the transformer and its modules.

    Example:
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
