"""From what is to be skipped (`Place`) to segments: parts of block lists, modules in blocks, the whole."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

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
# By the words of their names. What makes the parameters of a modulation is no feed-forward module.
_MLP_WORDS = {"ff", "ffn", "mlp", "feed", "densereludense"}
_MLP_NAMES = ("gate_proj", "up_proj")
_ATTENTION_WORDS = {"attn", "attn1", "attn2", "attention"}
_OTHER_WORDS = ("norm", "adaln", "_mod", "modulation")
# Blocks that spell a feed-forward module out: its last layer, and what enters that layer and nothing else.
_SPELT_OUT = {
    "proj_out": ("proj_mlp", "attn", "cross_attn"),
    "ff_out": ("ff_in",),
    "down_proj": ("gate_proj", "up_proj"),
}


def part_of(
    lists: Lists,
    number: int,
    setting: Setting,
    region: Region,
    ports: Ports,
    first: int,
    leader: int | None,
    *,
    verifies: bool,
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
        verifies: Its forecasts are checked on the block behind it.
    """
    flow, blocks, calibrator = lists.flows[number], lists.blocks[number], setting.calibrator
    # Where two lists take turns, both ends are in the layout of the first.
    stop = region.stop * flow.period - (flow.period - 1)
    policy = region.policy if leader is None else None
    # A list in one region is known to its end, so that its data flow is checked there too.
    whole = first == 0 and setting.cache.place is Place.MIDDLE and not setting.cache.each_region_decides
    known = blocks if whole else blocks[first * flow.period : stop + verifies]
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
        verifies=verifies,
        family=number,
    )


def inside_of(
    lists: Lists, number: int, setting: Setting, start: int, stop: int, leaders: dict[Policy, int], place: int
) -> Iterator[Segment]:
    """A segment for every attention or feed-forward module in the blocks `[start, stop)` of a list.

    Those of all blocks have one path, as `blocks.*.attn`.

    Args:
        lists: The lists of the transformer.
        number: Which of them.
        setting: Its configuration.
        start: First block.
        stop: One behind the last block.
        leaders: The segment that decides for all modules with one policy; is filled.
        place: Index of the first segment that is made here.
    """
    cache = setting.cache
    kinds = _INSIDE[cache.place]
    paths = {module: path for path, module in lists.model.named_modules()}
    seen: set[nn.Module] = set()
    for block in lists.blocks[number][start:stop]:
        listed, _, _ = paths[block].rpartition(".")
        found = [one for one in modules_of(block, f"{lists.name}.{paths[block]}") if one.kind in kinds]
        policies = {one.module: cache.policy_of(one.kind) for one in found}
        # A last layer is skipped only where all that enters it is.
        found = [one for one in found if policies.keys() >= set(one.feeders)]
        entered = {feeder: policies[one.module] for one in found for feeder in one.feeders}
        # Attention runs first, whatever the order of the attributes, so it leads.
        for one in sorted(found, key=lambda one: one.kind is Kind.MLP):
            # One that several blocks share is called several times.
            if one.module in seen:
                continue
            seen.add(one.module)
            policy = policies[one.module]
            leader = leaders.setdefault(policy, place)
            segment = opaque(
                one.module,
                f"{listed}.*{paths[one.module].removeprefix(paths[block])}",
                setting,
                policy if leader == place else None,
                leader,
                residual=False,
            )
            tokens = cache.tokens() if one.kind in (Kind.MLP, Kind.CROSS) else None
            # With one policy there is one leader, so never one without the other.
            blank = entered.get(one.module) == policy
            if cache.tokens() is not None:
                # The last layer is then computed for some tokens, so it needs what enters it for these.
                blank = blank and tokens is not None and isinstance(one.module, nn.Linear)
            yield dataclasses.replace(segment, family=number, blank=blank, tokens=tokens)
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
        verifies=segments[-1].verifies,
    )


class Inside(NamedTuple):
    """An attention or feed-forward module inside of a block, and those whose output only enters this one."""

    module: nn.Module
    kind: Kind
    feeders: tuple[nn.Module, ...] = ()


def modules_of(parent: nn.Module, path: str) -> Iterator[Inside]:
    """The attention and feed-forward modules inside of a block, as far as their names tell them."""
    children = dict(parent.named_children())
    for name, module in children.items():
        if any(word in name.lower() for word in _OTHER_WORDS) or not any(True for _ in module.parameters()):
            continue
        first, *rest = _SPELT_OUT.get(name, ("",))
        if first in children:
            feeders = (children[other] for other in (first, *rest) if other in children)
            yield Inside(module, Kind.MLP, tuple(feeders))
        elif (kind := _kind(name, module, type(parent).__name__, path)) is not None:
            yield Inside(module, kind)
        else:
            yield from modules_of(module, f"{path}.{name}")


def _kind(name: str, module: nn.Module, owner: str, path: str) -> Kind | None:
    """What a module is by its name, by the class that it is in, and by the path of that."""
    words = set(name.lower().split("_"))
    if words & _MLP_WORDS or name in _MLP_NAMES:
        return Kind.MLP
    if not words & _ATTENTION_WORDS:
        return None
    second = "attn2" in words and getattr(module, "is_cross_attention", True)
    if second or words & {"cross", "to"} or "Cross" in owner:
        return Kind.CROSS
    return Kind.TEMPORAL if "temporal" in path.lower() else Kind.SPATIAL


def has_norm(block: nn.Module) -> bool:
    """Whether a block begins in the style of FLUX and SD3: `norm1(hidden_states, emb=temb)`."""
    norm = getattr(block, "norm1", None)
    # Chroma's has no layer of its own and takes a part of the embedding.
    if not isinstance(norm, nn.Module) or not hasattr(norm, "linear"):
        return False
    taken = inspect.signature(norm.forward).parameters
    rest = [other for name, other in list(taken.items())[1:] if name != "emb"]
    optional = all(other.default is not other.empty for other in rest)
    return "emb" in taken and optional and {"temb", "hidden_states"} <= set(parameters_of(block))


def _norm_of(block: nn.Module) -> Modulate | None:
    """The modulated input of such blocks."""
    if not has_norm(block):
        return None

    def modulate(block: Any, given: Mapping[str, Any]) -> Tensor:
        made = block.norm1(given["hidden_states"], emb=given["temb"])
        return made[0] if isinstance(made, tuple) else made  # type: ignore[no-any-return]  # a module of the model

    return modulate
