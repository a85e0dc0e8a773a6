"""Checked option classes: frozen, keyword-only dataclasses whose errors name the field and the way out."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, TypeVar, dataclass_transform

from cache_dit.errors import ConfigError, ConfigTypeError, nearest

_Config = TypeVar("_Config", bound="Options")
_Check = Callable[[str, Any], None]
_INF = float("inf")


def whole(minimum: int, maximum: float = _INF, *, unlimited: bool = False) -> _Check:
    """A whole number from `minimum` to `maximum`; with `unlimited`, also -1 for no limit."""
    return _number("a whole number", (int,), minimum, maximum, unlimited)


def real(minimum: float = -_INF, maximum: float = _INF) -> _Check:
    """A finite number from `minimum` to `maximum`."""
    return _number("a number", (int, float), minimum, maximum, unlimited=False)


def _number(
    what: str, kinds: tuple[type[int] | type[float], ...], minimum: float, maximum: float, unlimited: bool
) -> _Check:
    if maximum < _INF:
        allowed = f"{what} from {minimum} to {maximum}"
    else:
        allowed = f"{what} of at least {minimum}" if minimum > -_INF else "a finite number"
    also = ", or -1 for no limit" if unlimited else ""

    def check(name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise ConfigTypeError(f"{name} is {value!r}, a {type(value).__name__}; give {what}.")
        within = minimum <= value <= maximum and abs(value) < _INF
        if not within and not (unlimited and value == -1):
            raise ConfigError(f"{name} is {value}; give {allowed}{also}.")

    return check


def sequence_of(check: _Check, count: int | None = None) -> _Check:
    """A list or tuple whose every entry passes `check`, of `count` entries or of any number."""

    def check_entries(name: str, value: Any) -> None:
        if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
            raise ConfigTypeError(f"{name} is {value!r}, a {type(value).__name__}; give a list.")
        if count is not None and len(value) != count:
            raise ConfigError(f"{name} has {len(value)} entries; give {count}.")
        for index, entry in enumerate(value):
            check(f"{name}[{index}]", entry)

    return check_entries


def flag(name: str, value: Any) -> None:
    """True or False."""
    if not isinstance(value, bool):
        raise ConfigTypeError(f"{name} is {value!r}; give True or False.")


def one_of(*allowed: str) -> _Check:
    """One of a few words."""

    def check(name: str, value: Any) -> None:
        if value not in allowed:
            hint = nearest(str(value), allowed)
            meant = f" Did you mean {hint!r}?" if hint else ""
            raise ConfigError(f"{name} is {value!r}; allowed are {', '.join(map(repr, allowed))}.{meant}")

    return check


def instance_of(*kinds: type) -> _Check:
    """An object of one of these classes."""

    def check(name: str, value: Any) -> None:
        if isinstance(value, type):
            raise ConfigTypeError(f"{name} is the class {value.__name__}; give an instance of it.")
        if not isinstance(value, kinds):
            raise ConfigTypeError(f"{name} is of type {type(value).__name__}; give a {kinds[0].__name__}.")

    return check


def optional(check: _Check) -> _Check:
    """None, or what `check` takes."""

    def check_given(name: str, value: Any) -> None:
        if value is not None:
            check(name, value)

    return check_given


def option(check: _Check, *, default: Any) -> Any:
    """A dataclass field with its check."""
    return dataclasses.field(default=default, metadata={"check": check})


@dataclasses.dataclass(frozen=True, slots=True)
class Override:
    """Some fields of an option class, to be laid over a whole one; made by `Options.reset`."""

    kind: type[Options]
    fields: Mapping[str, Any]


class Options:
    """Base of the option classes; subclasses are decorated with `options`.

    An option that was given as a list is kept as a tuple.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            check, value = field.metadata.get("check"), getattr(self, field.name)
            if check is not None:
                check(field.name, value)
                if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
                    # Nobody changes it later, and what was given as a list equals what was given as a tuple.
                    object.__setattr__(self, field.name, tuple(value))

    def reset(self, **fields: Any) -> Override:
        """Return a partial override: only the fields named here are set, the others stay as they are.

        For `ParamsModifier` and `refresh_context`. The values of `self` do not matter.

        Raises:
            ConfigTypeError: A field is unknown or has a value of the wrong type.
            ConfigError: A value that is not allowed.
        """
        made = type(self)(**fields)
        return Override(type(self), {name: getattr(made, name) for name in fields})

    def updated(self, override: Self | Override) -> Self:
        """Return `override` where it is whole, or a copy of self with its fields where it is partial."""
        if not isinstance(override, Override):
            return override
        reject_unknown(type(self).__name__, override.fields, _names(type(self)))
        return dataclasses.replace(self, **override.fields)  # type: ignore[type-var]  # as above


def reject_unknown(
    owner: str,
    given: Mapping[str, Any],
    known: Sequence[str],
    inside: Mapping[str, type[Options]] | None = None,
) -> None:
    """Raise `ConfigTypeError` for the first name in `given` that is no option of `owner`.

    Args:
        owner: What the message says has no such option.
        given: Options as they were given.
        known: All options that there are.
        inside: Options of `owner` that are option classes, with the class whose fields are looked at too.
    """
    for name, value in given.items():
        if name in known:
            continue
        hint = nearest(name, known)
        meant = f"Did you mean {hint!r}?" if hint else f"Known are: {', '.join(known)}."
        for option_of, kind in (inside or {}).items():
            if name in _names(kind):
                meant = f"It is one of {kind.__name__}: give {option_of}={kind.__name__}({name}={value!r})."
        raise ConfigTypeError(f"{owner} has no option {name!r}. {meant}")


def _names(kind: type[Options]) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]  # as above


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(option,))
def options(kind: type[_Config]) -> type[_Config]:
    """Class decorator: a frozen keyword-only dataclass that rejects unknown options by name."""
    made = dataclasses.dataclass(frozen=True, kw_only=True)(kind)
    fill = made.__init__

    @functools.wraps(fill)
    def __init__(self: Any, **given: Any) -> None:
        reject_unknown(made.__name__, given, _names(made))
        fill(self, **given)

    made.__init__ = __init__  # type: ignore[method-assign]  # the point of this decorator
    return made
