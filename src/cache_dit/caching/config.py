"""What users set: cache and calibrator configurations, with the names of the reference system."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any

from cache_dit.caching.maths.forecasters import Forecaster, Reuse, TaylorSeer
from cache_dit.caching.maths.gates import ResidualGate
from cache_dit.caching.options import Options, flag, one_of, option, optional, options, real, whole
from cache_dit.errors import ConfigError, ConfigTypeError


class CacheType(Enum):
    """Which family of methods a configuration belongs to."""

    NONE = "NONE"
    DBCache = "DBCache"


def _mask(name: str, value: Any) -> None:
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise ConfigTypeError(f"{name} is {value!r}; give a list of 0 and 1, see cache_dit.steps_mask.")
    if not value or any(entry not in (0, 1) for entry in value):
        raise ConfigError(f"{name} is {list(value)}; give one 0 or 1 for every step, at least one.")


@options
class BasicCacheConfig(Options):
    """Options that every block cache has.

    Attributes:
        Fn_compute_blocks: First blocks of a list that are always computed; their residual is the signal.
            Where one decision covers several lists it counts in the first. Default 8.
        Bn_compute_blocks: Last blocks that are always computed. Default 0.
        residual_diff_threshold: A step is skipped while the relative L1 change of the first blocks' residual
            since the last computed step is below this. 0 never skips, 1 or more skips whatever the change
            is. Default 0.08.
        max_accumulated_residual_diff_threshold: Largest sum of those changes over skipped steps in a row;
            starts anew at each computed step. None: no limit.
        max_warmup_steps: First steps that are computed. Default 8.
        warmup_interval: Within the warm-up only every n-th step is computed for certain. Default 1.
        max_cached_steps: Most skipped steps in a run; -1: no limit.
        max_continuous_cached_steps: Most skipped steps in a row; -1: no limit.
        enable_separate_cfg: True: the model is called twice a step, for the two branches of classifier-free
            guidance, and each branch has its own cache. False: once a step. None (default): found out from
            the pipeline's branch names or from the calls that share a timestep.
        cfg_compute_first: With two unnamed calls a step, the first is the unconditional one.
        cfg_diff_compute_separate: False: the later branch of a step takes the change measured by the first.
        num_inference_steps: Steps of a run, for a transformer without a pipeline; None: read from the
            pipeline, or unknown.
        steps_computation_mask: 1 must compute, 0 may skip, for each step; replaces the warm-up. See
            `cache_dit.steps_mask`.
        steps_computation_policy: "dynamic": a 0 is decided by the threshold. "static": a 0 is skipped, and
            not even the first blocks run.
        force_refresh_step_hint: Step at which everything kept is dropped and counting starts again, for
            pipelines with several denoising stages in one call. None: never.
        force_refresh_step_policy: "once" at that step, or "repeat" every that many steps.
        max_live_requests: Most requests that may keep state in one transformer at a time; one more is an
            error, before it costs memory. -1: no limit. See `cache_dit.Request`. Default 64.
    """

    Fn_compute_blocks: int = option(whole(1), default=8)
    Bn_compute_blocks: int = option(whole(0), default=0)
    residual_diff_threshold: float = option(real(0.0), default=0.08)
    max_accumulated_residual_diff_threshold: float | None = option(optional(real(0.0)), default=None)
    max_warmup_steps: int = option(whole(0), default=8)
    warmup_interval: int = option(whole(1), default=1)
    max_cached_steps: int = option(whole(1, unlimited=True), default=-1)
    max_continuous_cached_steps: int = option(whole(1, unlimited=True), default=-1)
    enable_separate_cfg: bool | None = option(optional(flag), default=None)
    cfg_compute_first: bool = option(flag, default=False)
    cfg_diff_compute_separate: bool = option(flag, default=True)
    num_inference_steps: int | None = option(optional(whole(1)), default=None)
    steps_computation_mask: Sequence[int] | None = option(optional(_mask), default=None)
    steps_computation_policy: str = option(one_of("dynamic", "static"), default="dynamic")
    force_refresh_step_hint: int | None = option(optional(whole(1)), default=None)
    force_refresh_step_policy: str = option(one_of("once", "repeat"), default="once")
    max_live_requests: int = option(whole(1, unlimited=True), default=64)

    def __post_init__(self) -> None:
        super().__post_init__()
        mask, total = self.steps_computation_mask, self.num_inference_steps
        if mask is not None and total is not None and self.force_refresh_step_hint is None:
            check_mask_length(mask, total)

    @property
    def cache_type(self) -> CacheType:
        """The family of methods."""
        return CacheType.DBCache

    @property
    def static(self) -> bool:
        """Whether the mask alone decides."""
        return self.steps_computation_mask is not None and self.steps_computation_policy == "static"

    def gate(self) -> ResidualGate:
        """The rule that decides, as configured here."""
        mask = self.steps_computation_mask
        return ResidualGate(
            threshold=self.residual_diff_threshold,
            warmup=self.max_warmup_steps,
            warmup_interval=self.warmup_interval,
            max_cached=self.max_cached_steps,
            max_continuous=self.max_continuous_cached_steps,
            max_accumulated=self.max_accumulated_residual_diff_threshold,
            mask=None if mask is None else tuple(mask),
            static=self.static,
        )

    def strify(self) -> str:
        """The short form used in benchmarks and file names.

        Example:
            >>> DBCacheConfig(max_continuous_cached_steps=3).strify()
            'F8B0_W8I1M0MC3_R0.08'
        """
        text = (
            f"F{self.Fn_compute_blocks}B{self.Bn_compute_blocks}"
            f"_W{self.max_warmup_steps}I{self.warmup_interval}"
            f"M{max(self.max_cached_steps, 0)}MC{max(self.max_continuous_cached_steps, 0)}"
            f"_R{self.residual_diff_threshold:g}"
        )
        if self.steps_computation_mask is not None:
            mask = "".join(str(int(entry)) for entry in self.steps_computation_mask)
            text += f"_SCM{mask}_{self.steps_computation_policy}"
        if self.enable_separate_cfg is not None:
            text += f"_CFG{int(self.enable_separate_cfg)}"
        return text


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
        enable_calibrator: Forecast the main (hidden state) stream. False: it repeats the last value.
        enable_encoder_calibrator: The same for every other stream, such as the text stream.
        calibrator_cache_type: "residual": the change over the segment is forecast and added to what enters
            it. "hidden_states": what leaves the segment is forecast.
    """

    enable_calibrator: bool = option(flag, default=True)
    enable_encoder_calibrator: bool = option(flag, default=True)
    calibrator_cache_type: str = option(one_of("residual", "hidden_states"), default="residual")

    def forecaster(self, *, main: bool) -> Forecaster:
        """The forecaster of the main stream or of another one."""
        enabled = self.enable_calibrator if main else self.enable_encoder_calibrator
        return self._forecaster() if enabled else Reuse()

    def strify(self) -> str:
        """`T0O0` for plain reuse."""
        return "T0O0"

    def describe(self) -> str:
        """The forecaster in words."""
        return "the last computed change" if self.calibrator_cache_type == "residual" else "the last output"

    def _forecaster(self) -> Forecaster:
        return Reuse()


