"""Configurations as plain data: words, numbers, lists and mappings, as files have them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import torch

from cache_dit.caching.maths.schedule import Schedule
from cache_dit.caching.maths.trajectory import Trajectory
from cache_dit.errors import ConfigTypeError


def dtype_names() -> dict[str, torch.dtype]:
    """The types of torch by their names."""
    found = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
    return {name: value for name, value in found.items() if str(value) == f"torch.{name}"}


def plain(value: Any, path: str) -> Any:
    """One value as plain data.

    Args:
        value: An option's value.
        path: What it is called in messages.

    Raises:
        ConfigTypeError: An object that plain data cannot stand for, such as a module or a process group.
    """
    if isinstance(value, Enum):
        return value.name.lower()
    if value is None or isinstance(value, (bool, str)):
        return value
    for number in (int, float):
        if isinstance(value, number):
            return number(value)
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, Trajectory):
        own = {"model": value.model, "pictures": value.pictures}
        return own | {"sigmas": list(value.sigmas), "gram": value.gram.tolist()}
    if isinstance(value, Schedule):
        return chosen(value, path)
    if isinstance(value, Mapping):
        return {str(key): plain(entry, f"{path}.{key}") for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [plain(entry, f"{path}[{place}]") for place, entry in enumerate(value)]
    raise ConfigTypeError(
        f"{path} is of type {type(value).__name__}, which has no form in a file; set it in the program."
    )


def chosen(config: Any, path: str) -> dict[str, Any]:
    """The fields of a dataclass that are not at their defaults, as plain data."""
    values = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.init and not _is_default(field, getattr(config, field.name))
    }
    return {name: plain(value, f"{path}.{name}") for name, value in values.items()}


def _is_default(field: dataclasses.Field[Any], value: Any) -> bool:
    made = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return value is made or (type(value) is type(made) and bool(value == made))
