"""What users set: cache and calibrator configurations, with the names of the reference system."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import Enum
from typing import Any, ClassVar, NamedTuple

import torch

from cache_dit.caching.forecasters.reuse import Reuse
from cache_dit.caching.gates.always import Always
from cache_dit.caching.gates.residual import ResidualGate
from cache_dit.caching.maths.forecaster import Forecaster
from cache_dit.caching.maths.gate import Gate, Policy, Reason
from cache_dit.caching.maths.tokens import Tokens
from cache_dit.caching.maths.trajectory import Trajectory
from cache_dit.caching.options import (
    Options,
    flag,
    instance_of,
    one_of,
    option,
    optional,
    options,
    real,
    sequence_of,
    whole,
)
from cache_dit.errors import ConfigError, ConfigTypeError


class CacheType(Enum):
    """Which family of methods a configuration belongs to."""

    NONE = "NONE"
    DBCache = "DBCache"
    DBPrune = "DBPrune"
    OTHER = "another method"


class Place(Enum):
    """What a skipped step leaves out."""

    MIDDLE = "the blocks between the first and the last that are always computed, as a whole"
    BLOCKS = "the same blocks, each kept and forecast by itself"
    OUTPUT = "the whole transformer; its output is forecast"
    ATTENTION = "the attention modules of the blocks"
    MLP = "the feed-forward modules of the blocks"
    SUBMODULES = "the attention and the feed-forward modules of the blocks"


class Kind(Enum):
    """A kind of module inside of a block."""

    SPATIAL = "self-attention, of the tokens of one frame or of all"
    TEMPORAL = "attention along the frames"
    CROSS = "attention to the text"
    MLP = "feed-forward"


class Region(NamedTuple):
    """Blocks `[start, stop)` of a list, in blocks, that one policy decides over; None: the first region's."""

    start: int
    stop: int
    policy: Policy | None


def _mask(name: str, value: Any) -> None:
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise ConfigTypeError(f"{name} is {value!r}; give a list of 0 and 1, see cache_dit.steps_mask.")
    if not value or any(entry not in (0, 1) for entry in value):
        raise ConfigError(f"{name} is {list(value)}; give one 0 or 1 for every step, at least one.")


