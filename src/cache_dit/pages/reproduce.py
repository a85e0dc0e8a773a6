"""How to do it again: the code, and what it ran with."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from cache_dit._version import __version__
from cache_dit.caching.attach.attachment import Attachment
from cache_dit.caching.attach.declared import Setting

_PACKAGES = ("torch", "diffusers", "transformers")
_LONGEST = 300  # characters; what takes more is measured data


def code_of(pipe: Any, attached: Sequence[Attachment], steps: int) -> str:
    """Python that enables the same configuration on such a pipeline and runs it.

    What is as long as measured data is written as `...`.
    """
    kind, name = type(pipe).__name__, getattr(pipe, "name_or_path", "") or "..."
    known = "..." if name == "..." or Path(name).exists() else repr(name)
    if isinstance(pipe, torch.nn.Module):
        made = f"from diffusers import {kind}\n\npipe = {kind}.from_pretrained({known})"
    else:
        made = f"from diffusers import DiffusionPipeline\n\npipe = DiffusionPipeline.from_pretrained({known})"
    arguments = ["pipe", *_arguments(attached)]
    body = "".join(f"\n    {argument}," for argument in arguments)
    lines = ["import cache_dit", made, f"cache_dit.enable_cache({body}\n)"]
    if not isinstance(pipe, torch.nn.Module):
        lines.append(f"image = pipe(prompt, num_inference_steps={steps}).images[0]")
    return "\n".join(lines)


def _arguments(attached: Sequence[Attachment]) -> Iterator[str]:
    settings = [setting for one in attached for setting in one.settings]
    if len(set(map(_plain, settings))) == 1:
        yield from _plain(settings[0])
        return
    made = [
        f"cache_dit.ParamsModifier(cache_config={cache}, calibrator_config={calibrator})"
        for cache, calibrator in map(_plain, settings)
    ]
    yield "params_modifiers=[" + "".join(f"\n        {one}," for one in made) + "\n    ]"


def _plain(setting: Setting) -> tuple[str, str]:
    return expression(setting.cache), expression(setting.calibrator)


def expression(value: Any) -> str:
    """A value as Python: options with the fields that differ from their defaults."""
    if isinstance(value, Enum):
        return f"cache_dit.{type(value).__name__}.{value.name}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = [
            f"{field.name}={expression(getattr(value, field.name))}"
            for field in dataclasses.fields(value)
            if field.init and not _is_default(field, getattr(value, field.name))
        ]
        own = "cache_dit." if type(value).__module__.startswith("cache_dit.") else ""
        return f"{own}{type(value).__name__}({', '.join(changed)})"
    text = repr(value)
    return text if len(text) <= _LONGEST and not text.startswith("<") else "..."


def _is_default(field: dataclasses.Field[Any], value: Any) -> bool:
    # By their text: what is compared may be a tensor.
    return field.default is not dataclasses.MISSING and repr(field.default) == repr(value)


def versions() -> list[tuple[str, str]]:
    """What the report was made with: packages, Python, and the machine in words."""
    found = [(name, _version(name)) for name in _PACKAGES]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {platform.machine()}"
    return [
        ("cache_dit", __version__),
        *((name, version) for name, version in found if version),
        ("Python", platform.python_version()),
        ("system", platform.system()),
        ("device", device),
        ("threads", str(torch.get_num_threads())),
    ]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
