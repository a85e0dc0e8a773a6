"""FLOPs of models without their weights, uncached and cached: what a step costs, and what a run does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cache_dit.api import attachments_of, disable_cache, enable_cache
from cache_dit.bench.flops_models import INPUTS, KNOWN, Known, Size
from cache_dit.errors import CacheDiTError, ConfigError, nearest
from cache_dit.presets import Preset
from cache_dit.stats.flops import forward_flops

_LARGEST = 2**20
_TERA = 1e12


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """A model on the device "meta", and the FLOPs of one forward of it.

    Attributes:
        name: As it was asked for.
        model: The transformer, without values.
        size: What is drawn.
        modules: FLOPs of every module, the model itself included.
    """

    name: str
    model: nn.Module
    size: Size
    modules: Mapping[nn.Module, int]

    @property
    def step(self) -> float:
        """TFLOP of a computed step, a forward of one branch."""
        return self.modules[self.model] / _TERA

    def saved(self, preset: Preset) -> float:
        """TFLOP that a step saves on which everything is skipped that a configuration may skip.

        Raises:
            ConfigError: The configuration does not fit the model.
        """
        enable_cache(self.model, preset)
        try:
            (attached,) = attachments_of(self.model)
            parts = attached.session.plan.segments
            return (
                sum(self.modules[block] for part in parts for block in part.blocks[part.start : part.stop])
                / _TERA
            )
        finally:
            disable_cache(self.model)

    def rows(self, depth: int) -> list[tuple[str, str, int, float]]:
        """Path, class, count and TFLOP of modules down to a depth; equal members of a list are one row."""
        found: dict[tuple[str, str], list[float]] = {}
        for path, module in self.model.named_modules():
            flops = self.modules[module]
            if path and flops and len(path.split(".")) <= depth:
                plain = ".".join("*" if part.isdigit() else part for part in path.split("."))
                found.setdefault((plain, type(module).__name__), []).append(flops / _TERA)
        return [(path, kind, len(all_), sum(all_)) for (path, kind), all_ in found.items()]


def count(
    name: str,
    *,
    height: int | None = None,
    width: int | None = None,
    frames: int | None = None,
    text_tokens: int | None = None,
) -> Counted:
    """Count the FLOPs of a forward of batch 1 on the device "meta": no weights, no memory, some seconds.

    Args:
        name: Name of a published model (`flops_models.KNOWN`), the config.json of a transformer, or the name
            of its class in diffusers, which stands for the defaults of that class.
        height: In pixels; None: that of the published model, 1024 for others.
        width: Likewise.
        frames: Of a video; None: likewise, 1 for others.
        text_tokens: Length of the prompt; None: likewise, 512 for others.

    Raises:
        ConfigError: There is no such model, its inputs are not known, or the size does not fit.
    """
    known = _known(name)
    given = {"height": height, "width": width, "frames": frames, "text_tokens": text_tokens}
    size = replace(known.size, **{key: value for key, value in given.items() if value is not None})
    if size.height % 16 or size.width % 16 or size.frames % 4 != 1 or min(size.height, size.width) < 16:
        raise ConfigError(
            f"the size is {size.width}x{size.height} with {size.frames} frames; give multiples of 16, and 1, "
            "5, 9, ... frames."
        )
    model, inputs = _on_meta(known, size)
    modules = forward_flops(model, (), inputs)
    if modules is None:
        raise CacheDiTError(f"the FLOPs of {known.kind} with {size} cannot be counted on the device meta.")
    return Counted(name=name, model=model, size=size, modules=modules)


def implied(counted: Counted, preset: Preset, tflops: float, steps: int) -> float:
    """Cached steps of a run that has so many TFLOP."""
    return (steps * counted.step - tflops) / counted.saved(preset)


def _known(name: str) -> Known:
    if name.endswith(".json"):
        return _of_file(Path(name))
    if name in KNOWN:
        return KNOWN[name]
    if name not in INPUTS:
        hint = nearest(name, (*KNOWN, *INPUTS))
        meant = f"Did you mean {hint!r}?" if hint else f"Known are: {', '.join((*KNOWN, *INPUTS))}."
        raise ConfigError(
            f"there is no model {name!r}; give such a name or the path of a config.json. {meant}"
        )
    return Known(kind=name)


def _of_file(path: Path) -> Known:
    if not path.is_file() or path.stat().st_size > _LARGEST:
        raise ConfigError(f"{path} is no file of at most 1 MiB; give the config.json of a transformer.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON: {error}.") from error
    kind = found.get("_class_name") if isinstance(found, dict) else None
    if not isinstance(kind, str) or kind not in INPUTS:
        raise ConfigError(
            f"{path} is of the class {kind!r}, whose inputs are not known; known are {', '.join(INPUTS)}."
        )
    return Known(kind=kind, config={key: value for key, value in found.items() if not key.startswith("_")})


def _on_meta(known: Known, size: Size) -> tuple[Any, dict[str, Any]]:
    """The model without values, and the arguments of a forward."""
    import diffusers

    kind = getattr(diffusers, known.kind, None)
    if kind is None:
        raise ConfigError(f"diffusers {diffusers.__version__} has no {known.kind}; install a newer one.")
    try:
        with torch.device("meta"):
            model = kind.from_config(dict(known.config))
        return model, INPUTS[known.kind](dict(model.config), size)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{known.kind} cannot be made with this configuration: {error}") from error
