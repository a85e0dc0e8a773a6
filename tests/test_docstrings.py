"""What users read with `help()` is whole: every argument, what it is by default, and what comes back."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest

import cache_dit

ROOMS = (
    *("attention", "compile", "configs", "demo", "generate", "metrics"),
    *("offload", "pages", "presets", "quantize", "tune"),
)


def entry(text: str, name: str) -> str:
    """What a docstring tells of one argument or attribute; "" where it does not tell of it."""
    found = re.search(rf"^    \**{name}: (.*(?:\n        .*)*)", text, re.M)
    return found[1] if found else ""


def objections_to_class(kind: Any, text: str) -> Iterator[str]:
    own = vars(kind).get("__annotations__", {})
    for field in dataclasses.fields(kind):
        if field.name not in own or not field.init:
            continue
        told = entry(text, field.name)
        if not told:
            yield f"{field.name} is not told of"
        elif field.default is not dataclasses.MISSING and not re.search("[Dd]efault|Required", told):
            yield f"{field.name} has a default that is not told"


def objections_to_function(function: Any, text: str) -> Iterator[str]:
    signature = inspect.signature(function)
    yield from (f"{name} is not told of" for name in signature.parameters if not entry(text, name))
    # Presets are one kind of function, for which the docstring of their package says so.
    is_preset = signature.return_annotation in ("Preset", cache_dit.Preset)
    silent = signature.return_annotation == "None" or not signature.parameters or is_preset
    if not silent and not re.search("^(Returns|Yields):", text, re.M):
        yield "Returns is missing"


def objections(thing: Any) -> list[str]:
    text = inspect.getdoc(thing) or ""
    if inspect.isclass(thing) and dataclasses.is_dataclass(thing):
        return list(objections_to_class(thing, text))
    return list(objections_to_function(thing, text)) if inspect.isfunction(thing) else []


@pytest.mark.parametrize("room", ["", *ROOMS])
def test_docstrings_are_whole(room: str) -> None:
    module = importlib.import_module(f"cache_dit.{room}" if room else "cache_dit")
    found = {name: objections(getattr(module, name)) for name in module.__all__}
    assert found
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


def test_a_gap_is_found() -> None:
    @dataclasses.dataclass
    class Gap:
        """A class.

        Attributes:
            told: Of which much is said. Default 1.
            half: Of which less is.
        """

        told: int = 1
        half: int = 2
        not_told: int = 3

    def gap(told: int, not_told: int) -> int:
        """A function.

        Args:
            told: The one.
        """
        return told + not_told

    assert objections(Gap) == ["half has a default that is not told", "not_told is not told of"]
    assert objections(gap) == ["not_told is not told of", "Returns is missing"]
