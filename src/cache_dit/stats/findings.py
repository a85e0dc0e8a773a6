"""The doctor: what is wrong or idle about caching, found in the records of the last run and on the model."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator
from enum import Enum
from typing import Any, NamedTuple

from torch import nn

from cache_dit.api import attachments_of
from cache_dit.caching.attach.attachment import Attachment
from cache_dit.caching.attach.override import is_covered
from cache_dit.caching.attach.targets import compiled_of, uncompiled
from cache_dit.caching.config import BasicCacheConfig, CacheConfig
from cache_dit.caching.engine.plan import UNCOND
from cache_dit.caching.maths.gate import Reason
from cache_dit.stats.flops import forward_flops
from cache_dit.stats.offloaded import cut_group
from cache_dit.stats.stats import CacheStats, stats_of

_NOTABLE_SHARE = 0.1  # of the FLOPs: from here on, blocks outside of the cached lists are worth a word
_LARGEST_THRESHOLD = 0.95  # from 1 on a threshold caches always


class Problem(Enum):
    """What can be the matter."""

    NOT_RUN = "not run"
    NEVER_CACHED = "never cached"
    WARMUP = "warm-up too long"
    BRANCHES = "CFG branches"
    NOT_COVERED = "list not covered"
    COVERED = "wrapped afterwards"
    COMPILED = "compiled whole"
    SECOND_CACHE = "two caches"
    ESTIMATE = "estimate idle"
    NOT_FINITE = "not finite"
    REPLACED = "enabled twice"
    OFFLOADED = "weights offloaded"


class Finding(NamedTuple):
    """One thing that is wrong or idle.

    Attributes:
        problem: Its kind.
        model: Class name of the transformer.
        text: What is the matter, in words and figures, and what to do about it.
    """

    problem: Problem
    model: str
    text: str

    def __str__(self) -> str:
        return f"{self.model}: {self.problem.value}: {self.text}"


def diagnose(pipe_or_adapter: Any, logging: bool = True) -> list[Finding]:
    """Say what is wrong or idle: best after a run.

    Args:
        pipe_or_adapter: What `enable_cache` was given, or the pipeline or transformer itself.
        logging: Print; False only returns the data.

    Returns:
        The findings, none where all is well. `summary` tells the same below its table.

    Raises:
        UnsupportedModelError: The object is no pipeline, transformer or adapter.
        ConfigError: Caching is not enabled on it.

    Examples:
        >>> cache_dit.enable_cache(pipe, DBCacheConfig(residual_diff_threshold=0.01))
        >>> pipe("a red house")
        >>> cache_dit.diagnose(pipe)
        FluxTransformer2DModel: never cached: residual_diff_threshold is 0.01 but the smallest change ...
    """
    compiled = set(map(uncompiled, compiled_of(pipe_or_adapter)))
    found = [
        Finding(problem, attached.lists.name, text)
        for attached in attachments_of(pipe_or_adapter)
        for problem, text in _findings(attached, compiled=attached.lists.model in compiled)
    ]
    if logging:
        print("\n".join(map(str, found)) or "Nothing is wrong: steps are cached as configured.")
    return found


def _findings(attached: Attachment, *, compiled: bool) -> Iterator[tuple[Problem, str]]:
    """The findings of one transformer; `compiled`: `torch.compile` returned it."""
    model: Any = attached.lists.model
    if compiled or getattr(model, "_compiled_call_impl", None) is not None:
        yield Problem.COMPILED, _COMPILED
    if getattr(model, "is_cache_enabled", False):
        yield Problem.SECOND_CACHE, _SECOND_CACHE
    wrapped = next((part for part in (*attached.session.plan.blocks, model) if is_covered(part)), None)
    if wrapped is not None:
        yield Problem.COVERED, f"{type(wrapped).__name__} {_COVERED}"
    if attached.replaced is not None:
        now = attached.strify()
        yield Problem.REPLACED, f"enable_cache was called again: {now} took the place of {attached.replaced}."
    if text := cut_group(attached):
        yield Problem.OFFLOADED, text
    # A first forward that broke off has left a record without a step.
    ran = [
        under
        for under in (attached, *attached.others)
        if under.session.latest is not None and under.session.latest.steps
    ]
    if not ran:
        yield Problem.NOT_RUN, "no forward since enable_cache; run the pipeline, then ask again."
        return
    for under in ran:
        of = f"under {under.strify()}, as requested: " if under.requested else ""
        yield from ((problem, f"{of}{text}") for problem, text in _of_run(under))
    yield from ((Problem.NOT_COVERED, text) for text in _uncovered(ran[0]))


def _of_run(attached: Attachment) -> Iterator[tuple[Problem, str]]:
    """The findings in the records of the last run under one configuration."""
    stats = stats_of(attached)
    for entry, setting in zip(stats, attached.settings, strict=True):
        if odd := [step.step for step in entry.steps if step.verdict.reason is Reason.NOT_FINITE]:
            yield Problem.NOT_FINITE, f"step {min(odd)} of {' + '.join(entry.lists)} {_NOT_FINITE}"
        if not entry.cached_steps and not entry.cfg_cached_steps:
            problem, text = _never_cached(entry, setting.cache)
            yield problem, text if len(stats) == 1 else f"{' + '.join(entry.lists)}: {text}"
    if text := _mixed_branches(attached, stats[0]) or _no_uncond(attached, stats[0]):
        yield Problem.BRANCHES, text
    session = attached.session
    asked = session.plan.whole is not None or session.plan.trajectory is not None
    if asked and session.latest is not None and session.latest.sampler_unknown:
        yield Problem.ESTIMATE, _ESTIMATE


def _never_cached(stats: CacheStats, cache: CacheConfig) -> tuple[Problem, str]:
    steps, changes = stats.of(0), list(stats.changes(0).values())
    reason, count = Counter(step.verdict.reason for step in steps[1:] or steps).most_common(1)[0]
    if cache.max_warmup_steps >= len(steps) and reason is Reason.WARMUP:
        fact = f"max_warmup_steps is {cache.max_warmup_steps} but the run has {len(steps)} steps"
        return Problem.WARMUP, f"{fact}; give {max(1, len(steps) // 4)}."
    if reason is Reason.OFF:
        text = "residual_diff_threshold is 0, so every step is computed; start with 0.08."
    elif isinstance(cache, BasicCacheConfig) and changes and min(changes) >= cache.residual_diff_threshold:
        better = "the steps have too little in common for any threshold to cache half of them."
        if (median := statistics.median(changes)) < _LARGEST_THRESHOLD:
            better = f"{median * 1.05:.2g} would have cached about half of the measured steps."
        text = (
            f"residual_diff_threshold is {cache.residual_diff_threshold:g} but the smallest change seen is "
            f"{min(changes):.3g}; {better}"
        )
    else:
        text = (
            f"{count} of {len(steps)} steps were computed because of this: {reason.value}. {_ADVICE[reason]}"
        )
    return Problem.NEVER_CACHED, text


_COMPILED = (
    "the whole transformer is compiled, so its graph breaks at every block; compile the blocks alone: "
    "transformer.compile_repeated_blocks(fullgraph=True)."
)
_ESTIMATE = (
    "the latent is not estimated, since the sampler is not known to move it by a multiple of the output, so "
    "skipped steps are forecast alone; use FlowMatchEulerDiscreteScheduler, or Request(sigmas=...) in a loop "
    "of your own."
)
_SECOND_CACHE = (
    "a cache of diffusers is enabled on this transformer too, and each takes the other's skipped steps for "
    "computed ones; call transformer.disable_cache()."
)
_NOT_FINITE = "began anew after NaN or infinite values; run the model in bfloat16 or float32."
_COVERED = (
    "was wrapped (by fully_shard or the like) after enable_cache, so the wrapper runs on skipped steps too; "
    "wrap first, then enable."
)
_ADVICE = dict.fromkeys(Reason, "See summary(pipe, details=True).") | {
    Reason.MASK: "Give a steps_computation_mask with zeros, see cache_dit.steps_mask.",
    Reason.WARMUP: "Lower max_warmup_steps.",
    Reason.RESHAPED: "The streams have another shape in every step, so there is nothing to forecast from.",
    Reason.INCOMPLETE: "The last block of the list is not called by the forward; give Bn_compute_blocks=1.",
    Reason.SWITCHED: "The arguments of the forward, or the LoRA adapters, are others in every step.",
    Reason.NO_HISTORY: "Every forward began a run of its own; give num_inference_steps or cache the pipe.",
}


def _mixed_branches(attached: Attachment, stats: CacheStats) -> str:
    record, calls = attached.session.latest, attached.session.plan.calls_per_step
    total = None if record is None else record.total_steps
    if attached.settings[0].cache.per_sample:
        return ""  # its branches are those of every sample
    taken, branches = len({(one.branch, one.step) for one in stats.steps}), stats.branches
    if (total, calls) == (taken / 2, 1):
        return (
            f"{taken} forwards in a run of {total} steps were taken for one branch, so the conditional and "
            "the unconditional one are mixed; set enable_separate_cfg=True."
        )
    if (total, calls) == (taken, 2):
        return (
            f"enable_separate_cfg is True but there was one forward a step in a run of {total}, so every "
            "other step was taken for the other branch; set enable_separate_cfg=False."
        )
    if calls is None and len(branches) > 1 and not all(map(str.isidentifier, branches)):
        return (
            f"the {len(branches)} forwards of a step are not named and told apart by their order; set "
            "enable_separate_cfg=True, or name them: with transformer.cache_context('cond')."
        )
    return ""


def _no_uncond(attached: Attachment, stats: CacheStats) -> str:
    if attached.session.plan.uncond is None or UNCOND in stats.branches:
        return ""
    return (
        "uncond_interval is set but no forward was that of the unconditional branch alone: guidance is off, "
        "or both branches are in one batch, of which no half can be skipped; leave uncond_interval out."
    )


def _uncovered(attached: Attachment) -> Iterator[str]:
    model, example = attached.lists.model, attached.session.example
    flops = None if example is None else forward_flops(model, *example)
    if flops is None or not flops[model] or attached.session.plan.whole is not None:
        return
    seen = {module for block in attached.session.plan.blocks for module in block.modules()}
    for path, part in model.named_modules():
        if not isinstance(part, nn.ModuleList) or len(part) < 2 or not seen.isdisjoint(part.modules()):
            continue
        seen.update(part.modules())
        share = sum(flops[block] for block in part) / flops[model]
        if share >= _NOTABLE_SHARE:
            yield (
                f"{path} takes {share:.0%} of the FLOPs and is not cached; declare it too: "
                "BlockAdapter(transformer=..., blocks=[...])."
            )
