"""What the engine does with one transformer, fixed when caching is enabled: its segments."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from cache_dit.caching.config import CacheConfig, check_mask_length
from cache_dit.caching.engine.ports import Call, Echo, Port, Ports
from cache_dit.caching.maths.forecaster import Forecaster
from cache_dit.caching.maths.gate import Policy, Signal
from cache_dit.caching.maths.tokens import Tokens
from cache_dit.caching.maths.trajectory import Trajectory

COND, UNCOND = "cond", "uncond"
"""Names of the branches of classifier-free guidance, as diffusers' pipelines give them."""

# What pipelines with a guider put before them.
_GUIDER_PREFIX = "pred_"

Modulate = Callable[[nn.Module, Mapping[str, Any]], Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Segment:
    """A run `[start, stop)` of blocks that is computed or forecast as a whole.

    Attributes:
        paths: Attribute paths of the lists that it goes through, for messages and reports.
        blocks: All blocks of these lists, in the order in which they run.
        start: First block of the segment.
        stop: One behind the last block of the segment.
        ports: How the streams travel; no slots where the block is opaque.
        parameters: Names of the arguments of a block, in order.
        policy: The rule that decides; None where the segment follows `leader`.
        leader: Index of the segment whose decision this one takes over.
        forecasters: One for each output slot; None for side outputs, and for streams that are handed through.
            One alone, for every tensor in the output, where the block is opaque.
        residual: Forecast the change over the segment; else what leaves it.
        stacked: The stream that enters is the last of several in one tensor.
        sigma_axis: Forecasts are made along the noise level, not the steps.
        dtype: Type in which values are kept; None: that of the stream.
        modulate: From a block and its arguments to the input that is modulated for the timestep.
        verifies: The first block behind the segment is compared with its own forecast on skipped steps.
        tokens: How tokens are chosen that an opaque module computes on skipped steps; None: it computes none.
        blank: What leaves it only enters a module that is skipped with it, so zeros do in its place.
        family: Segments of one number are parts of one block list.
        opaque: It is one module of which nothing is known but its output, a tree with tensors: an attention
            or feed-forward module inside of a block, or the transformer as a whole.
    """

    paths: tuple[str, ...]
    blocks: tuple[nn.Module, ...]
    start: int
    stop: int
    ports: Ports
    parameters: tuple[str, ...]
    policy: Policy | None
    leader: int
    forecasters: tuple[Forecaster | None, ...]
    residual: bool = True
    stacked: bool = False
    sigma_axis: bool = False
    dtype: torch.dtype | None = None
    modulate: Modulate | None = None
    verifies: bool = False
    tokens: Tokens | None = None
    blank: bool = False
    family: int = 0
    opaque: bool = False

    @property
    def label(self) -> str:
        """The paths, for messages."""
        return " + ".join(self.paths)

    def entry(self, call: Call) -> tuple[Any, ...]:
        """What enters in a call: one entry a slot, or every tensor where the block is opaque."""
        return call.tensors() if self.opaque else self.ports.read(call)

    @cached_property
    def signal(self) -> Signal:
        """What has to be looked at for a decision here."""
        return Signal.NONE if self.policy is None else self.policy.gate.signal

    @cached_property
    def prefixed(self) -> bool:
        """Whether the first blocks are watched."""
        return self.signal in (Signal.RESIDUAL, Signal.PROBE) and self.start > 0

    @cached_property
    def sided(self) -> bool:
        """Whether blocks have side outputs, which are replayed one by one."""
        return None in self.ports.slots

    @cached_property
    def looks_back(self) -> int:
        """How many of the latest signals a decision or a forecast uses."""
        needed = self.memory if any(made is not None and made.needs for made in self.forecasters) else 0
        return max(needed, 0 if self.policy is None else self.policy.gate.looks_back)

    @cached_property
    def memory(self) -> int:
        """How many of the latest computed steps a forecast uses."""
        return max((made.memory for made in self.forecasters if made is not None), default=0)


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of a block: its segment, its index in the list, and what stands in for it when skipped.

    `echo` is None where the block must be visited once the segment was entered: the last one, which delivers,
    and blocks with side outputs.
    """

    segment: int
    index: int
    echo: Echo | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """The segments of one transformer and how its forwards are told apart.

    Attributes:
        segments: In the order in which the forward reaches them.
        options: Those of the first list; the engine reads what counts for the whole transformer.
        timestep: The forward's timestep argument; None where it has none.
        shares_run: Several transformers take turns in a run, so its length is not the length of this one's.
        blocks: Every block of every list with its place.
        slots: The same for the blocks alone that a forward must visit.
        bypass: Whether a forward, by the names and values of its arguments, is no step and not to be counted.
        parameters: Names of the arguments of the forward, in order.
        controls: Arguments that add something between the blocks.
        muted: Modules between the blocks that need not be computed on skipped steps.
        mask_lengths: Lengths of the steps masks, to be held against the run; none: nothing to check.
        budget: Most bytes that the forecasts of one branch may keep; None: no limit.
        reads_noise: The noise level of a step is needed, so it is read from the scheduler or the timestep.
        whole: The segment whose one block is the transformer itself; None: there is none.
        uncond: The same for the unconditional branch alone, around all others and the last of them; likewise.
        estimates: Outputs are corrected by the best linear estimate, see `engine.estimation`.
        trajectory: What that is made from; None: what is expected of any model.
    """

    segments: tuple[Segment, ...]
    options: CacheConfig
    timestep: Port | None = None
    shares_run: bool = False
    bypass: Callable[[Mapping[str, Any]], bool] | None = None
    parameters: tuple[str, ...] = ()
    controls: tuple[Port, ...] = ()
    muted: tuple[nn.Module, ...] = ()
    mask_lengths: frozenset[int] = frozenset()
    budget: int | None = None
    reads_noise: bool = False
    estimates: bool = False
    trajectory: Trajectory | None = None
    whole: Slot | None = None
    uncond: Slot | None = None
    blocks: dict[nn.Module, Slot] = field(init=False)
    slots: dict[nn.Module, Slot] = field(init=False)

    def __post_init__(self) -> None:
        blocks: dict[nn.Module, Slot] = {}
        slots: dict[nn.Module, Slot] = {}
        for number, segment in enumerate(self.segments):
            if number in self.around:
                continue
            echo = segment.ports.echo()
            for index, block in enumerate(segment.blocks):
                inside = segment.start <= index < segment.stop
                visited = segment.sided or not inside or index == segment.stop - 1
                blocks[block] = Slot(number, index, None if visited else echo)
                watched = (index == 0 and segment.prefixed) or (index == segment.stop and segment.verifies)
                if inside or watched:
                    slots[block] = blocks[block]
        object.__setattr__(self, "blocks", blocks)
        object.__setattr__(self, "slots", slots)

    @property
    def calls_per_step(self) -> int | None:
        """Forwards in a step where branches carry no name; None: found from the timestep."""
        separate = self.options.enable_separate_cfg
        return None if separate is None else 1 + separate

    @property
    def around(self) -> dict[int, Slot]:
        """The segments, by number, whose one block is the transformer itself, the outer one last."""
        return {slot.segment: slot for slot in (self.whole, self.uncond) if slot is not None}

    def check_length(self, total: int | None) -> None:
        """Hold what was made for runs of one length against a run of `total` steps; None: not known.

        Raises:
            ConfigError: A steps mask has another length.
        """
        if total is None:
            return
        for length in self.mask_lengths:
            check_mask_length(length, total)
        tuned = self.options.tuned_steps
        if tuned not in (None, total):
            warnings.warn(
                f"tuned_steps is {tuned} but the run has {total} steps: schedules are stretched, thresholds "
                f"stay, and the figures of the tuning do not hold; run {tuned} steps, or tune again.",
                stacklevel=2,
            )

    def label(self, branch: str | int) -> str:
        """The name of a branch that has one, or what tells it from the others."""
        if isinstance(branch, str):
            return branch.removeprefix(_GUIDER_PREFIX)
        if self.calls_per_step == 2:
            return UNCOND if (branch == 0) == self.options.cfg_compute_first else COND
        return "" if branch == 0 else f"call {branch}"

    def local_step(self, step: int, total: int | None) -> tuple[int, int | None]:
        """The step since the last forced refresh, 0 where it is one, and the steps from that to the next."""
        hint = self.options.force_refresh_step_hint
        if hint is None:
            return step, total
        repeats = self.options.force_refresh_step_policy == "repeat"
        start = step // hint * hint if repeats else hint if step >= hint else 0
        rest = None if total is None else total - start
        bounded = repeats or start == 0
        return step - start, rest if not bounded else hint if rest is None else min(hint, rest)

    def segments_of(self, branch: str) -> tuple[Segment, ...]:
        """The segments that a branch has."""
        others = self.uncond is not None and branch != UNCOND
        return self.segments[:-1] if others else self.segments
