"""What a cache keeps between the steps, told from shapes alone: nothing is computed and nothing is kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from cache_dit.api import attachments_of, disable_cache, enable_cache
from cache_dit.caching.engine.plan import COND, UNCOND, Plan, Segment
from cache_dit.caching.engine.ports import Call
from cache_dit.caching.engine.state import SegmentState
from cache_dit.caching.maths.gate import Probe, Reason, Signal, Verdict
from cache_dit.caching.maths.moment import Moment
from cache_dit.presets import Preset

_Calls = list[tuple[tuple[Any, ...], Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSize:
    """What the cache of one run keeps at most, all branches of guidance together.

    Attributes:
        steady: Bytes, once the histories are full; the number of steps changes nothing.
        for_each_step: Bytes that every computed step adds: only the estimate (`presets.trajectory`,
            `presets.tolerance`) keeps all computed outputs until the run ends. Else 0.
    """

    steady: int
    for_each_step: int = 0

    def total(self, *, computed_steps: int = 0, requests: int = 1) -> int:
        """Bytes of so many runs that are under way at once.

        Args:
            computed_steps: Of each run; only counts where `for_each_step` is not 0. Default 0.
            requests: Runs. Default 1.
        """
        return requests * (self.steady + computed_steps * self.for_each_step)


def state_size(
    model: nn.Module, inputs: Mapping[str, Any], preset: Preset, *, branches: int = 1
) -> StateSize:
    """Tell how much a configuration will keep for a model, before there is memory for either.

    One forward shows the shapes, and histories are filled with tensors of them. On the device "meta" this
    takes some seconds for a published model: no weights, no values. The number is what `summary` shows as
    `state_bytes` of a run that is long enough to fill the histories, and an upper bound of it for others.
    A tensor that two streams share (DiCache's probes) counts twice in both. Left out here are the ages of
    tokens (ToCa, DuCa: a number where a stream has a row) and what DMD has fitted (under 1 KiB for each
    sample and stream).

    Args:
        model: A transformer; its tensors may be on the device "meta". Caching is taken off it.
        inputs: Keyword arguments of its forward, on the same device; their batch is the batch of the answer.
        preset: The configuration.
        branches: Forwards in a step, 2 for classifier-free guidance in two calls. Default 1.

    Raises:
        ConfigError: The configuration does not fit the model.
    """
    enable_cache(model, preset)
    (attached,) = attachments_of(model)
    plan = attached.session.plan
    disable_cache(model)
    with torch.no_grad():
        calls, output = _watched(model, plan, inputs)
        latent = next((value for value in inputs.values() if isinstance(value, Tensor)), None)
        names = (COND, UNCOND) if branches == 2 else (COND,) * branches
        kept = sum(
            _filled(segment, calls[id(segment)], latent)
            for name in names
            for segment in plan.segments_of(name)
            if calls[id(segment)]
        )
    # The latent as moved so far, and outputs, in float32 at least: see `engine.estimation`.
    first = next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
    width = torch.promote_types(first.dtype, torch.float32).itemsize
    output_bytes = branches * first.numel() * width if plan.estimates else 0
    return StateSize(steady=kept + output_bytes, for_each_step=output_bytes)


def as_dtype(inputs: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The inputs with their floating-point tensors in another type."""
    cast = tree_map_only(Tensor, lambda each: each.to(dtype) if each.is_floating_point() else each, inputs)
    return dict(cast)


def _watched(model: nn.Module, plan: Plan, inputs: Mapping[str, Any]) -> tuple[dict[int, _Calls], Any]:
    """What enters and leaves every segment in one forward, and the output."""
    entries: defaultdict[int, list[tuple[Any, ...]]] = defaultdict(list)
    calls: defaultdict[int, _Calls] = defaultdict(list)

    def enter(segment: Segment, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entries[id(segment)].append(segment.entry(Call(type(block).__call__, block, args, kwargs)))

    def leave(segment: Segment, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        calls[id(segment)].append((entries[id(segment)].pop(), output))

    handles = []
    for segment in plan.segments:
        first, last = segment.blocks[segment.start], segment.blocks[segment.stop - 1]
        handles.append(first.register_forward_pre_hook(partial(enter, segment), with_kwargs=True))
        handles.append(last.register_forward_hook(partial(leave, segment)))
    try:
        output = model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return calls, output


def _filled(segment: Segment, calls: _Calls, latent: Tensor | None) -> int:
    """Bytes that the segment keeps in one branch after as many computed steps as it looks back."""
    state = SegmentState(segment)
    for step in range(segment.memory + segment.looks_back + 1):
        signal = _signal(segment, calls[0][0], latent)
        # At uneven gaps: DMD then fits nothing, for which it would need values.
        at = Moment(step, float(step**2), sigma=0.5, signal=signal)
        if segment.policy is not None:
            verdict = Verdict(False, Reason.WARMUP)
            state.gate = segment.policy.advance(state.gate, at, verdict, signal)
        part = state
        for number, (entry, output) in enumerate(calls):
            part = part.further() if number else part
            part.observe(at, entry, output)
            if segment.sided:
                for index in range(segment.start, segment.stop):
                    part.keep_sides(index, output)
        _look(segment, state, at, *calls[0])
    return state.count()


def _look(segment: Segment, state: SegmentState, at: Moment, entry: tuple[Any, ...], output: Any) -> None:
    """What gates keep of outputs, and of the block behind the segment."""
    main = state.main(state.values(output))
    if segment.policy is not None and segment.policy.gate.looks_at_output:
        seen = segment.policy.gate.sees(state.gate.gate, at, state.main(entry), main)
        state.gate = state.gate._replace(gate=seen)
    forecaster = state.forecasters[segment.ports.main]
    if segment.verifies and forecaster is not None:
        known = forecaster.init() if state.check is None else state.check
        state.check = forecaster.observe(known, at, main.clone())


def _signal(segment: Segment, entry: tuple[Any, ...], latent: Tensor | None) -> Any:
    """A tensor of the form that the gate looks at."""
    if segment.signal is Signal.NONE:
        return None
    if segment.signal is Signal.LATENT:
        return latent
    main = entry[segment.ports.main]
    main = main[-1] if segment.stacked else main
    return Probe(main.clone(), main.clone()) if segment.signal is Signal.PROBE else main.clone()
