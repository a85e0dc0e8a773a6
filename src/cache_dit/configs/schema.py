"""The JSON schema of configuration files, from the pydantic models and the docstrings."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from cache_dit.configs.classes import CACHES, CALIBRATORS, Choice
from cache_dit.configs.sections import HANDLERS
from cache_dit.configs.validation import model_of
from cache_dit.presets import NAMED

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema() -> dict[str, Any]:
    """The schema, with one definition for every option class and preset."""
    others = {name: handler.load() for name, handler in HANDLERS.items() if handler.load is not None}
    targets = [*CACHES.kinds.values(), *CALIBRATORS.kinds.values(), *NAMED.values(), *others.values()]
    models = {target: model_of(target) for target in targets}
    _, made = models_json_schema(
        [(model, "validation") for model in models.values()], ref_template="#/$defs/{model}"
    )
    definitions = made["$defs"]
    for choice in (CACHES, CALIBRATORS):
        for short, kind in choice.kinds.items():
            own = {"description": "The class.", "enum": [short, kind.__name__]}
            definitions[kind.__name__]["properties"] = {
                choice.key: own,
                **definitions[kind.__name__]["properties"],
            }
    for name in NAMED:
        definitions[name]["properties"]["name"] = {"const": name}
    return {
        "$schema": _DIALECT,
        "title": "Configuration of cache_dit",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "$schema": {"type": "string"},
            "$comment": {"type": "string"},
            "preset": {"anyOf": [{"enum": list(NAMED)}, *(_reference(name) for name in NAMED)]},
            "cache_config": _any_of(CACHES),
            "calibrator_config": _any_of(CALIBRATORS),
            "params_modifiers": {"anyOf": [_reference("modifier"), _reference("modifiers")]},
            "attention_backend": {"type": "string"},
            **{name: _reference(target.__name__) for name, target in others.items()},
        },
        "$defs": {
            **definitions,
            "modifier": {
                "type": "object",
                "additionalProperties": False,
                "properties": {"cache_config": _any_of(CACHES), "calibrator_config": _any_of(CALIBRATORS)},
            },
            "modifiers": {
                "type": "array",
                "items": {"anyOf": [_reference("modifier"), _reference("modifiers")]},
            },
        },
    }


def _any_of(choice: Choice) -> dict[str, Any]:
    return {"anyOf": [_reference(kind.__name__) for kind in choice.kinds.values()]}


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/$defs/{name}"}
