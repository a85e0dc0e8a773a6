"""What a configuration will do to a model, said before anything runs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cache_dit.api import attachments_of, enable_cache
from cache_dit.caching.attach.attachment import Attachment
from cache_dit.caching.block_adapters import BlockAdapter
from cache_dit.caching.engine.plan import Segment
from cache_dit.caching.maths.gate import Gate, Policy, Reason, Signal, Verdict
from cache_dit.caching.maths.moment import Moment
from cache_dit.caching.models.rows import ROWS
from cache_dit.caching.models.unsupported import UNSUPPORTED
from cache_dit.configs.reading import parse, read_text
from cache_dit.errors import ConfigError, UnsupportedModelError, nearest

_KNOWN = {row.name: row for row in ROWS}
Size = Callable[[nn.Module], int]
# Modulation and embeddings of time and text, by the names that diffusers has for them: once for a sample.
_ONCE = re.compile(r"norm|modulation|adaln|embed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Blocks or modules of one kind that may be skipped.

    Attributes:
        where: Paths of their lists.
        decisions: In how many runs, each skipped or computed as a whole.
        skipped: How many blocks or modules those have together.
    """

    where: str
    decisions: int
    skipped: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What a configuration does to the block lists of one transformer that decide together.

    Attributes:
        model: Class name of the transformer.
        lists: Blocks of each list, by its path.
        config: Configuration in short form.
        method: Name of the method.
        signal: What the method looks at, in a run.
        forecaster: What skipped steps are filled with.
        place: What a skipped step leaves out.
        parts: What may be skipped.
        steps: One letter a step, C computed and S skipped; None where that is decided at run time. Several,
            with their number of blocks or modules, where those differ.
        flops: FLOPs of a run as a fraction of the uncached one, where the steps are known in advance.
        kept: Tensors that forecasts keep, of the size of their streams, in each branch of guidance; None
            where the run decides that.
    """

    model: str
    lists: dict[str, int]
    config: str
    method: str
    signal: str
    forecaster: str
    place: str
    parts: tuple[Part, ...]
    steps: dict[str, int] | None
    flops: float | None
    kept: int | None


def preview(models: Sequence[nn.Module], configs: Mapping[str, Any], steps: int) -> list[Effect]:
    """What a configuration will do to the transformers of a pipeline.

    Args:
        models: The transformers; tensors may be on the device "meta". They are cached afterwards.
        configs: What `load_configs` has returned.
        steps: Denoising steps of a run.

    Returns:
        One entry for each transformer and, where block lists decide for themselves, for each list. FLOPs are
        estimated from the weights that act on every token.

    Raises:
        ConfigError: An option does not fit the model.
    """
    given: Any = models[0] if len(models) == 1 else BlockAdapter(transformer=list(models))
    arguments = {name: value for name, value in configs.items() if name != "parallelism_config"}
    enable_cache(given, **arguments)
    found = []
    for attached in attachments_of(given):
        # Counted once: blocks and modules in them are asked for many times.
        sizes = {module: _weights(module) for module in (attached.lists.model, *attached.blocks)}
        found += effects_of(attached, steps, sizes.__getitem__)
    return found


def effects_of(attached: Attachment, steps: int, size: Size) -> list[Effect]:
    """The same for what is attached to one transformer; `size` is a measure of the work of a module."""
    plan, settings, made = attached.session.plan, attached.settings, []
    for number, setting in enumerate(settings):
        members = [one for one in plan.segments if len(settings) == 1 or one.family == number]
        patterns = (
            None
            if plan.options.force_refresh_step_hint is not None
            else _patterns(plan.segments, members, steps)
        )
        kept = sum(made.memory for one in members for made in one.forecasters if made is not None)
        made.append(
            Effect(
                model=attached.lists.name,
                lists=_counts(attached, members),
                config=setting.strify(),
                method=setting.cache.method,
                signal=_signal(setting.cache.policy().gate),
                forecaster=setting.calibrator.describe(),
                place=setting.cache.place.name,
                parts=tuple(_parts(members)),
                steps=None if patterns is None else _counted(members, patterns),
                flops=None if patterns is None else _flops(attached.lists.model, members, patterns, size),
                # An estimate keeps every computed output.
                kept=None if plan.estimates else kept,
            )
        )
    return made


def _signal(gate: Gate) -> str:
    looks = [gate.signal.value] if gate.signal is not Signal.NONE else []
    looks += ["the noise level"] if gate.needs_noise else []
    looks += ["how far off forecasts were"] if gate.learns or gate.verifies else []
    looks += ["the output of computed steps"] if gate.looks_at_output else []
    return ", ".join(looks) or "nothing"


def steps_of(policy: Policy, total: int) -> str | None:
    """One letter a step, C computed and S skipped; None where something is measured or learnt in the run."""
    gate = policy.gate
    if (
        gate.signal is not Signal.NONE
        or gate.needs_noise
        or gate.learns
        or gate.verifies
        or gate.looks_at_output
    ):
        return None
    state, letters = policy.init(), ""
    for step in range(total):
        at = Moment(step, float(step), float(total - 1), total)
        verdict = policy.decide(state, at)
        assert verdict is not None  # nothing has to be measured
        if "C" not in letters:
            verdict = verdict if not verdict.skip else Verdict(False, Reason.NO_HISTORY)
        state = policy.advance(state, at, verdict, None)
        letters += "CS"[verdict.skip]
    return letters


def models_of(target: str) -> list[nn.Module]:
    """Transformers without weights: of a class by its name, or of a folder as diffusers saves them.

    Raises:
        ConfigError: The class cannot be made without a configuration, or a file is none of diffusers.
        UnsupportedModelError: The class is not known.
        OSError: A file cannot be read.
    """
    folder = Path(target)
    if not folder.is_dir():
        return [_made(target, {})]
    if (folder / "model_index.json").is_file():
        index = _read(folder / "model_index.json")
        parts = [name for name, part in index.items() if isinstance(part, list) and part[-1] in _KNOWN]
        folders = [folder / name for name in parts if not _KNOWN[index[name][-1]].on_request]
    else:
        folders = [folder]
    configs = [_read(one / "config.json") for one in folders]
    if not configs:
        raise UnsupportedModelError(f"{folder} has no known transformer; `cache-dit models` lists them.")
    return [_made(str(config.get("_class_name")), config) for config in configs]


def check_known(name: str) -> None:
    """Raise `UnsupportedModelError` for a class that has no row; the message says why, or the nearest."""
    if name in UNSUPPORTED:
        raise UnsupportedModelError(f"{name} is not supported, because {UNSUPPORTED[name]}.")
    if name not in _KNOWN:
        hint = nearest(name, _KNOWN)
        meant = f"did you mean {hint}?" if hint else "`cache-dit models` lists those that are."
        raise UnsupportedModelError(f"{name} is no known transformer class and no folder; {meant}")


def _made(name: str, config: Mapping[str, Any]) -> nn.Module:
    check_known(name)
    import diffusers

    kind = getattr(diffusers, name, None)
    if kind is None:
        raise UnsupportedModelError(f"diffusers {diffusers.__version__} has no {name}; install a newer one.")
    try:
        with torch.device("meta"):
            model: nn.Module = kind.from_config(dict(config))
    except (TypeError, ValueError, RuntimeError, NotImplementedError, KeyError) as error:
        # Whatever a constructor of diffusers raises at a value that it does not know.
        raise ConfigError(
            f"{name} cannot be made from its configuration ({error}); give a folder with its config.json."
        ) from error
    return model


def _read(path: Path) -> dict[str, Any]:
    found = parse(str(path), read_text(path))
    if not isinstance(found, dict):
        raise ConfigError(f"{path} is no file of diffusers: {json.dumps(found)[:80]}.")
    return found


def _weights(module: nn.Module) -> int:
    """The numbers in matrices that act on every token, which FLOPs are about in proportion to."""
    return sum(
        parameter.numel()
        for path, parameter in module.named_parameters()
        if parameter.ndim > 1 and not _ONCE.search(path)
    )


def _counts(attached: Attachment, members: Sequence[Segment]) -> dict[str, int]:
    """The lists that these segments are in; all of them for the transformer as a whole."""
    lists = attached.lists
    counts = {flow.label: len(blocks) for flow, blocks in zip(lists.flows, lists.blocks, strict=True)}
    families = {one.family for one in members}
    if len(attached.settings) == 1 or not families:
        return counts
    return {label: count for place, (label, count) in enumerate(counts.items()) if place in families}


def _parts(members: Sequence[Segment]) -> list[Part]:
    grouped: dict[str, list[Segment]] = {}
    for one in members:
        grouped.setdefault(one.label, []).append(one)
    return [
        Part(where=label, decisions=len(group), skipped=sum(one.stop - one.start for one in group))
        for label, group in grouped.items()
    ]


def _patterns(segments: Sequence[Segment], members: Sequence[Segment], total: int) -> dict[int, str] | None:
    """The steps of each segment, by its identity; None where those of any are not known."""
    known: dict[int, str] = {}
    for one in members:
        policy = one.policy or segments[one.leader].policy
        pattern = None if policy is None or one.tokens is not None else steps_of(policy, total)
        if pattern is None:
            return None
        known[id(one)] = pattern
    return known


def _counted(members: Sequence[Segment], patterns: Mapping[int, str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for one in members:
        counts[patterns[id(one)]] = counts.get(patterns[id(one)], 0) + one.stop - one.start
    return counts


def _flops(
    model: nn.Module, members: Sequence[Segment], patterns: Mapping[int, str], size: Size
) -> float | None:
    whole = size(model)
    saved = 0.0
    for one in members:
        pattern = patterns[id(one)]
        skipped = sum(size(block) for block in one.blocks[one.start : one.stop])
        saved += skipped * pattern.count("S") / len(pattern)
    return 1.0 - saved / whole if whole else None
