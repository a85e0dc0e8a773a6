"""Every error that the package raises on purpose.

Messages name the field, the value got, the fact of this model, what is allowed and the next step.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CacheDiTError(Exception):
    """Base of all errors of this package."""


class ConfigError(CacheDiTError, ValueError):
    """An option has a value that cannot work, for any model or for this one."""


class ConfigTypeError(CacheDiTError, TypeError):
    """An option is unknown or has a value of the wrong type."""


class UnsupportedModelError(CacheDiTError, ValueError):
    """The object is no pipeline, transformer or adapter that caching knows how to enter."""


class PatternError(CacheDiTError, ValueError):
    """The declared data flow of a block list is not the one that the model shows."""


class EngineError(CacheDiTError, RuntimeError):
    """The model did something during a forward that cannot be cached safely."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, or None when nothing is like it."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None
