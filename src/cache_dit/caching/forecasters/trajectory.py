"""The latent's way over the whole run, from everything that was computed of it."""

from __future__ import annotations

from typing import ClassVar

from cache_dit.caching.config import CalibratorConfig
from cache_dit.caching.forecasters.newton import Newton
from cache_dit.caching.maths.trajectory import Trajectory
from cache_dit.caching.options import instance_of, option, optional, options


@options
class TrajectoryCalibratorConfig(CalibratorConfig):
    """Estimate where the latent should be from all outputs computed so far, and take it there (this project).

    A forecast that was off has moved the latent to a wrong place. Every computed step tells more of the steps
    before it, so it also puts right what they got wrong: see `caching.maths.trajectory` for the estimate,
    which is the linear one of least mean square error under a kernel, and `engine.estimation` for what it
    does. With `Place.OUTPUT` the estimate is also what skipped steps return, and everything that is kept are
    outputs of the transformer, which are small; with other places these forecast their streams by a line.

    Needs a sampler that moves the latent by a multiple of the output: Euler's on flow matching, which FLUX,
    SD3, Qwen-Image, HunyuanVideo, LTX-Video and others use. With others there are the forecasts alone.

    Attributes:
        trajectory: What the estimate is made from: measured once for a model by `cache_dit.tune.calibrate`.
            None (default): what is expected of any model, `Trajectory.expected`.
    """

    estimates: ClassVar[bool] = True

    trajectory: Trajectory | None = option(optional(instance_of(Trajectory)), default=None)

    @property
    def known_trajectory(self) -> Trajectory | None:
        """What the estimate is made from; None: what is expected of any model."""
        return self.trajectory

    def method(self) -> Newton:
        """The forecaster of single streams."""
        return Newton(1)

    def strify(self) -> str:
        """`E0`, or `E` and the number of pictures that the trajectory was measured on."""
        return f"E{0 if self.trajectory is None else self.trajectory.pictures}"

    def describe(self) -> str:
        """The forecaster in words."""
        return "the best linear estimate of the latent"