@options
class CacheConfig(Options, ABC):
    """Options that every method has; a method is a subclass with a gate.

    Attributes:
        place: What a skipped step leaves out. Default `Place.MIDDLE`.
        Fn_compute_blocks: First blocks of a list that are always computed. Where one decision covers several
            lists it counts in the first. Default 0.
        Bn_compute_blocks: Last blocks that are always computed. Default 0.
        max_warmup_steps: First steps that are computed. Default 0.
        warmup_interval: Within the warm-up only every n-th step is computed for certain. Default 1.
        max_cached_steps: Most skipped steps in a run. -1 (default): no limit.
        max_continuous_cached_steps: Most skipped steps in a row. -1 (default): no limit.
        enable_separate_cfg: True: the model is called twice a step, for the two branches of classifier-free
            guidance, and each branch has its own cache. False: once a step. None (default): found out from
            the pipeline's branch names or from the calls that share a timestep.
        cfg_compute_first: With two unnamed calls a step, the first is the unconditional one. Default False.
        cfg_diff_compute_separate: False: the later branch of a step takes the change measured by the first;
            where nothing is measured, its decision. True (default): each branch decides for itself.
        per_sample: Every sample of a batch is decided over by itself, with `Place.OUTPUT`: those that must be
            computed go through the transformer together, the others wait. A picture then does not depend on
            its neighbours. Gates that measure wait for the device once for each sample. Without it a batch is
            decided over as one, which is the same for fixed schedules. Default False.
        uncond_interval: Within the window, the unconditional branch is computed every so many steps alone. In
            between its output is that of the conditional branch in the same step plus a forecast of their
            difference (FasterCache, arXiv 2410.19355), or a forecast from its own past where it is called
            first. The conditional branch goes on by the rest of this configuration; the other one does so too
            as long as it is computed on every step. Needs a call for each branch; costs one output and what
            the forecaster keeps. None (default): no branch is skipped whole.
        uncond_window: Noise levels, a low and a high one, strictly between which that is done; where nothing
            tells the noise level, shares of the run still to come. Early on the difference of the branches
            changes fast. Default (0, 0.641), as in FasterCache's code.
        num_inference_steps: Steps of a run, for a transformer without a pipeline. None (default): read
            from the pipeline, or unknown.
        tuned_steps: Steps of the runs that these options were tuned for; a run of another length gets a
            warning. None (default): nothing is known.
        steps_computation_mask: 1 must compute, 0 may skip, for each step; replaces the warm-up. See
            `cache_dit.steps_mask`. None (default): there is none.
        steps_computation_policy: "dynamic" (default): a 0 is decided by the method. "static": a 0 is
            skipped, and not even the first blocks run.
        force_refresh_step_hint: Step at which everything kept is dropped and counting starts again, for
            pipelines with several denoising stages in one call. None (default): never.
        force_refresh_step_policy: "once" (default) at that step, or "repeat" every that many steps.
        max_live_requests: Most requests that may keep state in one transformer at a time; one more is an
            error, before it costs memory. -1: no limit. See `cache_dit.Request`. Default 64.

    Raises:
        ConfigError: A value that is not allowed, or options that exclude each other.
        ConfigTypeError: An option is unknown or of the wrong type.
    """

    cache_type: ClassVar[CacheType] = CacheType.OTHER
    method: ClassVar[str] = ""
    """Name of the method, as published."""

    each_region_decides: ClassVar[bool] = False
    """Whether the regions of every list decide for themselves, also where lists decide together."""

    place: Place = option(instance_of(Place), default=Place.MIDDLE)
    Fn_compute_blocks: int = option(whole(0), default=0)
    Bn_compute_blocks: int = option(whole(0), default=0)
    max_warmup_steps: int = option(whole(0), default=0)
    warmup_interval: int = option(whole(1), default=1)
    max_cached_steps: int = option(whole(1, unlimited=True), default=-1)
    max_continuous_cached_steps: int = option(whole(1, unlimited=True), default=-1)
    enable_separate_cfg: bool | None = option(optional(flag), default=None)
    cfg_compute_first: bool = option(flag, default=False)
    cfg_diff_compute_separate: bool = option(flag, default=True)
    per_sample: bool = option(flag, default=False)
    uncond_interval: int | None = option(optional(whole(1)), default=None)
    uncond_window: Sequence[float] = option(sequence_of(real(0.0, 1.0), 2), default=(0.0, 0.641))
    num_inference_steps: int | None = option(optional(whole(1)), default=None)
    tuned_steps: int | None = option(optional(whole(1)), default=None)
    steps_computation_mask: Sequence[int] | None = option(optional(_mask), default=None)
    steps_computation_policy: str = option(one_of("dynamic", "static"), default="dynamic")
    force_refresh_step_hint: int | None = option(optional(whole(1)), default=None)
    force_refresh_step_policy: str = option(one_of("once", "repeat"), default="once")
    max_live_requests: int = option(whole(1, unlimited=True), default=64)

    def __post_init__(self) -> None:
        super().__post_init__()
        mask, total = self.steps_computation_mask, self.num_inference_steps
        if mask is not None and total is not None and self.force_refresh_step_hint is None:
            check_mask_length(len(mask), total)
        self._check_uncond()

    def _check_uncond(self) -> None:
        window = self.uncond_window
        if not window[0] < window[1]:
            raise ConfigError(f"uncond_window is {window}; give a low and a higher noise level.")
        if self.uncond_interval is not None and self.enable_separate_cfg is False:
            raise ConfigError(
                f"uncond_interval is {self.uncond_interval} but enable_separate_cfg is False, so the "
                "unconditional branch has no call of its own to be skipped; leave one of them out."
            )
        if self.uncond_interval is not None and self.per_sample:
            raise ConfigError(
                f"per_sample is True but uncond_interval is {self.uncond_interval}, which skips a branch of "
                "the whole batch; leave one of them out."
            )

    @property
    def static(self) -> bool:
        """Whether the mask alone decides."""
        return self.steps_computation_mask is not None and self.steps_computation_policy == "static"

    @abstractmethod
    def gate(self) -> Gate:
        """The rule of this method, for steps that no limit decides."""

    def policy(self) -> Policy:
        """The rule within the limits that are set here."""
        return Policy(
            gate=Always(Reason.MASK) if self.static else self.gate(),
            warmup=self.max_warmup_steps,
            warmup_interval=self.warmup_interval,
            max_cached=-1 if self.static else self.max_cached_steps,
            max_continuous=-1 if self.static else self.max_continuous_cached_steps,
            mask=self.steps_computation_mask,
        )

    def policy_of(self, kind: Kind) -> Policy:
        """The same for one kind of module inside of blocks, where those are what is skipped."""
        return self.policy()

    def tokens(self) -> Tokens | None:
        """How tokens are chosen that modules in blocks compute on skipped steps; None: they compute none."""
        return None

    def regions(self, start: int, stop: int) -> tuple[Region, ...]:
        """What is decided over, of the blocks `[start, stop)` of a list that may be skipped."""
        if self.place is not Place.BLOCKS:
            return (Region(start, stop, self.policy()),)
        followers = (Region(block, block + 1, None) for block in range(start + 1, stop))
        return (Region(start, start + 1, self.policy()), *followers)

    def strify(self) -> str:
        """The short form used in benchmarks and file names: what is computed for certain, then the strength.

        Examples:
            >>> DBCacheConfig(max_continuous_cached_steps=3).strify()
            'F8B0_W8I1M0MC3_R0.08'
        """
        text = (
            f"F{self.Fn_compute_blocks}B{self.Bn_compute_blocks}"
            f"_W{self.max_warmup_steps}I{self.warmup_interval}"
            f"M{max(self.max_cached_steps, 0)}MC{max(self.max_continuous_cached_steps, 0)}"
            f"_{self.label()}"
        )
        if self.place is not Place.MIDDLE:
            text += f"_{self.place.name}"
        if self.steps_computation_mask is not None:
            mask = "".join(str(int(entry)) for entry in self.steps_computation_mask)
            text += f"_SCM{mask}_{self.steps_computation_policy}"
        if self.enable_separate_cfg is not None:
            text += f"_CFG{int(self.enable_separate_cfg)}"
        if self.uncond_interval is not None:
            text += f"_U{self.uncond_interval}"
        if self.per_sample:
            text += "_PS"
        return text

    @abstractmethod
    def label(self) -> str:
        """The strength of the method in the short form, such as `R0.08`."""


