"""From what is to be skipped (`Place`) to segments: parts of block lists, modules in blocks, the whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from cache_dit.caching.attach.declared import Lists, Setting, parameters_of
from cache_dit.caching.config import Kind, Place, Region
from cache_dit.caching.engine.plan import Modulate, Segment
from cache_dit.caching.engine.ports import Ports
from cache_dit.caching.maths.gate import Policy, Signal
from cache_dit.errors import ConfigError

_INSIDE = {
    Place.ATTENTION: (Kind.SPATIAL, Kind.TEMPORAL, Kind.CROSS),
    Place.MLP: (Kind.MLP,),
    Place.SUBMODULES: tuple(Kind),
}
# Single-stream blocks compute both in parallel and have no feed-forward module of their own.
_MLP_NAMES = (
    "ff",
    "ffn",
    "mlp",
    "feed_forward",
    "ff_context",
    "mlp_context",
    "txt_mlp",
    "img_mlp",
    "proj_mlp",
)
_CROSS_NAMES = ("attn2", "cross_attn", "cross_attention")


def part_of(
    lists: Lists, number: int, setting: Setting, region: Region, ports: Ports, first: int, leader: int | None
) -> Segment:
    """The segment of one region of a list.

    Args:
        lists: The lists of the transformer.
        number: Which of them.
        setting: Its configuration.
        region: Counted in blocks, or in pairs where two lists take turns.
        ports: How the streams of the list travel.
        first: First block that the segment knows of; those before its start are watched.
        leader: Segment whose decision it takes over; None: it decides.
    """
    flow, blocks, calibrator = lists.flows[number], lists.blocks[number], setting.calibrator
    # Where two lists take turns, both ends are in the layout of the first.
    stop = region.stop * flow.period - (flow.period - 1)
    policy = region.policy if leader is None else None
    watched = stop + 1 if policy is not None and policy.gate.verifies else stop
    known = blocks[first * flow.period : watched]
    return Segment(
        paths=(flow.label,),
        blocks=known,
        start=(region.start - first) * flow.period,
        stop=stop - first * flow.period,
        ports=ports,
        parameters=parameters_of(blocks[0]),
        policy=policy,
        leader=leader or 0,
        forecasters=tuple(
            None if port is None else calibrator.forecaster(main=slot == ports.main)
            for slot, port in enumerate(ports.slots)
        ),
        residual=calibrator.calibrator_cache_type == "residual" and not flow.stacks,
        stacked=flow.stacks,
        sigma_axis=calibrator.forecast_axis == "sigma",
        dtype=calibrator.cache_dtype,
        modulate=lists.row.modulated or _norm_of(known[0]),
        family=number,
    )


def inside_of(
    lists: Lists, number: int, setting: Setting, start: int, stop: int, leaders: dict[Kind, int], place: int
) -> Iterator[Segment]:
    """A segment for every attention or feed-forward module in the blocks `[start, stop)` of a list.

    Args:
        lists: The lists of the transformer.
        number: Which of them.
        setting: Its configuration.
        start: First block.
        stop: One behind the last block.
        leaders: The segment that decides for each kind of module; is filled.
        place: Index of the first segment that is made here.
    """
    kinds = _INSIDE[setting.cache.place]
    for index, block in enumerate(lists.blocks[number][start:stop], start):
        for name, module in block.named_children():
            kind = _kind(name, module)
            if kind not in kinds:
                continue
            leader = leaders.setdefault(kind, place)
            path = f"{lists.flows[number].label}.{index}.{name}"
            policy = setting.cache.policy_of(kind) if leader == place else None
            yield opaque(module, path, setting, policy, leader, residual=False)
            place += 1


def opaque(
    module: nn.Module, path: str, setting: Setting, policy: Policy | None, leader: int, *, residual: bool
) -> Segment:
    """A segment of one module of which only the output is known.

    Raises:
        ConfigError: The method measures the first blocks, which such a segment has not.
    """
    signal = Signal.NONE if policy is None else policy.gate.signal
    if signal in (Signal.RESIDUAL, Signal.PROBE, Signal.MODULATED):
        raise ConfigError(
            f"place is {setting.cache.place} but {setting.cache.method} decides by {signal.value}, which is "
            "known inside of a block list only; give Place.MIDDLE or Place.BLOCKS, or a method with a fixed "
            "schedule."
        )
    calibrator = setting.calibrator
    return Segment(
        paths=(path,),
        blocks=(module,),
        start=0,
        stop=1,
        ports=Ports((), bare=True, main=0),
        parameters=parameters_of(module),
        policy=policy,
        leader=leader,
        forecasters=(calibrator.forecaster(main=True),),
        residual=residual and calibrator.calibrator_cache_type == "residual",
        sigma_axis=calibrator.forecast_axis == "sigma",
        dtype=calibrator.cache_dtype,
        opaque=True,
    )


def joined(segments: list[Segment]) -> Segment:
    """One segment from the first block that may be skipped in the first list to the last one in the last."""
    before = sum(len(segment.blocks) for segment in segments[:-1])
    return dataclasses.replace(
        segments[0],
        paths=tuple(path for segment in segments for path in segment.paths),
        blocks=tuple(block for segment in segments for block in segment.blocks),
        stop=before + segments[-1].stop,
    )


def _kind(name: str, module: nn.Module) -> Kind | None:
    if name in _MLP_NAMES or (name == "proj_out" and isinstance(module, nn.Linear)):
        return Kind.MLP
    if "attn" not in name.lower() and "attention" not in type(module).__name__.lower():
        return None
    if not any(True for _ in module.parameters()) or "norm" in name.lower():
        return None
    if "temporal" in name or "temp" in type(module).__name__.lower():
        return Kind.TEMPORAL
    crosses = name in _CROSS_NAMES or getattr(module, "is_cross_attention", False)
    return Kind.CROSS if crosses else Kind.SPATIAL


def has_norm(block: nn.Module) -> bool:
    """Whether a block begins in the style of FLUX and SD3: `norm1(hidden_states, emb=temb)`."""
    norm = getattr(block, "norm1", None)
    takes = {"temb", "hidden_states"} <= set(parameters_of(block))
    return takes and isinstance(norm, nn.Module) and "emb" in parameters_of(norm)


def _norm_of(block: nn.Module) -> Modulate | None:
    """The modulated input of such blocks."""
    if not has_norm(block):
        return None

    def modulate(block: Any, given: Mapping[str, Any]) -> Tensor:
        made = block.norm1(given["hidden_states"], emb=given["temb"])
        return made[0] if isinstance(made, tuple) else made  # type: ignore[no-any-return]

    return modulate
