"""What users call."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

from cache_dit.caching.attach.attachment import Attachment, attachment
from cache_dit.caching.attach.declared import Lists, Setting
from cache_dit.caching.attach.distribution import Distribution
from cache_dit.caching.attach.override import (
    attachment_of,
    close_runs,
    gather_in,
    open_runs,
    put_on,
    rebind,
    spread,
    take_off,
)
from cache_dit.caching.attach.planning import fitting_default
from cache_dit.caching.attach.targets import cached_models, compiled_of, lists_of, patched, transformers_of
from cache_dit.caching.attach.timeline import pipeline_request
from cache_dit.caching.block_adapters.adapter import BlockAdapter, ParamsModifier
from cache_dit.caching.block_adapters.register import adapter_of
from cache_dit.caching.config import CacheConfig, CalibratorConfig, DBCacheConfig
from cache_dit.caching.forecasters.taylorseer import TaylorSeerCalibratorConfig
from cache_dit.caching.forecasters.trajectory import TrajectoryCalibratorConfig
from cache_dit.caching.options import Override, instance_of, optional, reject_unknown
from cache_dit.errors import ConfigError
from cache_dit.presets import Preset

_Target = TypeVar("_Target")
_Modifiers = ParamsModifier | Sequence[ParamsModifier | Sequence[ParamsModifier]]
_OPTIONS = ("cache_config", "calibrator_config", "params_modifiers", "parallelism_config")
_INSIDE = {"cache_config": DBCacheConfig, "calibrator_config": TaylorSeerCalibratorConfig}


def enable_cache(
    pipe_or_adapter: _Target,
    cache_config: CacheConfig | Override | Preset | None = None,
    calibrator_config: CalibratorConfig | None = None,
    params_modifiers: _Modifiers | None = None,
    parallelism_config: Distribution | None = None,
    **unknown: Any,
) -> _Target:
    """Cache the blocks of a diffusion transformer from the next forward on.

    Calling it again replaces the configuration. Everything is checked before anything is changed.

    Args:
        pipe_or_adapter: A diffusers pipeline, a transformer, or a `BlockAdapter`.
        cache_config: What is skipped and when, or a preset of `cache_dit.presets`, which also says what a
            skipped segment is filled with. None: `DBCacheConfig()`, with fewer first blocks where the
            first list has less than 16.
        calibrator_config: What a skipped segment is filled with. None: the last computed value again; where
            `cache_config` is None too, `TrajectoryCalibratorConfig()`, with one decision for both branches of
            guidance, which was nearest to the uncached pictures at the same FLOPs (docs/research.md).
        params_modifiers: Changes for single block lists, one for each: every list then decides for itself,
            where otherwise the first list decides for all. With several transformers, one for each
            transformer or one for each list.
        parallelism_config: A `ParallelismConfig`, to spread every sample over several processes, which then
            decide together; given alone, nothing is cached. None: it stays as it is.
        **unknown: Refused; the message tells the nearest option, or the class whose option it is.

    Returns:
        The object that was given.

    Raises:
        UnsupportedModelError: The object or its class is not known; the message shows what to write.
        ConfigError: An option has a value that does not fit.
        ConfigTypeError: An option is unknown or of the wrong type.
        PatternError: The declared data flow cannot be that of the blocks.

    Examples:
        >>> cache_dit.enable_cache(pipe)
        >>> image = pipe("a red house").images[0]
        >>> cache_dit.summary(pipe)
    """
    reject_unknown("enable_cache", unknown, _OPTIONS, _INSIDE)
    optional(instance_of(CacheConfig, Override, Preset))("cache_config", cache_config)
    optional(instance_of(CalibratorConfig))("calibrator_config", calibrator_config)
    optional(instance_of(Distribution))("parallelism_config", parallelism_config)
    adapter, given = adapter_of(pipe_or_adapter), (cache_config, calibrator_config, params_modifiers)
    with ExitStack() as undo:
        if parallelism_config is not None:
            undo.callback(spread(parallelism_config, transformers_of(adapter), adapter.pipe))
        if parallelism_config is None or any(one is not None for one in given):
            _cache(adapter, *given)
        undo.pop_all()
    for compiled in compiled_of(adapter):
        rebind(compiled)
    return pipe_or_adapter


def _cache(
    adapter: BlockAdapter,
    cache_config: CacheConfig | Override | Preset | None,
    calibrator_config: CalibratorConfig | None,
    params_modifiers: _Modifiers | None,
) -> None:
    made_for = ""
    if isinstance(cache_config, Preset):
        made_for = cache_config.model
        calibrator_config = calibrator_config or cache_config.calibrator_config
        cache_config = cache_config.cache_config
    if cache_config is None and calibrator_config is None:
        cache_config = DBCacheConfig().reset(cfg_diff_compute_separate=False)
        calibrator_config = TrajectoryCalibratorConfig()
    calibrator = calibrator_config or CalibratorConfig()
    if params_modifiers is None:
        params_modifiers = adapter.params_modifiers

    def choose(place: int, entry: Lists) -> tuple[Setting, ...]:
        counts = [len(entry.flows if number == place else other.flows) for number, other in enumerate(lists)]
        # Of lists that the first forward will show one is there at least.
        own = _spread(params_modifiers, [count or 1 for count in counts])[place] if entry.flows else ()
        return _settings(entry, cache_config, calibrator, own, adapter.has_separate_cfg)

    with patched(adapter) as patches:
        lists = lists_of(adapter)
        _check_model(made_for, ", ".join(entry.name for entry in lists))
        made = [
            attachment(entry, choose(place, entry), shares_run=len(lists) > 1)
            for place, entry in enumerate(lists)
        ]
    for place, attached in enumerate(made):
        model = attached.lists.model
        before = attachment_of(model)
        attached = dataclasses.replace(
            attached,
            replaced=None if before is None else before.strify(),
            choose=None if attached.lists.flows else functools.partial(choose, place),
            patch=patches.get(model, None if before is None else before.patch),
        )
        put_on(model, attached)
    if adapter.pipe is not None:
        open_runs(adapter.pipe, pipeline_request)


def disable_cache(pipe_or_adapter: _Target) -> _Target:
    """Take caching and parallelism off; the model is as it was before `enable_cache`.

    Nothing happens where there is neither. Of models that are spread over processes all ranks must call it.

    Args:
        pipe_or_adapter: What `enable_cache` was given, or the pipeline or transformer itself.

    Returns:
        The object that was given.

    Raises:
        UnsupportedModelError: The object is no pipeline, transformer or adapter.
        CacheDiTError: Something else has wrapped the model since.
    """
    adapter = adapter_of(pipe_or_adapter)
    # Found first: a pipeline's transformer that an adapter declared is known only while it is cached.
    compiled, spread_models = compiled_of(adapter), transformers_of(adapter)
    for model in cached_models(adapter):
        take_off(model)
    gather_in(spread_models)
    for model in compiled:
        rebind(model)
    if adapter.pipe is not None:
        close_runs(adapter.pipe)
    return pipe_or_adapter


def refresh_context(
    pipe_or_adapter: Any,
    num_inference_steps: int | None = None,
    cache_config: CacheConfig | Override | None = None,
    calibrator_config: CalibratorConfig | None = None,
    verbose: bool = False,
) -> None:
    """Begin a new run: drop what is cached and take a new step count or configuration.

    For transformers without a pipeline whose runs differ in their number of steps.

    Args:
        pipe_or_adapter: What `enable_cache` was given.
        num_inference_steps: Steps of the coming runs; None: as in the configuration.
        cache_config: A new configuration, or `DBCacheConfig().reset(...)` to change the fields named.
        calibrator_config: A new calibrator; None: the one in force.
        verbose: Print the configuration that is in force now.

    Raises:
        ConfigError: Caching is not enabled here, or an option does not fit.
    """
    optional(instance_of(CacheConfig, Override))("cache_config", cache_config)
    optional(instance_of(CalibratorConfig))("calibrator_config", calibrator_config)

    def change(setting: Setting) -> Setting:
        new = setting.updated(cache_config, calibrator_config)
        if num_inference_steps is None:
            return new
        return new.updated(new.cache.reset(num_inference_steps=num_inference_steps), None)

    made = [attached.changed(change) for attached in attachments_of(pipe_or_adapter)]
    for attached in made:
        put_on(attached.lists.model, attached)
        if verbose:
            print(f"{attached.lists.name}: {attached.strify()}")


def attachments_of(pipe_or_adapter: Any) -> list[Attachment]:
    """What is attached to the transformers of a pipeline or adapter; those without are left out."""
    models = cached_models(pipe_or_adapter)
    found = [attached for model in models if (attached := attachment_of(model)) is not None]
    if models and not found:
        raise ConfigError(
            f"{type(models[0]).__name__} is not cached; call cache_dit.enable_cache on the pipeline or "
            "transformer first."
        )
    return found


def _settings(
    lists: Lists,
    config: CacheConfig | Override | None,
    calibrator: CalibratorConfig,
    modifiers: Sequence[ParamsModifier],
    separate_cfg: bool | None,
) -> tuple[Setting, ...]:
    """One setting for all lists, or one for each where each has a modifier."""
    default = fitting_default(lists)
    base = default if config is None else default.updated(config)
    settings = []
    for modifier in modifiers or (ParamsModifier(),):
        cache = base if modifier.cache_config is None else base.updated(modifier.cache_config)
        if separate_cfg is not None and cache.enable_separate_cfg is None:
            cache = dataclasses.replace(cache, enable_separate_cfg=separate_cfg)
        own = modifier.calibrator_config
        settings.append(Setting(cache, calibrator if own is None else calibrator.updated(own)))
    return tuple(settings)


def _check_model(made_for: str, model: str) -> None:
    if made_for not in ("", model):
        raise ConfigError(
            f"the configuration was made for {made_for} but this is {model}; tune this one with "
            "cache_dit.tune.tune, or give the options themselves, with which nothing is promised."
        )


def _spread(given: _Modifiers | None, counts: list[int]) -> Sequence[Sequence[ParamsModifier]]:
    """The modifiers of each transformer from the forms that users may write; `counts` are its lists."""
    if given is None:
        return [()] * len(counts)
    nested = [_listed(entry) for entry in _listed(given)]
    flat = [modifier for entry in nested for modifier in entry]
    for modifier in flat:
        instance_of(ParamsModifier)("params_modifiers", modifier)
    fitting = [len(own) in (1, count) for own, count in zip(nested, counts, strict=False)]
    if len(nested) == len(counts) and all(fitting):
        return nested
    if len(flat) == sum(counts):
        return [flat[sum(counts[:i]) : sum(counts[: i + 1])] for i in range(len(counts))]
    if len(flat) == 1:
        return [flat] * len(counts)
    raise ConfigError(
        f"params_modifiers has {len(flat)} entries but there are {sum(counts)} block lists in {len(counts)} "
        "transformers; give one for each list, one for each transformer, or one for all."
    )


def _listed(given: Any) -> list[Any]:
    instance_of(ParamsModifier, list, tuple)("params_modifiers", given)
    return [given] if isinstance(given, ParamsModifier) else list(given)
