"""Plain data against the fields of a class or the arguments of a function, by pydantic models made of them.

What an option may be is said by its own check and nowhere else. Pydantic tells which keys are unknown or
missing, collects all mistakes and writes the schema.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    WrapValidator,
    create_model,
)
from pydantic_core import PydanticCustomError

from cache_dit.caching.maths.masks import steps_mask
from cache_dit.caching.maths.schedule import Schedule
from cache_dit.caching.maths.trajectory import Trajectory
from cache_dit.caching.options import reject_unknown
from cache_dit.configs.plain import dtype_names, plain
from cache_dit.configs.reading import parse, read_text
from cache_dit.errors import CacheDiTError, ConfigError, nearest

Target = type | Callable[..., Any]

_MASK = "steps_computation_mask"
_MADE = (torch.dtype, Schedule, Trajectory)
"""What words and mappings stand for, besides the members of an `Enum`."""


class Place(NamedTuple):
    """Where values stand: the path of their section, and the folder from which files are named."""

    path: str
    folder: Path


class Mistakes(ConfigError):
    """All that is wrong in one place; every entry of `args` is a sentence or more."""


class _Option(NamedTuple):
    hint: Any
    default: Any
    check: Callable[[str, Any], None] | None


def validated(target: Target, given: Any, place: Place) -> dict[str, Any]:
    """The given values as the class or function takes them.

    Raises:
        Mistakes: An unknown key, a value that is not allowed; with path, value and what is allowed.
    """
    if not isinstance(given, Mapping):
        raise Mistakes(f"{place.path} is {given!r}; give a mapping of options, as in a: 1.")
    try:
        made = model_of(target).model_validate(dict(given), context=place)
    except ValidationError as error:
        raise Mistakes(*(_sentence(target, one, place) for one in error.errors())) from None
    return {name: getattr(made, name) for name in given}


def called(target: Target, given: Any, place: Place) -> Any:
    """What the class or function makes of the given values.

    Raises:
        Mistakes: As `validated`, or values that do not go together.
    """
    values = validated(target, given, place)
    try:
        return target(**values)
    except (CacheDiTError, TypeError) as error:
        raise Mistakes(f"{place.path}: {error}") from error


@functools.cache
def model_of(target: Target) -> type[BaseModel]:
    """The pydantic model of the options of a class, or of the arguments of a function."""
    told = descriptions(target)
    fields: dict[str, Any] = {
        name: (
            Annotated[_replaced(option.hint, name), WrapValidator(functools.partial(_checked, name, option))],
            Field(_default(option.default, name), description=told.get(name)),
        )
        for name, option in _options(target).items()
    }
    return create_model(
        target.__name__,
        __config__=ConfigDict(extra="forbid", strict=True, protected_namespaces=()),
        __doc__=(inspect.getdoc(target) or "").partition("\n\n")[0],
        **fields,
    )


def descriptions(target: Target) -> dict[str, str]:
    """What the docstrings of a class and its bases, or of a function, say of each option."""
    owners = reversed(target.__mro__) if isinstance(target, type) else [target]
    found: dict[str, str] = {}
    for owner in owners:
        _, _, text = (inspect.cleandoc(owner.__doc__ or "")).partition(
            "\nAttributes:\n" if isinstance(target, type) else "\nArgs:\n"
        )
        # Up to the next heading, which is not indented.
        text = re.split(r"\n(?=\S)", text)[0]
        for name, words in re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", text, re.MULTILINE):
            found[name] = " ".join(words.split())
    return found


def _options(target: Target) -> dict[str, _Option]:
    hints = _hints(target)
    if isinstance(target, type):
        return {
            field.name: _Option(hints[field.name], _own_default(field), field.metadata.get("check"))
            for field in dataclasses.fields(target)
            if field.init
        }
    parameters = inspect.signature(target).parameters
    return {
        name: _Option(hints[name], one.default, None)
        for name, one in parameters.items()
        if _has_form(hints[name])
    }


def _has_form(hint: Any) -> bool:
    """Whether a file can say such an argument: modules and functions are left to programs."""
    leaves = [leaf for leaf in _leaves(hint) if leaf is not types.NoneType]
    made = [leaf for leaf in leaves if isinstance(leaf, type) and issubclass(leaf, (Enum, *_MADE))]
    return bool(made) or any(map(_is_plain, leaves))


def _hints(target: Target) -> dict[str, Any]:
    """The types of the options; of those that only type checkers import nothing is known."""
    absent: dict[str, Any] = {}
    while True:
        try:
            return typing.get_type_hints(target, localns=absent)
        except NameError as error:
            absent[str(error.name)] = object


def _own_default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default


def _default(value: Any, name: str) -> Any:
    """As the schema tells it; what pydantic calls a required field where there is none."""
    return ... if value is inspect.Parameter.empty else plain(value, name)


def _checked(
    name: str, option: _Option, value: Any, handler: Callable[[Any], Any], info: ValidationInfo
) -> Any:
    """One value, as the option takes it; pydantic's own rules count where there is no check."""
    assert info.context is not None  # `validated` gives it
    place: Place = info.context
    path = f"{place.path}.{name}"
    try:
        made = _converted(option.hint, name, path, value, place.folder)
        if option.check is not None:
            option.check(path, made)
            return made
    except CacheDiTError as error:
        raise PydanticCustomError("option", "{why}", {"why": str(error)}) from error
    return handler(value) if made is value else made


