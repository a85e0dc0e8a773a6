"""From a transformer, its block lists and its configurations to the engine's plan; checked first."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from cache_dit.caching.attach.declared import Lists, Setting, parameters_of
from cache_dit.caching.attach.places import has_norm, inside_of, joined, opaque, part_of
from cache_dit.caching.config import BasicCacheConfig, CacheConfig, Place, Region
from cache_dit.caching.engine.plan import Plan, Segment, Slot
from cache_dit.caching.engine.ports import Port, Ports
from cache_dit.caching.gates.uncond import uncond_policy
from cache_dit.caching.maths.gate import Policy, Signal
from cache_dit.caching.models.row import modules_at
from cache_dit.errors import ConfigError, PatternError

# Options that say what a forward is in its run, which cannot differ between the lists that it goes through.
_RUN_WIDE = (
    "enable_separate_cfg",
    "cfg_compute_first",
    "cfg_diff_compute_separate",
    "num_inference_steps",
    "tuned_steps",
    "force_refresh_step_hint",
    "force_refresh_step_policy",
    "max_live_requests",
    "uncond_interval",
    "uncond_window",
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
    segments, whole = _segments(lists, settings)
    shared, uncond = settings[0].cache, None
    for setting in settings[1:]:
        _check_same_run(shared, setting.cache)
    if segments and shared.uncond_interval is not None:
        uncond = Slot(len(segments), 0, None)
        segments.append(_uncond(lists, settings[0], len(segments)))
    names, row = parameters_of(lists.model), lists.row
    masks = [setting.cache.steps_computation_mask for setting in settings]
    checked = shared.force_refresh_step_hint is None and not shares_run
    estimating = next((one.calibrator for one in settings if one.calibrator.estimates), None)
    return Plan(
        segments=tuple(segments),
        options=shared,
        timestep=Port(row.timestep, names.index(row.timestep)) if row.timestep in names else None,
        shares_run=shares_run,
        mask_lengths=frozenset(len(mask) for mask in masks if mask is not None and checked),
        budget=min(
            (one.calibrator.memory_budget for one in settings if one.calibrator.memory_budget), default=None
        ),
        reads_noise=estimating is not None or any(map(_reads_noise, segments)),
        estimates=estimating is not None,
        trajectory=None if estimating is None else estimating.known_trajectory,
        whole=whole,
        uncond=uncond,
        parameters=names,
        bypass=row.bypass,
        controls=tuple(Port(name, names.index(name)) for name in row.controls if name in names),
        muted=tuple(module for path in row.muted for module in modules_at(lists.model, path)),
    )


def fitting_default(lists: Lists) -> CacheConfig:
    """The default configuration, with fewer first blocks where the first list is short."""
    default = BasicCacheConfig()
    if not lists.flows:
        return default
    half = max(1, len(lists.blocks[0]) // lists.flows[0].period // 2)
    return dataclasses.replace(default, Fn_compute_blocks=min(default.Fn_compute_blocks, half))


def _segments(lists: Lists, settings: Sequence[Setting]) -> tuple[list[Segment], Slot | None]:
    """Also: where the transformer itself is one of the segments, its place."""
    first, outputs = settings[0], [setting.cache.place is Place.OUTPUT for setting in settings]
    if lists.flows and any(outputs):
        if len(settings) > 1:
            raise ConfigError(
                f"place is Place.OUTPUT for a block list of {lists.name}, but there is one output for all of "
                "them; set it in cache_config, without params_modifiers for single lists."
            )
        _check_whole(first)
        whole = opaque(lists.model, lists.name, first, first.cache.policy(), 0, residual=True)
        return [whole], Slot(0, 0, None)
    if any(setting.cache.per_sample for setting in settings):
        raise ConfigError(
            f"per_sample is True but place is {first.cache.place}: inside of {lists.name} a batch goes "
            "through every block together. Give place=Place.OUTPUT."
        )
    together = len(settings) == 1
    segments: list[Segment] = []
    leaders: dict[Policy, int] = {}
    for number, flow in enumerate(lists.flows):
        setting = settings[0 if together else number]
        cache, place = setting.cache, len(segments)
        if cache.policy().gate.looks_at_output:
            raise ConfigError(
                f"place is {cache.place} but {cache.method} goes by the output of the transformer; give "
                "Place.OUTPUT."
            )
        leads, last = number == 0 or not together, number == len(lists.flows) - 1 or not together
        start, tail = cache.Fn_compute_blocks if leads else 0, cache.Bn_compute_blocks if last else 0
        _check_counts(lists, number, start, tail)
        if cache.place in (Place.MIDDLE, Place.BLOCKS):
            _check_fit(lists, setting)
            segments += _parts(lists, number, setting, start, tail, place, leads, last)
        else:
            _check_whole(setting)
            leaders = {} if leads else leaders
            stop = len(lists.blocks[number]) - tail * flow.period
            segments += inside_of(lists, number, setting, start * flow.period, stop, leaders, place)
    if lists.flows and not segments:
        raise _nothing_found(lists, first)
    single = len(segments) == len(lists.flows) > 0 and first.cache.place is Place.MIDDLE
    if lists.joined and together and single:
        segments = [joined(segments)]
    return segments, None


def _uncond(lists: Lists, setting: Setting, number: int) -> Segment:
    """The unconditional branch as one segment, which has the given number."""
    policy = uncond_policy(setting.cache)
    made = opaque(lists.model, "unconditional branch", setting, policy, number, residual=True)
    return dataclasses.replace(made, forecasters=(setting.calibrator.of_branches(),))


def _parts(
    lists: Lists, number: int, setting: Setting, start: int, tail: int, place: int, leads: bool, last: bool
) -> Iterator[Segment]:
    """The regions of one list; the first one, at index `place`, may decide for the others.

    `last`: no other list follows that is decided over together with this one.
    """
    flow, cache = lists.flows[number], setting.cache
    if cache.static:
        # Nothing is measured, so no first block runs on a skipped step unless the last ones read from it.
        start = tail if lists.row.last_within_first else 0
    stop = len(lists.blocks[number]) // flow.period - tail
    regions = cache.regions(start, stop)
    if flow.each_counts and len(regions) == 1:
        rest = (Region(block, block + 1, None) for block in range(start + 1, stop))
        regions = (Region(start, start + 1, regions[0].policy), *rest)
    ports = _ports(lists, number)
    decides = leads or cache.each_region_decides
    for index, region in enumerate(regions):
        leader = None if decides and region.policy is not None else place if decides else 0
        # The first one knows of the blocks before it, which may be measured.
        known = 0 if index == 0 else region.start
        verifies = last and index == len(regions) - 1 and cache.policy().gate.verifies
        yield part_of(lists, number, setting, region, ports, known, leader, verifies=verifies)


def _reads_noise(segment: Segment) -> bool:
    asked = [forecaster.needs_noise for forecaster in segment.forecasters if forecaster is not None]
    return (
        segment.sigma_axis or any(asked) or (segment.policy is not None and segment.policy.gate.needs_noise)
    )


def _check_whole(setting: Setting) -> None:
    """Raise `ConfigError` where the method or the forecaster needs blocks that always run."""
    cache, calibrator = setting.cache, setting.calibrator
    looking = cache.policy().gate.verifies
    needing = [calibrator.forecaster(main=main).needs for main in (True, False)]
    if looking or any(needing):
        raise ConfigError(
            f"place is {cache.place} but {cache.method if looking else type(calibrator).__name__} looks at "
            "blocks that are always computed; give Place.MIDDLE or Place.BLOCKS."
        )


def _nothing_found(lists: Lists, setting: Setting) -> ConfigError:
    classes = dict.fromkeys(type(block).__name__ for blocks in lists.blocks for block in blocks)
    return ConfigError(
        f"place is {setting.cache.place} but no such module was found by its name in the blocks of "
        f"{lists.name} ({', '.join(classes)}) that may be skipped; give another place, such as Place.BLOCKS."
    )


def _check_fit(lists: Lists, setting: Setting) -> None:
    """Raise `ConfigError` where the method, the forecaster and the counts of blocks do not go together."""
    cache, gate = setting.cache, setting.cache.policy().gate
    if gate.signal in (Signal.RESIDUAL, Signal.PROBE) and cache.Fn_compute_blocks == 0:
        raise ConfigError(
            f"Fn_compute_blocks is 0 but {cache.method} measures the first blocks of {lists.name}; give 1 or "
            "more."
        )
    if gate.signal is Signal.MODULATED and lists.row.modulated is None and not has_norm(lists.blocks[0][0]):
        raise ConfigError(
            f"{cache.method} measures the modulated input of the first block, which is not known of "
            f"{lists.name}; give another method, such as SeaCacheConfig or EasyCacheConfig."
        )
    if gate.verifies and cache.Bn_compute_blocks == 0:
        raise ConfigError(
            f"Bn_compute_blocks is 0 but {cache.method} checks forecasts on a last block that is computed; "
            "give 1 or more."
        )
    for main in (True, False):
        needs = setting.calibrator.forecaster(main=main).needs
        if needs and gate.signal not in needs:
            raise ConfigError(
                f"{type(setting.calibrator).__name__} needs a method that measures "
                f"{' or '.join(sorted(signal.name for signal in needs))}, and {cache.method} measures "
                f"{gate.signal.name}; give a cache_config such as DiCacheConfig."
            )


def _check_distinct(lists: Lists) -> None:
    if len({block for members in lists.blocks for block in members}) < sum(map(len, lists.blocks)):
        raise ConfigError(
            f"The block lists of {lists.name} ({', '.join(flow.label for flow in lists.flows)}) have one "
            "block in several places, so its place is not known when it is called. If BlockAdapter: blocks "
            "names a block twice, give every block list once; a model that reuses a block cannot be cached."
        )


def _check_same_run(shared: CacheConfig, other: CacheConfig) -> None:
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
