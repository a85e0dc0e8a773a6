"""Async Ulysses: values and queries travel while the next projection is computed.

Before a processor runs, its projections are made in the order values, queries, keys, with norms and
rotation, and each is sent off at once. Then the processor's own code runs with a stand-in for its attention
module, whose projections return what is there already; where it calls attention, what has travelled meanwhile
is taken.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Rotate = Callable[[Tensor, Any], Tensor]
"""From (B, s, H, D) and what the block was given to rotate it by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """How a processor makes queries, keys and values.

    Attributes:
        processor: Its class name.
        rotation: The argument to rotate by.
        rotate: Turns queries and keys.
        apart: Text and image are rotated each by an entry of that argument: image first.
    """

    processor: str
    rotation: str = "image_rotary_emb"
    rotate: Rotate
    apart: bool = False


def _rotate_real(tensor: Tensor, rotation: Any) -> Tensor:
    from diffusers.models.embeddings import apply_rotary_emb

    rotated: Tensor = apply_rotary_emb(tensor, rotation, sequence_dim=1)
    return rotated


def _rotate_complex(tensor: Tensor, rotation: Tensor) -> Tensor:
    pairs = torch.view_as_complex(tensor.float().unflatten(-1, (-1, 2)).contiguous())
    # (s, D / 2) for all samples, or (B, s, D / 2).
    return torch.view_as_real(pairs * rotation.unsqueeze(-2)).flatten(-2).type_as(tensor)


OVERLAPS = {
    one.processor: one
    for one in (
        Overlap(processor="FluxAttnProcessor", rotate=_rotate_real),
        Overlap(processor="Flux2AttnProcessor", rotate=_rotate_real),
        Overlap(processor="LongCatImageAttnProcessor", rotate=_rotate_real),
        Overlap(processor="OvisImageAttnProcessor", rotate=_rotate_real),
        Overlap(processor="QwenDoubleStreamAttnProcessor2_0", rotate=_rotate_complex, apart=True),
        Overlap(processor="ZSingleStreamAttnProcessor", rotation="freqs_cis", rotate=_rotate_complex),
    )
}
"""By class name of the processor."""


@dataclass(frozen=True, slots=True)
class Made:
    """The streams of one projection, (B, s, H, D) each, text first."""

    parts: tuple[Tensor, ...]

    def joined(self) -> Tensor:
        """All tokens, as attention gets them."""
        return self.parts[0] if len(self.parts) == 1 else torch.cat(self.parts, 1)


def projections(
    overlap: Overlap, module: Any, hidden: Tensor, encoder: Tensor | None, rotation: Any
) -> Iterator[Made]:
    """Values, queries and keys, each made when it is asked for."""
    rotated = (rotation[1], rotation[0]) if overlap.apart and rotation is not None else rotation
    for letter in "vqk":
        parts = tuple(_parts(module, letter, hidden, encoder))
        if letter != "v" and rotation is not None:
            parts = _rotated(overlap, parts, rotated)
        yield Made(parts)


def _parts(module: Any, letter: str, hidden: Tensor, encoder: Tensor | None) -> Iterator[Tensor]:
    streams = (
        (encoder, f"add_{letter}_proj", f"norm_added_{letter}"),
        (hidden, f"to_{letter}", f"norm_{letter}"),
    )
    width = getattr(module, "head_dim", None) or module.inner_dim // module.heads
    for stream, projection, norm in streams:
        if stream is not None:
            made = getattr(module, projection)(stream).unflatten(-1, (-1, width))
            norms = None if letter == "v" else getattr(module, norm, None)
            yield made if norms is None else norms(made)


def _rotated(overlap: Overlap, parts: tuple[Tensor, ...], rotation: Any) -> tuple[Tensor, ...]:
    if overlap.apart:
        return tuple(overlap.rotate(part, own) for part, own in zip(parts, rotation, strict=True))
    lengths = [part.shape[1] for part in parts]
    whole = overlap.rotate(Made(parts).joined(), rotation)
    return tuple(whole.split(lengths, 1))


class StandIn:
    """An attention module whose projections are made already.

    Args:
        module: The module itself, for everything else.
        made: Values, queries and keys.
    """

    def __init__(self, module: nn.Module, made: Sequence[Made]) -> None:
        self._module = module
        for letter, one in zip("vqk", made, strict=True):
            flat = [part.flatten(2) for part in one.parts]
            setattr(self, f"to_{letter}", _given(flat[-1]))
            setattr(self, f"add_{letter}_proj", _given(flat[0]))
            setattr(self, f"norm_{letter}", _same)
            setattr(self, f"norm_added_{letter}", _same)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _given(value: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda stream: value


def _same(value: Tensor) -> Tensor:
    return value


def overlapping(kind: type, overlap: Overlap, send: Callable[[Iterator[Made]], Sequence[Made]]) -> type:
    """A subclass of a processor's class that sends projections off as they are made.

    Args:
        kind: Its attention must take what was sent off.
        overlap: How it makes them.
        send: Sends values, queries and keys off as it takes them, and returns them.
    """
    call: Callable[..., Any] = kind.__call__
    signature = inspect.signature(call)

    # Attention modules pass on what the signature names.
    @functools.wraps(call)
    def __call__(self: Any, attn: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(attn, "fused_projections", False):
            return call(self, attn, *args, **kwargs)
        given = signature.bind(self, attn, *args, **kwargs)
        named = given.arguments
        streams = named["hidden_states"], named.get("encoder_hidden_states")
        made = send(projections(overlap, attn, *streams, named.get(overlap.rotation)))
        named["attn"] = StandIn(attn, made)
        if overlap.rotation in named:
            named[overlap.rotation] = None
        return call(*given.args, **given.kwargs)

    same = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(kind)(kind.__name__, (kind,), {**same, "__call__": torch.compiler.disable(__call__)})
