"""Denoising loops around a bare tiny transformer, taken step by step, and decisions as strings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cache_dit import Request
from cache_dit.api import attachments_of

from .image_models import FLUX

_SHARED = ("img_ids", "txt_ids")


class Denoising:
    """One image in the making, with a bare tiny Flux transformer and an Euler scheduler.

    Args:
        model: The transformer.
        seed: Draws noise and prompts.
        steps: Steps of the whole run.
        branches: Name of each forward of a step; None where nothing is named.
        request: Entered around every forward, if given; may be exchanged on the way.
        batch: Number of images; at most that of the tiny inputs.
    """

    def __init__(
        self,
        model: nn.Module,
        seed: int,
        steps: int = 6,
        branches: Sequence[str | None] = (None,),
        request: Request | None = None,
        batch: int = 2,
    ) -> None:
        self.model: Any = model
        self.steps = steps
        self.branches = branches
        self.step = 0
        self.request = request or contextlib.nullcontext()
        self._inputs = {
            name: value if name in _SHARED else value[:batch] for name, value in FLUX.inputs(seed).items()
        }
        self._texts = [
            FLUX.inputs(seed + 500 * place)["encoder_hidden_states"][:batch] for place in range(len(branches))
        ]
        self.latents: Tensor = self._inputs["hidden_states"]

    def time(self, step: int) -> float:
        return 1.0 - step / self.steps

    @torch.no_grad()
    def forward(self, place: int) -> Tensor:
        """The forward of one branch at the current step."""
        name = self.branches[place]
        named = self.model.cache_context(name) if name else contextlib.nullcontext()
        timestep = torch.full((len(self.latents),), self.time(self.step), dtype=self.latents.dtype)
        changing = {"hidden_states": self.latents, "timestep": timestep}
        changing["encoder_hidden_states"] = self._texts[place]
        with self.request, named:
            output: Tensor = self.model(**self._inputs | changing, return_dict=False)[0]
        return output

    def advance(self) -> None:
        """Take one step."""
        self._take([self.forward(place) for place in range(len(self.branches))])

    def forwards(self) -> Iterator[None]:
        """Take the remaining steps, one forward at a time."""
        while self.step < self.steps:
            predictions = []
            for place in range(len(self.branches)):
                predictions.append(self.forward(place))
                if place + 1 == len(self.branches):
                    self._take(predictions)
                yield

    def _take(self, predictions: list[Tensor]) -> None:
        guided = predictions[0] + 2.0 * (predictions[0] - predictions[-1])
        self.latents = self.latents + guided * (self.time(self.step + 1) - self.time(self.step))
        self.step += 1

    def halve(self) -> None:
        """Leave out the second image of the batch from now on."""
        self.latents = self.latents[:1]
        self._inputs = {name: value if name in _SHARED else value[:1] for name, value in self._inputs.items()}
        self._texts = [text[:1] for text in self._texts]

    def to(self, dtype: torch.dtype) -> None:
        """Go on in another precision."""
        self.latents = self.latents.to(dtype)
        self._inputs = {name: value.to(dtype) for name, value in self._inputs.items()}
        self._texts = [text.to(dtype) for text in self._texts]

    def finish(self) -> Tensor:
        """Take the remaining steps and return the result."""
        while self.step < self.steps:
            self.advance()
        return self.latents


def small_flux() -> Any:
    """The tiny Flux with 3 and 2 blocks, for tests that need many forwards."""
    model: Any = FLUX.build()
    model.transformer_blocks = model.transformer_blocks[:3]
    model.single_transformer_blocks = model.single_transformer_blocks[:2]
    return model


def decisions(target: Any, branch: int = 0, which: int = 0) -> str:
    """The last run of one transformer and its first list, one letter a step: C computed, S skipped."""
    record = attachments_of(target)[which].session.latest
    assert record is not None, "nothing has run"
    return "".join("CS"[step.verdict.skip] for step in record.of(0, record.branches[branch]))