def _sentence(target: Target, error: Any, place: Place) -> str:
    if error["type"] == "option":
        return str(error["ctx"]["why"])
    path = ".".join(map(str, (place.path, *error["loc"])))
    if error["type"] == "extra_forbidden":
        known = list(model_of(target).model_fields)
        try:
            reject_unknown(target.__name__, {error["loc"][0]: None}, known)
        except CacheDiTError as unknown:
            return f"{path}: {unknown}"
    if error["type"] == "missing":
        return f"{path} is missing; {target.__name__} needs it."
    return f"{path} is {error['input']!r}: {error['msg']}."


def _leaves(hint: Any) -> tuple[Any, ...]:
    inside = typing.get_args(hint)
    return tuple(leaf for part in inside for leaf in _leaves(part)) if _is_union(hint) else (hint,)


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _replaced(hint: Any, name: str = "") -> Any:
    """The hint with what a file may have in the place of objects, for the schema."""
    if name == _MASK:
        hint = hint | str | dict[str, Any]
    if _is_union(hint):
        return typing.Union[tuple(map(_replaced, typing.get_args(hint)))]  # noqa: UP007  # of a tuple
    if isinstance(hint, type) and issubclass(hint, Enum):
        return Literal[tuple(member.name.lower() for member in hint)]
    if hint is torch.dtype:
        return Literal[tuple(dtype_names())]
    if hint in (Schedule, Trajectory):
        return str | dict[str, Any]
    return hint if _is_plain(hint) else Annotated[Any, WithJsonSchema({})]


def _is_plain(hint: Any) -> bool:
    inside = [part for part in typing.get_args(hint) if part is not Ellipsis]
    if typing.get_origin(hint) is Literal or hint in (int, float, str, bool, type(None), Any):
        return True
    return bool(inside) and all(map(_is_plain, inside))


def _converted(hint: Any, name: str, path: str, value: Any, folder: Path) -> Any:
    """The object that words, numbers, lists and mappings stand for."""
    if name == _MASK:
        return _mask(path, value, folder)
    for leaf in _leaves(hint):
        if isinstance(leaf, type) and issubclass(leaf, Enum) and isinstance(value, str):
            return _member(leaf, path, value)
        if leaf is torch.dtype and isinstance(value, str):
            return _dtype(path, value)
        if leaf in (Schedule, Trajectory) and isinstance(value, (str, Mapping)):
            return _made(leaf, path, value, folder)
    return tuple(value) if isinstance(value, list) else value


def _mask(path: str, value: Any, folder: Path) -> Any:
    """A mask as a list, as digits, or as the arguments of `cache_dit.steps_mask`."""
    if isinstance(value, Mapping):
        return tuple(called(steps_mask, value, Place(path, folder)))
    digits = str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
    if digits and set(digits) <= {"0", "1"}:
        return tuple(map(int, digits))
    return tuple(value) if isinstance(value, list) else value


def _member(kind: type[Enum], path: str, word: str) -> Enum:
    """By name, in any case, or by value."""
    names = {name.lower(): member for name, member in kind.__members__.items()}
    if word in [member.value for member in kind]:
        return kind(word)
    if word.lower() not in names:
        hint = nearest(word.lower(), names)
        meant = f" Did you mean {hint!r}?" if hint else ""
        raise ConfigError(f"{path} is {word!r}; allowed are {', '.join(names)}.{meant}")
    return names[word.lower()]


def _dtype(path: str, word: str) -> torch.dtype:
    names = dtype_names()
    bare = word.removeprefix("torch.")
    if bare not in names:
        hint = nearest(bare, names)
        meant = f"did you mean {hint!r}?" if hint else "give one such as bfloat16."
        raise ConfigError(f"{path} is {word!r}, which is no type of torch; {meant}")
    return names[bare]


def _made(kind: type, path: str, value: str | Mapping[str, Any], folder: Path) -> Any:
    """A schedule or trajectory, written out or in a file of its own."""
    if isinstance(value, str):
        if Path(value).is_absolute() or ".." in Path(value).parts:
            raise ConfigError(
                f"{path} is {value!r}, outside of the folder of the configuration; put the file there."
            )
        file = folder / value
        value = parse(str(file), read_text(file))
        path = f"{path} ({file})"
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path} is {value!r}; give what {kind.__name__}.save writes.")
    if kind is Trajectory:
        return _trajectory(path, value)
    return called(kind, value, Place(path, folder))


def _trajectory(path: str, value: Mapping[str, Any]) -> Trajectory:
    try:
        return Trajectory(
            tuple(map(float, value["sigmas"])),
            torch.tensor(value["gram"], dtype=torch.float64),
            str(value.get("model", "")),
            int(value.get("pictures", 0)),
        )
    except (ValueError, TypeError, KeyError, OverflowError, RuntimeError) as error:
        raise ConfigError(
            f"{path} is no trajectory ({error}); make one with cache_dit.tune.calibrate."
        ) from error
