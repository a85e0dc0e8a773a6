"""Families of models that users add: a function from a pipeline to its adapter, found by class name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import nn

from cache_dit.caching.block_adapters.adapter import BlockAdapter
from cache_dit.caching.models.rows import row_of
from cache_dit.errors import ConfigError, UnsupportedModelError

AdapterFunction = Callable[..., BlockAdapter]


class BlockAdapterRegister:
    """Adapters for families of pipelines: those that users register, and those that the package knows."""

    _families: ClassVar[dict[str, AdapterFunction]] = {}

    @classmethod
    def register(cls, name: str) -> Callable[[AdapterFunction], AdapterFunction]:
        """Decorator for a function that makes the adapter of a pipeline, or of a transformer.

        Args:
            name: Beginning of the class names of the pipelines, or the whole class name of the transformer.

        Returns:
            A decorator that gives back the function as it is.

        Raises:
            ConfigError: The name is taken.

        Examples:
            >>> @BlockAdapterRegister.register("MyModel")
            ... def my_adapter(pipe, **kwargs):
            ...     return BlockAdapter(pipe=pipe, blocks_name="layers", forward_pattern=Pattern_1, **kwargs)
        """

        def add(function: AdapterFunction) -> AdapterFunction:
            if name in cls._families:
                raise ConfigError(f"{name!r} is registered already; choose another name.")
            cls._families[name] = function
            return function

        return add

    @classmethod
    def is_supported(cls, pipe_or_transformer: Any) -> bool:
        """Whether `enable_cache` takes this object as it is."""
        if cls.find(pipe_or_transformer) is not None:
            return True
        parts = getattr(pipe_or_transformer, "components", None)
        candidates = [pipe_or_transformer, *(parts.values() if isinstance(parts, dict) else ())]
        return any(row_of(type(candidate)) is not None for candidate in candidates)

    @classmethod
    def get_adapter(cls, pipe_or_transformer: Any, **options: Any) -> BlockAdapter:
        """The adapter that `enable_cache` would use.

        Raises:
            UnsupportedModelError: The class is neither known nor registered.
        """
        if not cls.is_supported(pipe_or_transformer):
            raise UnsupportedModelError(
                f"{type(pipe_or_transformer).__name__} is not known; write a BlockAdapter for it."
            )
        return adapter_of(pipe_or_transformer, **options)

    @classmethod
    def find(cls, pipe_or_transformer: Any) -> AdapterFunction | None:
        """The function that a user registered for this class, or None; the longest name wins."""
        kind = type(pipe_or_transformer).__name__
        if isinstance(pipe_or_transformer, nn.Module):
            return cls._families.get(kind)
        names = [name for name in cls._families if kind.startswith(name)]
        return cls._families[max(names, key=len)] if names else None


def adapter_of(target: Any, **options: Any) -> BlockAdapter:
    """A target as an adapter: itself, as a user's family makes it, or one that says nothing more of it."""
    if isinstance(target, BlockAdapter):
        return target
    family = BlockAdapterRegister.find(target)
    if family is not None:
        return family(target, **options)
    part = "transformer" if isinstance(target, nn.Module) else "pipe"
    return BlockAdapter(**{part: target}, **options)
