"""From a transformer, its block lists and its configurations to the engine's plan; checked first."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence

from torch import nn

from cache_dit.caching.config import BasicCacheConfig, CalibratorConfig
from cache_dit.caching.engine.plan import Plan, Segment
from cache_dit.caching.engine.ports import Port, Ports
from cache_dit.caching.models.row import BlockList, Row, modules_at
from cache_dit.caching.options import Override
from cache_dit.errors import ConfigError, PatternError

# Options that say what a forward is in its run, which cannot differ between the lists that it goes through.
_RUN_WIDE = (
    "enable_separate_cfg",
    "cfg_compute_first",
    "cfg_diff_compute_separate",
    "num_inference_steps",
    "force_refresh_step_hint",
    "force_refresh_step_policy",
    "max_live_requests",
)
_BLANK = Row(name="", lists=())


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Lists:
    """The block lists of one transformer.

    Attributes:
        model: The transformer.
        blocks: The members of each list.
        flows: Path and data flow of each list.
        row: What else is known of the class; a blank row for a class without one.
        joined: The streams keep one layout over all lists, see `Row`.
    """

    model: nn.Module
    blocks: tuple[tuple[nn.Module, ...], ...]
    flows: tuple[BlockList, ...]
    row: Row = _BLANK
    joined: bool = False

    @property
    def name(self) -> str:
        """Class name of the transformer."""
        return type(self.model).__name__


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """The configuration of one list, or of all lists of a transformer together."""

    cache: BasicCacheConfig
    calibrator: CalibratorConfig

    def updated(
        self, cache: BasicCacheConfig | Override | None, calibrator: CalibratorConfig | None
    ) -> Setting:
        """A copy with what is given in place of what was set; None keeps it."""
        return Setting(
            self.cache if cache is None else self.cache.updated(cache),
            self.calibrator if calibrator is None else calibrator,
        )


def make_plan(lists: Lists, settings: Sequence[Setting], *, shares_run: bool) -> Plan:
    """The plan for one transformer.

    Args:
        lists: What is cached.
        settings: One for all lists, which then take one decision together, or one for each list.
        shares_run: Other transformers take part in the run.

    Raises:
        ConfigError: An option does not fit the model.
        PatternError: A declared stream is no argument of the blocks.
    """
    _check_distinct(lists)
    together = len(settings) == 1
    segments: list[Segment] = []
    for number, flow in enumerate(lists.flows):
        setting = settings[0 if together else number]
        segment = _segment(
            lists,
            number,
            setting,
            start=setting.cache.Fn_compute_blocks if number == 0 or not together else 0,
            tail=setting.cache.Bn_compute_blocks if flow is lists.flows[-1] or not together else 0,
            leader=None if number and together else len(segments),
        )
        segments += _one_by_one(segment) if flow.each_counts else [segment]
    if lists.joined and together:
        segments = [_joined(segments)]
    shared = settings[0].cache
    for setting in settings[1:]:
        _check_same_run(shared, setting.cache)
    names, row = parameters_of(lists.model), lists.row
    masks = [setting.cache.steps_computation_mask for setting in settings]
    checked = shared.force_refresh_step_hint is None and not shares_run
    separate = shared.enable_separate_cfg
    return Plan(
        segments=tuple(segments),
        calls_per_step=None if separate is None else 1 + separate,
        first_is_uncond=shared.cfg_compute_first,
        share_change=not shared.cfg_diff_compute_separate,
        timestep=Port(row.timestep, names.index(row.timestep)) if row.timestep in names else None,
        refresh_step=shared.force_refresh_step_hint,
        refresh_repeats=shared.force_refresh_step_policy == "repeat",
        total_steps=shared.num_inference_steps,
        shares_run=shares_run,
        mask_lengths=frozenset(len(mask) for mask in masks if mask is not None and checked),
        parameters=names,
        bypass=row.bypass,
        controls=tuple(Port(name, names.index(name)) for name in row.controls),
        muted=tuple(module for path in row.muted for module in modules_at(lists.model, path)),
    )


def fitting_default(lists: Lists) -> BasicCacheConfig:
    """The default configuration, with fewer first blocks where the first list is short."""
    default = BasicCacheConfig()
    if not lists.flows:
        return default
    half = max(1, len(lists.blocks[0]) // lists.flows[0].period // 2)
    return dataclasses.replace(default, Fn_compute_blocks=min(default.Fn_compute_blocks, half))


def _segment(
    lists: Lists, number: int, setting: Setting, *, start: int, tail: int, leader: int | None
) -> Segment:
    flow, blocks, cache = lists.flows[number], lists.blocks[number], setting.cache
    _check_counts(lists, number, start, tail)
    if cache.static:
        # Nothing is measured, so no first block runs on a skipped step unless the last ones read from it.
        start = tail if lists.row.last_within_first else 0
    ports = _ports(lists, number)
    return Segment(
        paths=(flow.label,),
        blocks=blocks,
        start=start * flow.period,
        # Where two lists take turns, both ends are in the layout of the first.
        stop=len(blocks) - tail * flow.period - (flow.period - 1),
        ports=ports,
        parameters=parameters_of(blocks[0]),
        gate=None if leader is None else cache.gate(),
        leader=leader or 0,
        forecasters=tuple(
            None if port is None else setting.calibrator.forecaster(main=slot == ports.main)
            for slot, port in enumerate(ports.slots)
        ),
        residual=setting.calibrator.calibrator_cache_type == "residual" and not flow.stacks,
        stacked=flow.stacks,
    )


def _joined(segments: Sequence[Segment]) -> Segment:
    """One segment from the first block that may be skipped in the first list to the last one in the last."""
    before = sum(len(segment.blocks) for segment in segments[:-1])
    return dataclasses.replace(
        segments[0],
        paths=tuple(path for segment in segments for path in segment.paths),
        blocks=tuple(block for segment in segments for block in segment.blocks),
        stop=before + segments[-1].stop,
    )


def _one_by_one(segment: Segment) -> list[Segment]:
    """A segment for every block, all led by the first; the first blocks stay with it, for its signal."""
    first = segment.start
    alone = [
        dataclasses.replace(segment, blocks=(block,), start=0, stop=1, gate=None)
        for block in segment.blocks[first + 1 : segment.stop]
    ]
    return [dataclasses.replace(segment, blocks=segment.blocks[: first + 1], stop=first + 1), *alone]


def _check_distinct(lists: Lists) -> None:
    if len({block for members in lists.blocks for block in members}) < sum(map(len, lists.blocks)):
        raise ConfigError(
            f"The block lists of {lists.name} ({', '.join(flow.label for flow in lists.flows)}) have one "
            "block in several places, so its place is not known when it is called. If BlockAdapter: blocks "
            "names a block twice, give every block list once; a model that reuses a block cannot be cached."
        )


def _check_same_run(shared: BasicCacheConfig, other: BasicCacheConfig) -> None:
    for name in _RUN_WIDE:
        first, second = getattr(shared, name), getattr(other, name)
        if first != second:
            raise ConfigError(
                f"{name} is {first!r} for one block list and {second!r} for another of the same transformer, "
                "but it counts for the whole transformer; set it in cache_config, not in a ParamsModifier."
            )


def _check_counts(lists: Lists, number: int, start: int, tail: int) -> None:
    flow = lists.flows[number]
    count = len(lists.blocks[number]) // flow.period
    where = f"{flow.label} of {lists.name} has {count} {'blocks' if flow.period == 1 else 'pairs of blocks'}"
    if start > count - 1:
        raise ConfigError(
            f"Fn_compute_blocks is {start} but {where}; give a value from 1 to {count - 1}."
            if count > 1
            else f"{where}: at least 2 are needed, one to measure and one to skip."
        )
    if tail > count - 1 - start:
        raise ConfigError(
            f"Bn_compute_blocks is {tail} but {where}"
            + (f" and Fn_compute_blocks is {start}" if start else "")
            + f"; give a value from 0 to {count - 1 - start}."
        )
    if lists.row.last_within_first and tail > start:
        raise ConfigError(
            f"Bn_compute_blocks is {tail} and Fn_compute_blocks {start}, but the last blocks of {lists.name} "
            f"read what the first ones left; give Bn_compute_blocks from 0 to {start}."
        )


def _ports(lists: Lists, number: int) -> Ports:
    flow, blocks = lists.flows[number], lists.blocks[number]
    layouts = {parameters_of(block) for block in {type(block): block for block in blocks}.values()}
    positions = [{name: place for place, name in enumerate(layout)} for layout in layouts]
    for name in filter(None, flow.continues):
        if len({known.get(name) for known in positions}) != 1 or name not in positions[0]:
            raise PatternError(
                f"{flow.label} of {lists.name}: the blocks ({type(blocks[0]).__name__}) take "
                f"({', '.join(parameters_of(blocks[0]))}), so no output can continue {name!r} in all of "
                "them; choose the ForwardPattern that fits, see its docstring."
            )
    slots = (None if name is None else Port(name, positions[0][name]) for name in flow.continues)
    return Ports(tuple(slots), flow.bare, flow.continues.index(flow.main))


def parameters_of(module: nn.Module) -> tuple[str, ...]:
    """Names of the arguments of a module's forward, in order."""
    return tuple(inspect.signature(module.forward).parameters)
