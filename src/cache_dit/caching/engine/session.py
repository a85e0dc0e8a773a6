"""The engine of one transformer: from a forward to its request, branch and step, and back with a record."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from cache_dit.caching.engine.clock import Clock, Tick
from cache_dit.caching.engine.estimation import Estimation
from cache_dit.caching.engine.flow import FlowCheck
from cache_dit.caching.engine.forward import Frame, SegmentRun, current_frame
from cache_dit.caching.engine.plan import COND, Plan, Slot
from cache_dit.caching.engine.ports import Arguments, Call, Keywords
from cache_dit.caching.engine.records import RunRecord, StepRecord
from cache_dit.caching.engine.requests import LiveRuns, Request, branch_name
from cache_dit.caching.engine.run import BranchState, RunState
from cache_dit.caching.engine.samples import batch_of, call_samples, joined, split
from cache_dit.caching.engine.state import SegmentState
from cache_dit.caching.maths.gate import Reason, Signal, Verdict
from cache_dit.caching.maths.moment import Moment, Reduce


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
        function: Callable[..., Any],
        model: nn.Module,
        args: Arguments,
        kwargs: Keywords,
        reduce: Reduce | None = None,
    ) -> Any:
        """One forward for a request; `function` is the model's own call, `reduce` adds up over its ranks."""
        call = Call(function, model, args, kwargs)
        if self.plan.bypass is not None and self.plan.bypass(call.named(self.plan.parameters)):
            return call.run()
        try:
            return self._forward(request, call, reduce)
        except BaseException:
            # A run that broke off must leave nothing for the next one.
            self.drop(request)
            raise

    def drop(self, request: Request) -> None:
        """Forget what a request has kept here."""
        state = request.states.pop(self, None)
        if state is not None:
            self.live.release(state)

    def _forward(self, request: Request, call: Call, reduce: Reduce | None) -> Any:
        plan = self.plan
        state, tick, resumed = self._tick(request, call)
        branch, label = state.branches[tick.branch], plan.label(tick.branch)
        step, stage = plan.local_step(tick.step, state.total)
        own, samples = plan.segments_of(label), batch_of(call) if plan.options.per_sample else 1
        if step == 0 or len(branch.segments) != samples * len(own):
            branch.begin([SegmentState(one) for _ in range(samples) for one in own])
        condition: Hashable = state.watch.condition(call, plan.controls)
        if reduce is not None:
            # A part of a sequence may keep its length while that of another rank changes.
            condition = condition, _shapes((call.args, call.kwargs))
        switched = branch.switches(condition) or resumed
        if switched:
            branch.forget()
        forced = Reason.SWITCHED if switched else None if state.clock.certain else Reason.UNCERTAIN
        end = None if stage is None else float(stage - 1)
        place = Moment(step, float(step), end, stage, state.sigma(tick.step), reduce=reduce)
        # Later branches of a step take over what its first branch has measured or, unseen, decided.
        later = branch.follows and not plan.options.cfg_diff_compute_separate
        shared = state.verdicts if later else {}
        runs = self._runs(state, branch, place, forced, shared, call)
        output, complete = self._call(runs, call)
        if not complete:
            # Blocks were skipped but the last of them never ran, or a forecast failed its check: compute this
            # forward after all.
            reason = Reason.REJECTED if any(run.rejected for run in runs) else Reason.INCOMPLETE
            for run in runs:
                run.rewind()
            runs = self._runs(state, branch, place, reason, shared, call)
            output, _ = self._call(runs, call)
        self._verified = True
        if plan.uncond is not None:
            state.guide = (step, _kept(output)) if label == COND else None
        reached = self._reached(runs)
        self._note(state, tick, label, reached)
        if plan.estimates:
            output = self._estimated(state, tick, output, list(reached.values()))
        if plan.budget is not None:
            branch.fit(plan.budget)
        if state.is_over(tick.step + 1) and state.end(tick.branch):
            self.live.release(state)
        return output

    def _tick(self, request: Request, call: Call) -> tuple[RunState, Tick, bool]:
        """Also: whether steps of the run have gone by without this branch, as between two experts."""
        name = branch_name.get()
        position = None if request.timeline is None else request.timeline.position()
        marker = self._marker(request, name, call) if position is None else position
        state: RunState | None = request.states.get(self)
        tick = None if state is None else state.clock.tick(name, marker)
        # A pipeline may take more steps than its scheduler tells, but then that scheduler has begun to count.
        countless = request.timeline is None or position == -1
        if state is None or tick is None or (countless and state.is_over(tick.step)):
            self.drop(request)
            state = request.states[self] = self._begin(request, call)
            tick = state.clock.tick(name, marker)
        assert tick is not None  # a new clock takes any first tick
        return state, tick, state.reach(tick.branch, marker, position)

    def _begin(self, request: Request, call: Call) -> RunState:
        total = request.num_inference_steps
        if total is None and request.timeline is not None and not self.plan.shares_run:
            total = request.timeline.total_steps()
        total = total or self.plan.options.num_inference_steps
        self.plan.check_length(total)
        clock = Clock(self.plan.calls_per_step, strict=request.implicit)
        noise = request.noise
        if noise is None and self.plan.reads_noise and request.timeline is not None:
            noise = request.timeline.noise()
        state = RunState(clock, total, RunRecord(total_steps=total), noise)
        self.live.admit(state, type(call.model).__name__)
        self.latest = state.record
        inputs = call.args, call.kwargs
        self.example = tree_map_only(Tensor, lambda t: torch.empty_like(t, device="meta"), inputs)
        return state

    def _marker(self, request: Request, name: str | None, call: Call) -> float | None:
        """What tells steps apart. Reading the timestep may wait for the device, so it is the last resort."""
        known = name is not None or self.plan.calls_per_step is not None
        needed = self.plan.reads_noise and request.noise is None
        if self.plan.timestep is None or (known and not request.implicit and not needed):
            return None
        value = self.plan.timestep.read(call.args, call.kwargs)
        if isinstance(value, Tensor):
            # Some models give every token a timestep of its own, 0 for those that are given.
            return float(value.max() if value.numel() > 1 else value) if value.numel() else None
        return float(value) if isinstance(value, (int, float)) else None

    def _runs(
        self,
        state: RunState,
        branch: BranchState,
        at: Moment,
        forced: Reason | None,
        shared: dict[int, Verdict],
        call: Call,
    ) -> list[SegmentRun]:
        runs: list[SegmentRun] = []
        plan, at = self.plan, at._replace(changes=[])
        per_sample = plan.options.per_sample
        for number, kept in enumerate(branch.segments):
            segment = kept.segment
            policy = segment.policy or plan.segments[segment.leader].policy
            assert policy is not None  # a leader has one
            own = at
            if segment.sigma_axis and at.sigma is not None:
                own = at._replace(time=1.0 - at.sigma, end=1.0)
            known, leader, earlier = None, None, shared.get(number)
            reason = Reason.AWAY if forced is None and self._was_away(branch, number) else forced
            if reason is not None:
                known = Verdict(False, reason)
            elif segment.policy is None:
                leader = runs[segment.leader]
            elif earlier is not None and segment.signal is Signal.NONE:
                known = earlier
            else:
                known = policy.decide(kept.gate, own)
            observes = policy.may_skip(at.step, segment.memory, at.total)
            watches = segment.signal is not Signal.NONE
            keeps_signal = watches and policy.may_skip(at.step, segment.looks_back, at.total)
            flow = None if self._verified or segment.opaque else FlowCheck(segment)
            latent = next(iter(call.tensors()), None) if segment.signal is Signal.LATENT else None
            if per_sample:
                # Of its own sample alone.
                latent = None if latent is None else latent[number : number + 1]
                own = own._replace(changes=[])
            guide = None
            if plan.uncond is not None and number == plan.uncond.segment:
                guide = state.guide[1] if state.guide is not None and state.guide[0] == at.step else ()
            change = None if earlier is None else earlier.change
            runs.append(
                SegmentRun(kept, own, known, leader, observes, keeps_signal, flow, latent, guide, change)
            )
        return runs

    def _was_away(self, branch: BranchState, number: int) -> bool:
        """Whether a segment is in a branch that was skipped whole on the step before, so its past is old."""
        uncond = self.plan.uncond
        inside = uncond is not None and number < uncond.segment < len(branch.segments)
        return inside and branch.segments[-1].gate.continuous > 0

    def _call(self, runs: list[SegmentRun], call: Call) -> tuple[Any, bool]:
        """The output, and whether all that was skipped was delivered and passed its check."""
        if all(run.idle for run in runs):
            return call.run(), True
        if self.plan.options.per_sample and self.plan.whole is not None:
            return call_samples(runs, self.plan.whole, call, self.plan.parameters), True
        # The first forward visits every block, to check the declared data flow. Asked of the runs, since
        # another thread may have ended its first forward meanwhile.
        slots = self.plan.blocks if any(run.flow is not None for run in runs) else self.plan.slots
        for number, slot in self.plan.around.items():
            if number < len(runs):
                call = call._replace(function=_around(runs[number], slot, call.function))
        token = current_frame.set(Frame(slots, runs))
        try:
            output = call.run()
        finally:
            current_frame.reset(token)
        # A list, since every run has to be ended.
        return output, all([run.finish() for run in runs])

    def _reached(self, runs: list[SegmentRun]) -> dict[int, SegmentRun]:
        """The runs by number; where all of the transformer was skipped, that one alone."""
        for number in () if self.plan.options.per_sample else reversed(self.plan.around):
            if number < len(runs) and runs[number].settle().skip:
                return {number: runs[number]}
        return dict(enumerate(runs))

    def _note(self, state: RunState, tick: Tick, label: str, runs: dict[int, SegmentRun]) -> None:
        uncond, per_sample = self.plan.uncond, self.plan.options.per_sample
        for number, run in runs.items():
            verdict = run.settle()
            state.verdicts[number] = verdict
            # A branch that was computed has the records of what is inside.
            if verdict.skip or uncond is None or number != uncond.segment:
                branch, segment = label, number
                if per_sample:
                    branch, segment = f"{label} sample {number}".lstrip(), 0
                step = StepRecord(branch, tick.step, segment, verdict, run.share, run.error)
                state.record.steps.append(step)
        if any(segment.grown for branch in state.branches.values() for segment in branch.segments):
            state.measure()

    def _estimated(self, state: RunState, tick: Tick, output: Any, runs: list[SegmentRun]) -> Any:
        """What is returned in the place of the output, see `engine.estimation`."""
        noise, branch = state.noise, state.branches[tick.branch]
        index = 0 if noise is None else state.noise_index(tick.step)
        if noise is None or noise.strides is None or index >= len(noise.strides):
            state.record.sampler_unknown = True
            return output
        parts, groups = [output], [runs]
        if self.plan.options.per_sample:
            parts, groups = split(output, len(runs)), [[run] for run in runs]
        kept = branch.estimations
        spoilt = any(run.settle().reason is Reason.NOT_FINITE for run in runs)
        if spoilt or len(kept) != len(parts) or not kept[0].fits(parts[0]):
            replaces = self.plan.whole is not None
            kept = [Estimation(self.plan.trajectory, noise, index, replaces=replaces) for _ in parts]
            branch.estimations = kept
        returned = [
            one.corrected(part, index, noise, computed=not any(run.settle().skip for run in group))
            for one, part, group in zip(kept, parts, groups, strict=True)
        ]
        state.measure()
        return joined(returned)


def _kept(output: Any) -> tuple[Any, ...]:
    """What is in an output, with copies of its tensors, since the pipeline may write into them."""
    return tuple(leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in tree_leaves(output))


def _shapes(tree: Any) -> list[torch.Size]:
    return [leaf.shape for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _around(run: SegmentRun, slot: Slot, function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda model, *args, **kwargs: run.visit(slot, Call(function, model, args, kwargs))
