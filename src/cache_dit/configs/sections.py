"""The sections of a configuration file: what each holds, and how it becomes what programs take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from cache_dit.caching.block_adapters import ParamsModifier
from cache_dit.caching.config import CacheConfig, CalibratorConfig
from cache_dit.caching.options import Options, Override, instance_of, one_of
from cache_dit.configs.classes import CACHES, CALIBRATORS, Choice, names_of, short
from cache_dit.configs.plain import chosen, plain
from cache_dit.configs.validation import Mistakes, Place, Target, called, validated
from cache_dit.errors import CacheDiTError, ConfigError, ConfigTypeError, nearest
from cache_dit.presets import NAMED, Preset

Sections = dict[str, Any]
"""What was made of the sections so far, by the argument of `enable_cache` or the name."""


class Handler(NamedTuple):
    """How a section is read and written.

    Attributes:
        read: From its plain data, its place and the sections before it; puts what it stands for among those.
        written: From what it stands for and its name to plain data.
        load: Imports the one class or function whose options it has; None where it is something else.
    """

    read: Callable[[Any, Place, Sections], None]
    written: Callable[[Any, str], Any]
    load: Callable[[], Target] | None = None


def preset(given: Any, place: Place) -> Preset:
    """A preset by its name, or by a mapping of its name and arguments."""
    values = {"name": given} if isinstance(given, str) else given
    if not isinstance(values, Mapping) or "name" not in values:
        raise Mistakes(f"{place.path} is {given!r}; give a name, or a mapping with a name and arguments.")
    name, arguments = values["name"], {key: value for key, value in values.items() if key != "name"}
    if not isinstance(name, str) or name not in NAMED:
        hint = nearest(str(name), NAMED)
        meant = f" Did you mean {hint!r}?" if hint else ""
        raise Mistakes(f"{place.path} is {name!r}; allowed are {', '.join(NAMED)}.{meant}")
    made: Preset = called(NAMED[name], arguments, place)
    return made


def whole(choice: Choice, given: Any, place: Place, base: Any = None) -> Any:
    """One configuration; `base` with changes where no class is named and it has all the options."""
    options = _mapping(given, place)
    if base is not None and choice.key not in options and options.keys() <= set(names_of(type(base))):
        try:
            return base.updated(base.reset(**validated(type(base), options, place)))
        except Mistakes:
            raise
        except CacheDiTError as error:
            raise Mistakes(f"{place.path}: {error}") from error
    return called(_kind(choice, options, place), options, place)


def modifiers(given: Any, place: Place, cache: type[CacheConfig], calibrator: type[CalibratorConfig]) -> Any:
    """Modifiers in the form that was given: one, a list, or a list of lists."""
    if isinstance(given, list):
        return [
            modifiers(one, place._replace(path=f"{place.path}[{number}]"), cache, calibrator)
            for number, one in enumerate(given)
        ]
    parts = _mapping(given, place)
    if unknown := sorted(parts.keys() - {"cache_config", "calibrator_config"}):
        raise Mistakes(f"{place.path}.{unknown[0]} is unknown; give cache_config or calibrator_config.")
    made = {
        name: _partial(choice, kind, part, place._replace(path=f"{place.path}.{name}"))
        for name, choice, kind in (
            ("cache_config", CACHES, cache),
            ("calibrator_config", CALIBRATORS, calibrator),
        )
        if (part := parts.get(name)) is not None
    }
    return ParamsModifier(**made)


def _partial(choice: Choice, kind: type[Options], given: Any, place: Place) -> Any:
    """Only the fields that are named; a whole configuration where a class is named or needed."""
    options = _mapping(given, place)
    if choice.key in options or not options.keys() <= set(names_of(kind)):
        return called(_kind(choice, options, place), options, place)
    fields = validated(kind, options, place)
    try:
        return kind().reset(**fields)
    except CacheDiTError as error:
        raise Mistakes(f"{place.path}: {error}") from error


def _mapping(given: Any, place: Place) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise Mistakes(f"{place.path} is {given!r}; give a mapping of options, as in a: 1.")
    return dict(given)


def _kind(choice: Choice, options: dict[str, Any], place: Place) -> type:
    """The class that is meant; its name is taken out of the options."""
    try:
        named = options.pop(choice.key, None)
        return choice.fitting(options) if named is None else choice.named(named)
    except ConfigError as error:
        raise Mistakes(f"{place.path}.{error}") from error


def expanded(sections: Mapping[str, Any]) -> Sections:
    """The sections with a preset as the two configurations that it stands for."""
    given = sections.get("cache_config")
    if not isinstance(given, Preset):
        return dict(sections)
    calibrator = sections.get("calibrator_config") or given.calibrator_config
    return {**sections, "cache_config": given.cache_config, "calibrator_config": calibrator}


def _read_preset(given: Any, place: Place, made: Sections) -> None:
    found = preset(given, place)
    made["cache_config"], made["calibrator_config"] = found.cache_config, found.calibrator_config


def _read_choice(choice: Choice) -> Callable[[Any, Place, Sections], None]:
    def read(given: Any, place: Place, made: Sections) -> None:
        made[place.path] = whole(choice, given, place, made.get(place.path))

    return read


def _read_modifiers(given: Any, place: Place, made: Sections) -> None:
    kinds = (type(made[name]) if name in made else None for name in ("cache_config", "calibrator_config"))
    cache, calibrator = kinds
    made[place.path] = modifiers(given, place, cache or CACHES.default, calibrator or CALIBRATORS.default)


def _write_choice(choice: Choice, base: type[Options]) -> Callable[[Any, str], Any]:
    def written(value: Any, path: str) -> Any:
        if isinstance(value, Override):
            raise ConfigTypeError(f"{path} is partial; give a whole {choice.default.__name__}.")
        if not isinstance(value, base) or short(type(value)) not in choice.kinds:
            raise ConfigTypeError(f"{path} is of type {type(value).__name__}, which no file can name.")
        return {choice.key: short(type(value)), **chosen(value, path)}

    return written


_write_cache = _write_choice(CACHES, CacheConfig)
_write_calibrator = _write_choice(CALIBRATORS, CalibratorConfig)


def _write_modifiers(value: Any, path: str) -> Any:
    if isinstance(value, (list, tuple)):
        return [_write_modifiers(one, f"{path}[{number}]") for number, one in enumerate(value)]
    if not isinstance(value, ParamsModifier):
        raise ConfigTypeError(f"{path} is of type {type(value).__name__}; give a ParamsModifier.")
    parts = (
        ("cache_config", value.cache_config, _write_cache),
        ("calibrator_config", value.calibrator_config, _write_calibrator),
    )
    return {
        name: plain(one.fields, f"{path}.{name}")
        if isinstance(one, Override)
        else write(one, f"{path}.{name}")
        for name, one, write in parts
        if one is not None
    }


def _class(load: Callable[[], type]) -> Handler:
    """A section that is the options of one class."""

    def read(given: Any, place: Place, made: Sections) -> None:
        made[place.path] = called(load(), given, place)

    def written(value: Any, path: str) -> Any:
        instance_of(load())(path, value)
        return chosen(value, path)

    return Handler(read, written, load)


def _arguments(load: Callable[[], Callable[..., Any]]) -> Handler:
    """A section that is the arguments of a function, by their names."""

    def read(given: Any, place: Place, made: Sections) -> None:
        made[place.path] = validated(load(), given, place)

    return Handler(read, plain, load)


def _parallelism() -> type:
    from cache_dit.parallelism import ParallelismConfig

    return ParallelismConfig


def _quantize() -> Callable[..., Any]:
    from cache_dit.quantize import quantize

    return quantize


def _compile() -> Callable[..., Any]:
    from cache_dit.compile import set_compile_configs

    return set_compile_configs


def _read_backend(given: Any, place: Place, made: Sections) -> None:
    from cache_dit.attention import attn_backends

    try:
        one_of(*attn_backends())(place.path, given)
    except ConfigError as error:
        raise Mistakes(*error.args) from error
    made[place.path] = given


HANDLERS: dict[str, Handler] = {
    # Only read: configurations are written out.
    "preset": Handler(_read_preset, plain),
    "cache_config": Handler(_read_choice(CACHES), _write_cache),
    "calibrator_config": Handler(_read_choice(CALIBRATORS), _write_calibrator),
    "params_modifiers": Handler(_read_modifiers, _write_modifiers),
    "parallelism_config": _class(_parallelism),
    "quantize_config": _arguments(_quantize),
    "attention_backend": Handler(_read_backend, plain),
    "compile_config": _arguments(_compile),
}
