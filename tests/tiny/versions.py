"""What an older diffusers lacks. With the tested one nothing is skipped, as it may be a mistake in a test."""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

INSTALLED = Version(importlib.metadata.version("diffusers"))


@functools.cache
def tested() -> Version:
    """The version that `make test` installs."""
    constraints = Path(__file__).parents[2] / "constraints.txt"
    found = re.search(r"^diffusers==(\S+)$", constraints.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return Version(found[1])


def older() -> bool:
    return tested() > INSTALLED


@functools.cache
def lacked() -> frozenset[str]:
    """The classes with a row that the installed diffusers does not have."""
    if not older():
        return frozenset()
    import diffusers

    from cache_dit.caching.models.rows import ROWS

    return frozenset(row.name for row in ROWS) - set(dir(diffusers))


def lacked_of(words: Iterable[str]) -> set[str]:
    """Those of the words that are pipelines, or classes with a row, which the installed diffusers lacks."""
    if not older():
        return set()
    import diffusers

    pipelines = {word for word in words if word.endswith("Pipeline")} - set(dir(diffusers))
    return pipelines | lacked().intersection(words)


def reason(fact: str) -> str:
    return f"diffusers {INSTALLED} {fact}"


def since(version: str, what: str) -> None:
    """Skip the test of something that diffusers has from a version on."""
    if Version(version) > INSTALLED:
        pytest.skip(reason(f"has no {what}; {version} has"))


def needs_all() -> None:
    """Skip a test about all classes at once where an older diffusers lacks some."""
    if lacked():
        pytest.skip(reason(f"lacks {len(lacked())} of the classes, {min(lacked())} for one"))


def needs(name: str, taking: Callable[..., Any], arguments: Iterable[str]) -> None:
    """Skip the test where an older `taking` of the class takes not all of the arguments."""
    if not older():
        return
    taken = inspect.signature(taking).parameters
    missing = [argument for argument in arguments if argument not in taken]
    if missing and not any(one.kind is one.VAR_KEYWORD for one in taken.values()):
        pytest.skip(reason(f"knows no {', '.join(missing)} of {name}"))
