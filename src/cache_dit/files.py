"""Files: written whole or not at all, never over a foreign one, and read as data of limited size."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cache_dit.errors import ConfigError

_HEAD = 4096
_MOST_BYTES = 1_000_000


def write_whole(path: Path, content: str | bytes, *, mark: str | None = None) -> None:
    """Write a file so that readers see the old one or the new one, never a part.

    Args:
        path: Where to; folders that are missing are made. A link stays one: what it points to is replaced.
        content: Text (written as UTF-8) or bytes.
        mark: What every file of this kind has in its first 4,096 bytes, the new one included. An existing
            file without it is not replaced. None: replace whatever there is.

    Raises:
        ConfigError: There is a file of another kind.
        OSError: The file cannot be written.
    """
    path = path.resolve()
    if mark is not None and path.exists() and not _has(path, mark):
        raise ConfigError(
            f"{path} exists and was not written by this command; give another path or remove it."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    # Made by hand: the files of tempfile are readable by their owner only, and the new file would be too. The
    # number is drawn: threads share that of their process, and containers on one volume often have the same.
    part = path.with_name(f".{path.name}.{os.urandom(4).hex()}.part")
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_json(path: str | Path) -> Any:
    """Plain data from a JSON file of at most 1 MB; nothing in it is executed.

    Raises:
        ValueError: It is larger, or no JSON; NaN and Infinity are none.
        RecursionError: It is nested too deep.
        OSError: There is no such file, or it cannot be read.
    """
    with Path(path).open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES} bytes")
    return json.loads(content.decode(), parse_constant=_refused)


@contextmanager
def reading(path: str | Path, kind: str, advice: str, mark: str = "") -> Iterator[Any]:
    """The plain data of a JSON file, and one error for all that is wrong with it.

    Args:
        path: Of the file.
        kind: What the file should be, for the message.
        advice: What to do if it is not.
        mark: What is under "format" in every file of this kind. "" (default): nothing.

    Raises:
        ConfigError: The file is larger than 1 MB, or no JSON, or the block makes no sense of what is in it.
        OSError: There is no such file, or it cannot be read.
    """
    try:
        content = read_json(path)
        if mark and content["format"] != mark:
            raise ValueError(f"its format is {content['format']!r}, and this version reads {mark!r}")
        yield content
    # A RecursionError is a RuntimeError.
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError) as error:
        told = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ConfigError(f"{path} is no {kind} ({told}); {advice}.") from error


def _refused(constant: str) -> float:
    raise ValueError(f"it has {constant}")


def _has(path: Path, mark: str) -> bool:
    with path.open("rb") as file:
        return mark.encode() in file.read(_HEAD)
