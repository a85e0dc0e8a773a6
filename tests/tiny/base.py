"""Tiny float32 transformers of diffusers with weights for which every block matters.

A fresh diffusers model is a poor test subject: gates and output layers may start at zero, and linear layers
shrink their input, so leaving out a block would hardly change the output. `_randomise` therefore redraws
every parameter at unit gain.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from .versions import needs, reason

Inputs = dict[str, Any]
InputsOf = Callable[[int], Inputs]

BATCH = 2


@dataclass(frozen=True, eq=False)
class TinyModel:
    """One tiny model: how to build it, what to feed it, and where its blocks are."""

    name: str
    """Class name in diffusers."""
    build: Callable[[], nn.Module]
    """Build the model: always the same weights, float32, in evaluation mode."""
    inputs: InputsOf
    """Seed -> keyword arguments of one forward; from seed 0 to 9 the timestep falls as it does in a run."""
    block_lists: tuple[str, ...]
    """Labels of the block lists (their attribute names), in loop order."""
    variants: Mapping[str, InputsOf] = field(default_factory=lambda: MappingProxyType({}))
    """Name -> inputs with extra arguments that act between or around blocks."""
    bypassed: InputsOf | None = None
    """Inputs of a forward that is no denoising step, where the class has such."""
    prepare: Callable[[Any], None] = lambda model: None
    """What a loaded model needs besides its weights; `build` does it."""
    label: str = ""
    """Tells several configurations of one class apart."""

    @property
    def id(self) -> str:
        return f"{self.name}-{self.label}" if self.label else self.name


class Draw:
    """Seeded source of the inputs of one forward."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self.time = 0.95 - 0.09 * (seed % 10)

    def __call__(self, *shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=self._generator)

    def residuals(self, count: int, *shape: int) -> list[Tensor]:
        """Large enough to notice a residual that is dropped or added twice."""
        return [self(*shape, scale=0.5) for _ in range(count)]


def output_of(model: nn.Module, kwargs: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """Run one forward without gradients and return all output tensors."""
    # HunyuanDiT empties the list of residuals that it is given.
    own = {name: list(value) if isinstance(value, list) else value for name, value in kwargs.items()}
    # Some models always return their tensor as it is.
    if "return_dict" in inspect.signature(model.forward).parameters:
        own["return_dict"] = False
    needs(type(model).__name__, model.forward, own)
    with torch.no_grad():
        return tuple(_tensors(model(**own)))


def _tensors(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return _tensors(list(value.values()))
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


@torch.no_grad()
def _randomise(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
        else:
            centre = 1.0 if bool((parameter == 1).all()) else 0.0
            parameter.normal_(mean=centre, std=0.1)


def _build(class_name: str, seed: int, config: Mapping[str, Any], gains: Mapping[str, float]) -> nn.Module:
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # Chroma imports its position embedding from where diffusers itself no longer wants it.
        warnings.filterwarnings("ignore", message="`FluxPosEmbed` is deprecated", category=FutureWarning)
        torch.manual_seed(seed)
        kind = _class(class_name)
        needs(class_name, kind.__init__, config)
        model = kind(**config)
        _randomise(model)
    for name, gain in gains.items():
        model.get_parameter(name).data.mul_(gain)
    return model.eval()


def _class(name: str) -> Any:
    kind = getattr(diffusers, name, None)
    if kind is None:
        pytest.skip(reason(f"has no {name}"))
    return kind


def if_taken(class_name: str, **arguments: Any) -> Inputs:
    """Those of `arguments` that the forward of the class takes: releases of diffusers differ."""
    taken = inspect.signature(getattr(diffusers, class_name).forward).parameters
    return {name: value for name, value in arguments.items() if name in taken}


def builder(
    class_name: str, seed: int, gains: Mapping[str, float] | None = None, **config: Any
) -> Callable[[], nn.Module]:
    """Builder of a model with `config`; `gains` scales the named parameters."""
    return functools.partial(_build, class_name, seed, config, gains or {})


def with_extra(inputs: InputsOf, extra: Callable[[Draw], Inputs]) -> InputsOf:
    # The extra draw has its own stream, so that a variant differs from the plain inputs only by what it adds.
    return lambda seed: inputs(seed) | extra(Draw(seed + 100_000))


def keep_all_but(masked: int, length: int) -> Tensor:
    """Token mask of a batch whose second sample ends in `masked` padding tokens."""
    mask = torch.ones(BATCH, length, dtype=torch.bool)
    mask[1, length - masked :] = False
    return mask