@options
class BasicCacheConfig(CacheConfig):
    """First n and last n blocks computed, the middle skipped while the first blocks change little.

    Attributes:
        Fn_compute_blocks: As in `CacheConfig`; their residual is the signal. Default 8.
        max_warmup_steps: First steps that are computed. Default 8.
        residual_diff_threshold: A step is skipped while the relative L1 change of the first blocks' residual
            since the last computed step is below this. 0 never skips, 1 or more skips whatever the change
            is. Default 0.08.
        max_accumulated_residual_diff_threshold: Largest sum of those changes over skipped steps in a row;
            starts anew at each computed step. None (default): no limit.
    """

    cache_type: ClassVar[CacheType] = CacheType.DBCache
    method: ClassVar[str] = "DBCache"

    Fn_compute_blocks: int = option(whole(1), default=8)
    max_warmup_steps: int = option(whole(0), default=8)
    residual_diff_threshold: float = option(real(0.0), default=0.08)
    max_accumulated_residual_diff_threshold: float | None = option(optional(real(0.0)), default=None)

    def gate(self) -> Gate:
        """The first blocks' residual, or no measurement where the threshold admits any change."""
        unmeasured = (
            self.residual_diff_threshold >= 1.0 and self.max_accumulated_residual_diff_threshold is None
        )
        return Always() if unmeasured else ResidualGate(self.residual_diff_threshold)

    def policy(self) -> Policy:
        """The rule within the limits that are set here."""
        limit = None if self.static else self.max_accumulated_residual_diff_threshold
        return dataclasses.replace(super().policy(), max_accumulated=limit)

    def label(self) -> str:
        """`R` and the threshold."""
        return f"R{self.residual_diff_threshold:g}"


