"""Configuration files: read, checked and written."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cache_dit.errors import ConfigError, nearest

Source = str | Path | Mapping[str, Any]

ENABLE_CACHE = ("cache_config", "calibrator_config", "params_modifiers", "parallelism_config")
"""The sections that `enable_cache` takes."""

FOR_EDITORS = ("$schema", "$comment")
"""Keys that say nothing to this package."""

MARK = "cache-dit configuration"
"""What tells a file that `save_configs` has written from others."""


def load_configs(source: Source) -> dict[str, Any]:
    """Read a configuration: `cache_dit.enable_cache(pipe, **cache_dit.load_configs("cache.yaml"))`.

    Nothing in a file is executed; what it may hold is in docs/configs.md.

    Args:
        source: Path of a YAML or JSON file of at most 1 MB, its text, or a mapping. A string is text where it
            has a line end, or a colon and a space, or begins with a brace.

    Returns:
        The arguments of `enable_cache` that the source has: `cache_config`, `calibrator_config`,
        `params_modifiers`, `parallelism_config`. A warning names sections for other functions; see
        `load_sections`.

    Raises:
        ConfigError: The source cannot be read, or has an unknown key or a value that is not allowed. The
            message has the path of each, such as `cache_config.residual_diff_threshold`, and what is allowed.
        OSError: The file cannot be read.

    Examples:
        >>> cache_dit.load_configs("cache_config: {residual_diff_threshold: 0.12}")
        {'cache_config': DBCacheConfig(..., residual_diff_threshold=0.12, ...)}
    """
    name, made = _load(source)
    if others := [section for section in made if section not in ENABLE_CACHE]:
        warnings.warn(
            f"{name} also has {', '.join(others)}, which enable_cache does not take: nothing was done with "
            "it; cache_dit.configs.load_sections gives it too.",
            stacklevel=2,
        )
    return {section: made[section] for section in ENABLE_CACHE if section in made}


def load_sections(source: Source) -> dict[str, Any]:
    """Read a configuration with all its sections, also those that `enable_cache` does not take.

    Args:
        source: As in `load_configs`.

    Returns:
        What each section stands for, by its name.

    Raises:
        ConfigError: As in `load_configs`.
        OSError: The file cannot be read.
    """
    return _load(source)[1]


def save_configs(path: str | Path, **sections: Any) -> None:
    """Write what `load_configs` reads back equal; YAML, or JSON where the path ends with .json.

    Only what differs from the defaults is written. The file appears whole or not at all. Lists come back as
    tuples, and a preset as the two configurations that it stands for.

    Args:
        path: Where to. A file that this function has not written is not replaced.
        **sections: The arguments of `enable_cache`, and other sections.

    Raises:
        ConfigError: There is a foreign file, or a section is unknown.
        ConfigTypeError: Something has no form in a file, such as a module or a process group.
        OSError: The file cannot be written.

    Examples:
        >>> cache_dit.save_configs("cache.yaml", cache_config=DBCacheConfig(Fn_compute_blocks=1))
    """
    import json

    import yaml

    from cache_dit.configs.reading import Dumper
    from cache_dit.files import write_whole

    path, data = Path(path), plain_configs(**sections)
    if path.suffix.lower() == ".json":
        text = json.dumps({"$comment": MARK, **data}, indent=2, allow_nan=False) + "\n"
    else:
        text = f"# {MARK}\n" + yaml.dump(data, Dumper=Dumper, sort_keys=False, width=100, allow_unicode=True)
    write_whole(path, text, mark=MARK)


def plain_configs(**sections: Any) -> dict[str, Any]:
    """Configurations as plain data, as a file would have them; `load_configs` takes it back.

    Args:
        **sections: As in `save_configs`.

    Returns:
        Mappings, lists, words and numbers, with what differs from the defaults.

    Raises:
        ConfigError: A section is unknown.
        ConfigTypeError: Something has no form in a file.
    """
    from cache_dit.configs.sections import HANDLERS, expanded

    _reject("", expanded(sections), HANDLERS)
    return {
        name: HANDLERS[name].written(value, name)
        for name, value in expanded(sections).items()
        if value is not None
    }


def config_schema() -> dict[str, Any]:
    """The JSON schema of configuration files, for editors.

    It knows all keys with their descriptions, types and words; ranges and what goes together are found out
    when a file is loaded.
    """
    from cache_dit.configs.schema import schema

    return schema()


def _load(source: Source) -> tuple[str, dict[str, Any]]:
    from cache_dit.configs.reading import read
    from cache_dit.configs.sections import HANDLERS, Sections
    from cache_dit.configs.validation import Mistakes, Place

    name, data = read(source)
    if not isinstance(data, Mapping):
        raise ConfigError(f"{name} is no mapping; give sections, as in cache_config: {{...}}.")
    folder = Path() if isinstance(source, Mapping) or name != str(source) else Path(name).parent
    given = {key: value for key, value in data.items() if key not in FOR_EDITORS and value is not None}
    _reject(f"{name}: ", given, HANDLERS)
    made: Sections = {}
    mistakes: list[str] = []
    # In the order of the table: later sections build on earlier ones.
    for section in [known for known in HANDLERS if known in given]:
        try:
            HANDLERS[section].read(given[section], Place(section, folder), made)
        except Mistakes as found:
            mistakes += found.args
    if len(mistakes) == 1:
        raise ConfigError(f"{name}: {mistakes[0]}")
    if mistakes:
        listed = "".join(f"\n- {one}" for one in mistakes)
        raise ConfigError(f"{name} has {len(mistakes)} mistakes:{listed}")
    return name, made


def _reject(name: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for key in given:
        if key not in known:
            hint = nearest(key, known)
            meant = f"did you mean {hint!r}?" if hint else f"known are {', '.join(known)}."
            raise ConfigError(f"{name}there is no section {key!r}; {meant}")
