"""The engine of one transformer: from a forward to its request, branch and step, and back with a record."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from cache_dit.caching.engine.clock import Clock, Tick
from cache_dit.caching.engine.condition import Watch
from cache_dit.caching.engine.estimation import Estimation
from cache_dit.caching.engine.flow import FlowCheck
from cache_dit.caching.engine.forward import Frame, SegmentRun, current_frame, first_tensor
from cache_dit.caching.engine.plan import COND, UNCOND, Plan, Slot
from cache_dit.caching.engine.ports import Arguments, Keywords
from cache_dit.caching.engine.records import RunRecord, StepRecord
from cache_dit.caching.engine.requests import LiveRuns, Noise, Request, branch_name
from cache_dit.caching.engine.samples import batch_of, call_samples, joined, split
from cache_dit.caching.engine.state import SegmentState
from cache_dit.caching.maths.gate import Reason, Signal, Verdict
from cache_dit.caching.maths.moment import Moment, Reduce
from cache_dit.errors import ConfigError


@dataclass(slots=True, weakref_slot=True, eq=False)
class RunState:
    """Everything that one request keeps for one transformer."""

    clock: Clock
    total: int | None
    record: RunRecord
    noise: Noise | None = None
    branches: dict[str | int, list[SegmentState]] = field(default_factory=dict)
    conditions: dict[str | int, Hashable] = field(default_factory=dict)
    positions: dict[str | int, int] = field(default_factory=dict)
    watch: Watch = field(default_factory=Watch)
    verdicts: dict[int, Verdict] = field(default_factory=dict)
    guide: tuple[int, tuple[Any, ...]] | None = None
    estimations: dict[str | int, list[Estimation]] = field(default_factory=dict)
    marker: float | None = None
    largest: float = 0.0
    position: int | None = None

    def is_over(self, step: int) -> bool:
        """Whether a step is behind the end of the run, as far as that is known."""
        return self.total is not None and step >= self.total


class Session:
    """Caching of one transformer under one plan. Another configuration is another session.

    Attributes:
        plan: What is cached and how.
        live: The runs that keep state in this transformer, under this plan or another.
        latest: Record of the run that began last.
        example: Arguments of the latest run's first forward, as tensors without memory (device "meta").
    """

    def __init__(self, plan: Plan, live: LiveRuns) -> None:
        self.plan = plan
        self.live = live
        self.latest: RunRecord | None = None
        self.example: tuple[Arguments, Keywords] | None = None
        self._verified = False

    def forward(
        self,
        request: Request,
        call: Callable[..., Any],
        model: nn.Module,
        args: Arguments,
        kwargs: Keywords,
        reduce: Reduce | None = None,
    ) -> Any:
        """One forward for a request; `call` is the model's own, `reduce` adds up over its ranks."""
        if self.plan.bypass is not None:
            given = dict(zip(self.plan.parameters, args, strict=False))
            if self.plan.bypass({**given, **kwargs}):
                return call(model, *args, **kwargs)
        try:
            return self._forward(request, call, model, args, kwargs, reduce)
        except BaseException:
            # A run that broke off must leave nothing for the next one.
            self.drop(request)
            raise

    def drop(self, request: Request) -> None:
        """Forget what a request has kept here."""
        state = request.states.pop(self, None)
        if state is not None:
            self.live.release(state)

    def _forward(
        self,
        request: Request,
        call: Callable[..., Any],
        model: nn.Module,
        args: Arguments,
        kwargs: Keywords,
        reduce: Reduce | None,
    ) -> Any:
        state, tick, resumed = self._tick(request, model, args, kwargs)
        label = self._label(tick.branch)
        step, restart = self._local_step(tick.step)
        if restart:
            state.estimations.pop(tick.branch, None)
        count = batch_of(args, kwargs) if self.plan.per_sample else 1
        own, segments = self.plan.segments_of(label), state.branches.get(tick.branch)
        if restart or segments is None or len(segments) != count * len(own):
            segments = state.branches[tick.branch] = [SegmentState(one) for _ in range(count) for one in own]
        condition = state.watch.condition(model, self.plan.controls, args, kwargs)
        if reduce is not None:
            # A part of a sequence may keep its length while that of another rank changes.
            condition = condition, _shapes((args, kwargs))
        switched = resumed or state.conditions.setdefault(tick.branch, condition) != condition
        if switched:
            state.conditions[tick.branch] = condition
            state.estimations.pop(tick.branch, None)
            for segment in segments:
                segment.forget()
        forced = Reason.SWITCHED if switched else None if state.clock.certain else Reason.UNCERTAIN
        place = self._moment(state, tick, step)._replace(reduce=reduce)
        # Later branches of a step take over what its first branch has measured or, unseen, decided.
        later = self.plan.share_change and tick.branch != next(iter(state.conditions))
        shared = state.verdicts if later else {}
        runs = self._runs(state, segments, place, forced, shared, args, kwargs)
        output, complete = self._call(runs, call, model, args, kwargs)
        if not complete:
            # Blocks were skipped but the last of them never ran, or a forecast failed its check: compute this
            # forward after all.
            reason = Reason.REJECTED if any(run.rejected for run in runs) else Reason.INCOMPLETE
            for run in runs:
                run.rewind()
            runs = self._runs(state, segments, place, reason, shared, args, kwargs)
            output, _ = self._call(runs, call, model, args, kwargs)
        self._verified = True
        if self.plan.uncond is not None:
            state.guide = (step, _kept(output)) if label == COND else None
        reached = self._reached(runs)
        self._note(state, tick, label, reached)
        runs = list(reached.values())
        if self.plan.estimates:
            output = self._estimated(state, tick, output, runs)
        if self.plan.budget is not None:
            self._fit(self.plan.budget, segments)
        if state.is_over(tick.step + 1):
            del state.branches[tick.branch]
            if not state.branches:
                state.guide = None
                self.live.release(state)
        return output

    def _tick(
        self, request: Request, model: nn.Module, args: Arguments, kwargs: Keywords
    ) -> tuple[RunState, Tick, bool]:
        """Also: whether steps of the run have gone by without this branch, as between two experts."""
        name = branch_name.get()
        position = None if request.timeline is None else request.timeline.position()
        marker = self._marker(request, name, args, kwargs) if position is None else position
        state: RunState | None = request.states.get(self)
        tick = None if state is None else state.clock.tick(name, marker)
        # A pipeline may take more steps than its scheduler tells, but then that scheduler has begun to count.
        countless = request.timeline is None or position == -1
        if state is None or tick is None or (countless and state.is_over(tick.step)):
            self.drop(request)
            state = request.states[self] = self._begin(request, model, args, kwargs)
            tick = state.clock.tick(name, marker)
        assert tick is not None  # a new clock takes any first tick
        state.position, state.marker = position, marker
        state.largest = max(state.largest, marker or 0.0)
        if position is None:
            return state, tick, False
        before = state.positions.get(tick.branch)
        state.positions[tick.branch] = position
        # Schedulers have no index, and so the position -1, before their first step.
        return state, tick, before is not None and 0 <= before < position - 1

    def _begin(self, request: Request, model: nn.Module, args: Arguments, kwargs: Keywords) -> RunState:
        total = request.num_inference_steps
        if total is None and request.timeline is not None and not self.plan.shares_run:
            total = request.timeline.total_steps()
        total = total or self.plan.total_steps
        self.plan.check_length(total)
        clock = Clock(self.plan.calls_per_step, strict=request.implicit)
        noise = request.noise
        if noise is None and self.plan.reads_noise and request.timeline is not None:
            noise = request.timeline.noise()
        state = RunState(clock, total, RunRecord(total_steps=total), noise)
        self.live.admit(state, type(model).__name__)
        self.latest = state.record
        self.example = tree_map_only(Tensor, lambda t: torch.empty_like(t, device="meta"), (args, kwargs))
        return state

    def _marker(self, request: Request, name: str | None, args: Arguments, kwargs: Keywords) -> float | None:
        """What tells steps apart. Reading the timestep may wait for the device, so it is the last resort."""
        known = name is not None or self.plan.calls_per_step is not None
        needed = self.plan.reads_noise and request.noise is None
        if self.plan.timestep is None or (known and not request.implicit and not needed):
            return None
        value = self.plan.timestep.read(args, kwargs)
        if isinstance(value, Tensor):
            # Some models give every token a timestep of its own, 0 for those that are given.
            return float(value.max() if value.numel() > 1 else value) if value.numel() else None
        return float(value) if isinstance(value, (int, float)) else None

    def _local_step(self, step: int) -> tuple[int, bool]:
        """Step since the last forced refresh, and whether this step is one."""
        hint = self.plan.refresh_step
        if hint is None or step < hint:
            return step, False
        local = step % hint if self.plan.refresh_repeats else step - hint
        return local, local == 0

    def _moment(self, state: RunState, tick: Tick, step: int) -> Moment:
        end = None if state.total is None else float(state.total - 1)
        return Moment(step, float(step), end, state.total, self._sigma(state, tick), None, [])

    def _sigma(self, state: RunState, tick: Tick) -> float | None:
        if state.noise is not None:
            index = _noise_index(state, tick)
            return state.noise.levels[index] if index < len(state.noise.levels) else None
        if state.marker is None or self.plan.timestep is None:
            return None
        # Timesteps count to 1000, or are noise levels already, as FLUX's.
        return state.marker / 1000.0 if state.largest > 1.5 else state.marker

    def _runs(
        self,
        state: RunState,
        segments: list[SegmentState],
        at: Moment,
        forced: Reason | None,
        shared: dict[int, Verdict],
        args: Arguments,
        kwargs: Keywords,
    ) -> list[SegmentRun]:
        runs: list[SegmentRun] = []
        for kept in segments:
            segment = kept.segment
            policy = segment.policy or self.plan.segments[segment.leader].policy
            assert policy is not None  # a leader has one
            known, leader, earlier = None, None, shared.get(len(runs))
            reason = Reason.AWAY if forced is None and self._was_away(segments, len(runs)) else forced
            if reason is not None:
                known = Verdict(False, reason)
            elif segment.policy is None:
                leader = runs[segment.leader]
            elif earlier is not None and segment.signal is Signal.NONE:
                known = earlier
            else:
                known = policy.decide(kept.gate, at)
            observes = policy.may_skip(at.step, segment.memory, state.total)
            watches = segment.signal is not Signal.NONE
            keeps_signal = watches and policy.may_skip(at.step, segment.looks_back, state.total)
            flow = None if self._verified or segment.opaque else FlowCheck(segment)
            latent = first_tensor(args, kwargs) if segment.signal is Signal.LATENT else None
            if self.plan.per_sample:
                # Of its own sample alone.
                latent = None if latent is None else latent[len(runs) : len(runs) + 1]
                at = at._replace(changes=[])
            guide = None
            if self.plan.uncond is not None and len(runs) == self.plan.uncond.segment:
                guide = state.guide[1] if state.guide is not None and state.guide[0] == at.step else ()
            change = None if earlier is None else earlier.change
            runs.append(
                SegmentRun(kept, at, known, leader, observes, keeps_signal, flow, latent, guide, change)
            )
        return runs

    def _was_away(self, segments: list[SegmentState], number: int) -> bool:
        """Whether a segment is in a branch that was skipped whole on the step before, so its past is old."""
        uncond = self.plan.uncond
        inside = uncond is not None and number < uncond.segment < len(segments)
        return inside and segments[-1].gate.continuous > 0

    def _call(
        self,
        runs: list[SegmentRun],
        call: Callable[..., Any],
        model: nn.Module,
        args: Arguments,
        kwargs: Keywords,
    ) -> tuple[Any, bool]:
        """The output, and whether all that was skipped was delivered and passed its check."""
        if all(run.idle for run in runs):
            return call(model, *args, **kwargs), True
        if self.plan.per_sample and self.plan.whole is not None:
            names = self.plan.parameters
            return call_samples(runs, self.plan.whole, call, model, names, args, kwargs), True
        # The first forward visits every block, to check the declared data flow. Asked of the runs, since
        # another thread may have ended its first forward meanwhile.
        slots = self.plan.blocks if any(run.flow is not None for run in runs) else self.plan.slots
        for number, slot in self.plan.around.items():
            call = _around(runs[number], slot, call) if number < len(runs) else call
        token = current_frame.set(Frame(slots, runs))
        try:
            output = call(model, *args, **kwargs)
        finally:
            current_frame.reset(token)
        # A list, since every run has to be ended.
        return output, all([run.finish() for run in runs])

    def _reached(self, runs: list[SegmentRun]) -> dict[int, SegmentRun]:
        """The runs by number; where all of the transformer was skipped, that one alone."""
        for number in () if self.plan.per_sample else reversed(self.plan.around):
            if number < len(runs) and runs[number].settle().skip:
                return {number: runs[number]}
        return dict(enumerate(runs))

    def _note(self, state: RunState, tick: Tick, label: str, runs: dict[int, SegmentRun]) -> None:
        uncond = self.plan.uncond
        for number, run in runs.items():
            verdict = run.settle()
            state.verdicts[number] = verdict
            # A branch that was computed has the records of what is inside.
            if verdict.skip or uncond is None or number != uncond.segment:
                branch, segment = label, number
                if self.plan.per_sample:
                    branch, segment = f"{label} sample {number}".lstrip(), 0
                state.record.steps.append(
                    StepRecord(branch, tick.step, segment, verdict, run.share, run.error)
                )
        if any(segment.grown for branch in state.branches.values() for segment in branch):
            state.record.state_bytes = max(state.record.state_bytes, self._bytes(state))

    def _bytes(self, state: RunState) -> int:
        kept = sum(segment.count() for branch in state.branches.values() for segment in branch)
        return kept + sum(one.nbytes for made in state.estimations.values() for one in made)

    def _estimated(self, state: RunState, tick: Tick, output: Any, runs: list[SegmentRun]) -> Any:
        """What is returned in the place of the output, see `engine.estimation`."""
        noise = state.noise
        index = 0 if noise is None else _noise_index(state, tick)
        if noise is None or noise.strides is None or index >= len(noise.strides):
            state.record.sampler_unknown = True
            return output
        parts, groups = [output], [runs]
        if self.plan.per_sample:
            parts, groups = split(output, len(runs)), [[run] for run in runs]
        kept = state.estimations.get(tick.branch)
        spoilt = any(run.settle().reason is Reason.NOT_FINITE for run in runs)
        if spoilt or kept is None or len(kept) != len(parts) or not kept[0].fits(parts[0]):
            replaces = self.plan.whole is not None
            kept = [Estimation(self.plan.trajectory, noise, index, replaces=replaces) for _ in parts]
            state.estimations[tick.branch] = kept
        returned = [
            one.corrected(part, index, noise, computed=not any(run.settle().skip for run in group))
            for one, part, group in zip(kept, parts, groups, strict=True)
        ]
        state.record.state_bytes = max(state.record.state_bytes, self._bytes(state))
        return joined(returned)

    def _fit(self, budget: int, segments: list[SegmentState]) -> None:
        """Lower the order of the forecasters until all of a branch fits, once the streams are known."""
        once = sum(segment.once for segment in segments)
        if once * max(segment.longest for segment in segments) <= budget:
            return
        if once > budget:
            raise ConfigError(
                f"memory_budget is {budget} bytes, but one value of every stream takes {once}; give at least "
                "that, or a smaller cache_dtype."
            )
        for segment in segments:
            segment.limit(budget // once)

    def _label(self, branch: str | int) -> str:
        if isinstance(branch, str):
            return branch
        if self.plan.calls_per_step == 2:
            return UNCOND if (branch == 0) == self.plan.first_is_uncond else COND
        return "" if branch == 0 else f"call {branch}"


def _kept(output: Any) -> tuple[Any, ...]:
    """What is in an output, with copies of its tensors, since the pipeline may write into them."""
    return tuple(leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in tree_leaves(output))


def _shapes(tree: Any) -> list[torch.Size]:
    return [leaf.shape for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _around(run: SegmentRun, slot: Slot, call: Callable[..., Any]) -> Callable[..., Any]:
    return lambda model, *args, **kwargs: run.visit(slot, call, model, args, kwargs)


def _noise_index(state: RunState, tick: Tick) -> int:
    """Where the step is in the noise schedule; a scheduler knows it but for its first step."""
    assert state.noise is not None
    if state.position is None or (state.position < 0 and not state.total):
        return tick.step
    return state.position if state.position >= 0 else max(0, len(state.noise.levels) - (state.total or 0))