@options
class DBCacheConfig(BasicCacheConfig):
    """Dual block cache: first n and last n blocks computed, the middle skipped while little changes.

    Every option is one of `BasicCacheConfig`. FBCache (ParaAttention's first block cache) is
    `DBCacheConfig(Fn_compute_blocks=1, Bn_compute_blocks=0)`.
    """


@options
class CalibratorConfig(Options):
    """What a skipped segment is filled with; this one repeats the last computed value.

    Attributes:
        enable_calibrator: Forecast the main (hidden state) stream. False: it repeats the last value. Default
            True.
        enable_encoder_calibrator: The same for every other stream, such as the text stream. Default True.
        calibrator_cache_type: "residual" (default): the change over the segment is forecast and added to what
            enters it. "hidden_states": what leaves the segment is forecast.
        forecast_axis: What forecasts are made along. "step" (default): the number of the step. "sigma": the
            noise level, or the timestep where there is none; for schedules with uneven steps.
        cache_dtype: Type in which values are kept, such as `torch.bfloat16`; None (default): that of the
            stream.
        memory_budget: Most bytes that forecasts of one branch may keep; the order of the forecaster is
            lowered until it fits. None (default): no limit.

    Raises:
        ConfigError: A value that is not allowed.
        ConfigTypeError: An option is unknown or of the wrong type.
    """

    estimates: ClassVar[bool] = False
    """Whether the outputs of the transformer are corrected by the best linear estimate."""

    enable_calibrator: bool = option(flag, default=True)
    enable_encoder_calibrator: bool = option(flag, default=True)
    calibrator_cache_type: str = option(one_of("residual", "hidden_states"), default="residual")
    forecast_axis: str = option(one_of("step", "sigma"), default="step")
    cache_dtype: torch.dtype | None = option(optional(instance_of(torch.dtype)), default=None)
    memory_budget: int | None = option(optional(whole(1)), default=None)

    @property
    def known_trajectory(self) -> Trajectory | None:
        """What such an estimate is made from; None: what is expected of any model."""
        return None

    def forecaster(self, *, main: bool) -> Forecaster:
        """The forecaster of the main stream or of another one."""
        enabled = self.enable_calibrator if main else self.enable_encoder_calibrator
        return self.method() if enabled else Reuse()

    def of_branches(self) -> Forecaster:
        """The forecaster of the difference between the two branches of classifier-free guidance."""
        made = self.forecaster(main=True)
        return Reuse() if made.needs else made

    def method(self) -> Forecaster:
        """The forecaster that this configuration is about."""
        return Reuse()

    def strify(self) -> str:
        """`T0O0` for plain reuse."""
        return "T0O0"

    def describe(self) -> str:
        """The forecaster in words."""
        return "the last computed change" if self.calibrator_cache_type == "residual" else "the last output"


def check_mask_length(length: int, total: int) -> None:
    """Raise `ConfigError` unless a steps mask of `length` entries has one for each of `total` steps."""
    if length != total:
        raise ConfigError(
            f"steps_computation_mask has {length} entries but the run has {total} steps; give "
            f"cache_dit.steps_mask(mask_policy=..., total_steps={total}) or run {length} steps."
        )