@options
class TaylorSeerCalibratorConfig(CalibratorConfig):
    """Extrapolate over the last computed steps (TaylorSeer, arXiv 2503.06923), right at uneven gaps.

    Attributes:
        taylorseer_order: Degree of the polynomial, 1 to 4; costs one tensor a stream each. Default 1.
    """

    taylorseer_order: int = option(whole(1), default=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.taylorseer_order > 4:
            raise ConfigError(
                f"taylorseer_order is {self.taylorseer_order}; give 1 to 4: differences of a higher order "
                "amplify noise more than they add."
            )

    def strify(self) -> str:
        """For example `T1O2`."""
        return f"T1O{self.taylorseer_order}"

    def describe(self) -> str:
        """The forecaster in words."""
        return f"TaylorSeer of order {self.taylorseer_order} on {self.calibrator_cache_type}"

    def _forecaster(self) -> Forecaster:
        return TaylorSeer(self.taylorseer_order)


def check_mask_length(mask: Sequence[int], total: int) -> None:
    """Raise `ConfigError` unless the mask has one entry for each of `total` steps."""
    if len(mask) != total:
        raise ConfigError(
            f"steps_computation_mask has {len(mask)} entries but the run has {total} steps; give "
            f"cache_dit.steps_mask(mask_policy=..., total_steps={total}) or run {len(mask)} steps."
        )
