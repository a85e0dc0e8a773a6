"""Text from users to plain data: YAML or JSON, limited in size and depth, never executed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cache_dit.errors import ConfigError

MOST_BYTES = 1_000_000
MOST_LEVELS = 32
MOST_VALUES = 100_000

# YAML 1.1, which PyYAML reads, takes 1e-3 for a word; everybody else takes it for a number.
_EXPONENT = re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$")
_FLOAT = "tag:yaml.org,2002:float"
_MERGE = "tag:yaml.org,2002:merge"
_NESTED = f"lists and mappings are nested more than {MOST_LEVELS} deep"


class _Mistake(ValueError):
    """Why a text is refused."""


class _Loader(yaml.SafeLoader):
    """Safe YAML, without duplicate keys, and counted before anything is built."""

    levels = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.levels += 1
        if self.levels > MOST_LEVELS:
            raise _Mistake(_NESTED)
        node = super().compose_node(parent, index)
        self.levels -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        # Before anything is merged in: a key of its own before one that is merged is no mistake.
        _reject_twice([key.value for key, _ in node.value if key.tag != _MERGE])
        return node

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None:
            _weight(node, {})
        return node


class Dumper(yaml.SafeDumper):
    """Quotes the words that `_Loader` would take for numbers, and those with ends of lines of Unicode."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # Without quotes, or in single ones, these would be read back as spaces.
        style = '"' if set(data) & set("\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


Dumper.add_representer(str, Dumper.represent_str)

for _kind in (_Loader, Dumper):
    _kind.add_implicit_resolver(_FLOAT, _EXPONENT, list("-+.0123456789"))


def read(source: str | Path | Mapping[str, Any]) -> tuple[str, Any]:
    """What a source is called in messages, and its plain data.

    Args:
        source: A mapping, a path, or text. A string is text where it has a line end, or a colon and a space,
            or begins with a brace.

    Raises:
        ConfigError: It is too large, nested too deep, or neither YAML nor JSON.
        OSError: The file cannot be read.
    """
    if isinstance(source, Mapping):
        return "configuration", source
    if isinstance(source, str) and ("\n" in source or ": " in source or source.lstrip().startswith("{")):
        return "configuration", parse("configuration", source)
    path = Path(source)
    return str(path), parse(str(path), read_text(path))


def read_text(path: Path) -> str:
    """The text of a file that is not too large.

    Raises:
        ConfigError: It is too large, or not UTF-8.
        OSError: The file cannot be read.
    """
    if "\0" in str(path):
        raise ConfigError(f"{str(path)!r} is neither text nor a path; give a configuration or a file.")
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ConfigError(f"{path} has more than {MOST_BYTES} bytes; give a smaller file.")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 ({error}); give a text file.") from error


def parse(name: str, text: str) -> Any:
    """Plain data from YAML, or from JSON where the text begins with a brace; `name` is for messages.

    Raises:
        ConfigError: The text is too large, nested too deep, or none of the two.
    """
    if len(text) > MOST_BYTES:
        raise ConfigError(f"{name} has {len(text)} characters; give at most {MOST_BYTES}.")
    try:
        if text.lstrip().startswith("{"):
            data = json.loads(text, object_pairs_hook=_mapping, parse_constant=_no_number)
        else:
            data = yaml.load(text, _Loader)
        _check(data, 0, [0])
    except _Mistake as error:
        raise ConfigError(f"{name}: {error}.") from error
    except RecursionError as error:
        raise ConfigError(f"{name}: {_NESTED}.") from error
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{name} cannot be read ({' '.join(str(error).split())}).") from error
    return data


def _weight(node: Any, known: dict[int, int]) -> int:
    """How many values a node stands for, with each alias for all that it repeats."""
    found = known.get(id(node))
    if found is not None:
        return found
    # Seen again before it is known: it contains itself.
    known[id(node)] = MOST_VALUES + 1
    inside = getattr(node, "value", None)
    parts = inside if isinstance(inside, list) else []
    children = (child for part in parts for child in (part if isinstance(part, tuple) else (part,)))
    weight = 1
    for child in children:
        weight += _weight(child, known)
        if weight > MOST_VALUES:
            raise _Mistake(f"its aliases stand for more than {MOST_VALUES} values")
    known[id(node)] = weight
    return weight


def _check(value: Any, level: int, count: list[int]) -> None:
    """Raise `_Mistake` for what is no plain data; `count` are the values so far."""
    count[0] += 1
    if level > MOST_LEVELS:
        raise _Mistake(_NESTED)
    if count[0] > MOST_VALUES:
        raise _Mistake(f"there are more than {MOST_VALUES} values")
    if isinstance(value, Mapping):
        for key, entry in value.items():
            if not isinstance(key, str):
                raise _Mistake(f"the key {key!r} is no word; put it in quotes")
            _check(entry, level + 1, count)
    elif isinstance(value, list):
        for entry in value:
            _check(entry, level + 1, count)
    elif value is not None and not isinstance(value, (str, int, float)):
        raise _Mistake(f"{value!r} is a {type(value).__name__}; give words, numbers, lists and mappings")


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _reject_twice([key for key, _ in pairs])
    return dict(pairs)


def _reject_twice(keys: list[Any]) -> None:
    seen: set[str] = set()
    # Keys of YAML that are no words may be lists; those are refused later.
    for key in [one for one in keys if isinstance(one, str)]:
        if key in seen:
            raise _Mistake(f"the key {key!r} is there twice; leave one of them out")
        seen.add(key)


def _no_number(name: str) -> Any:
    raise _Mistake(f"{name} is no number that any option takes")
