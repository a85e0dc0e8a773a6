"""What the runs of one model have in common, and the best linear estimate that follows from it.

A sampler that moves the latent by `h_j v_j` in step j (Euler on flow matching, `h_j = sigma_{j+1} - sigma_j`)
has after t steps moved it by `D_t = sum_{j<t} h_j v_j`. When only some of the outputs v_j are computed, `D_t`
has to be estimated from these. Over pictures they are vectors with a Gram matrix `G_ij = E<v_i, v_j>` that
changes little from prompt to prompt; with it the linear estimate of least mean square error is known
(kriging, or Gaussian process regression with a measured kernel). Extrapolating polynomials and corrections by
interpolating ones are special cases, with weights that fit no model.

What is computed off the true path is off itself: an error d of the latent shows in the output as about `J d`,
`J = -1` (a denoiser that points back), and as noise of `rho |d|`, `rho = 2`. Both were measured on the demo
model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cache_dit.caching.maths.placement import Model, best_steps
from cache_dit.errors import ConfigError
from cache_dit.files import reading, write_whole

# The kernel for models of which nothing is known; length and margin were chosen on the demo model, on other
# prompts than the benchmarks report.
_LENGTH = 3.0
_MARGIN = 0.01
_LEVEL = 10.0
_ROUGH = 0.3
# So much of the rough part is added to a measured kernel, which has seen a few pictures only.
_UNSEEN = 0.01
_RESPONSE = -1.0
_NOISE = 2.0
_RIDGE = 1e-7
_FORMAT = "cache_dit trajectory 1"


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """The second moments of a model's runs; made by `cache_dit.tune.calibrate`, or as expected of any model.

    Attributes:
        sigmas: Noise levels before every step, and behind the last one; S + 1 of them.
        gram: Mean inner products of the outputs of all steps, [S, S], float64 on the host.
        model: Class name of the transformer. "" (default): any.
        pictures: How many runs the mean is over. 0 (default): it was not measured.

    Raises:
        ConfigError: The sizes do not fit, or something is not finite.
    """

    sigmas: tuple[float, ...]
    gram: Tensor
    model: str = ""
    pictures: int = 0

    def __post_init__(self) -> None:
        count = len(self.sigmas) - 1
        known = all(map(math.isfinite, self.sigmas)) and bool(self.gram.isfinite().all())
        if count < 2 or self.gram.shape != (count, count) or not known:
            raise ConfigError(
                f"gram is of shape {tuple(self.gram.shape)} with {count + 1} sigmas; give finite numbers, "
                "one row and column for every sigma but the last, at least 2."
            )

    @classmethod
    def expected(cls, sigmas: Sequence[float]) -> Trajectory:
        """What is expected of a model that was not calibrated: a smooth function of the noise level.

        `G_ij = 10 + m5(r) + 0.3 m3(r)`, `r = |z_i - z_j| / 3`, `z = log((1.01 - sigma) / (sigma + 0.01))`,
        with the Matern kernels of Gaussian processes, `m3(r) = (1 + sqrt(3) r) exp(-sqrt(3) r)` and `m5(r) =
        (1 + sqrt(5) r + 5 r^2 / 3) exp(-sqrt(5) r)`: twice differentiable in the log signal-to-noise ratio
        but for a rougher part, and of any level.
        """
        smooth, rough = _matern(sigmas)
        return cls(tuple(sigmas), _LEVEL + smooth + _ROUGH * rough)

    @property
    def kernel(self) -> Tensor:
        """The Gram matrix for estimates, [S, S]: of mean square 1, and not more certain than it can be."""
        if not self.pictures:
            return self.gram
        return self.gram / self.gram.diagonal().mean() + _UNSEEN * _matern(self.sigmas)[1]

    @property
    def steps(self) -> int:
        """Steps of the runs."""
        return len(self.sigmas) - 1

    def save(self, path: str | Path) -> None:
        """Write a JSON file, whole or not at all.

        Raises:
            ConfigError: There is a file that is no trajectory.
            OSError: The file cannot be written.
        """
        content = {
            "format": _FORMAT,
            "model": self.model,
            "pictures": self.pictures,
            "sigmas": self.sigmas,
            "gram": self.gram.tolist(),
        }
        write_whole(Path(path), json.dumps(content) + "\n", mark=_FORMAT)

    @classmethod
    def load(cls, path: str | Path) -> Trajectory:
        """Read a file of `save`.

        Raises:
            ConfigError: It is no such file, is over 1 MB, or has a value that cannot be.
            OSError: There is no such file, or it cannot be read.
        """
        with reading(path, "trajectory", "see cache_dit.tune.calibrate", _FORMAT) as content:
            gram = torch.tensor(content["gram"], dtype=torch.float64)
            sigmas = tuple(map(float, content["sigmas"]))
            return cls(sigmas, gram, str(content["model"]), int(content["pictures"]))

    def resampled(self, sigmas: Sequence[float]) -> Trajectory:
        """The same for other noise levels, or another number of them, by cubic interpolation."""
        if len(sigmas) == len(self.sigmas) and all(map(math.isclose, sigmas, self.sigmas)):
            return self
        levels = self.sigmas[:-1]
        weights = torch.zeros(len(sigmas) - 1, self.steps, dtype=torch.float64)
        for row, sigma in enumerate(sigmas[:-1]):
            distances = [abs(level - sigma) for level in levels]
            nearest = sorted(range(len(levels)), key=distances.__getitem__)[:4]
            for place in nearest:
                others = [levels[other] for other in nearest if other != place]
                weights[row, place] = math.prod((sigma - other) / (levels[place] - other) for other in others)
        return Trajectory(tuple(sigmas), weights @ self.gram @ weights.T, self.model, self.pictures)

    def schedule(self, computed: int) -> tuple[int, ...]:
        """The computed steps, that many with the first one, from which the last latent is best estimated.

        By local search, see `caching.maths.placement`.

        Raises:
            ConfigError: There are not so many steps.
        """
        if not 2 <= computed <= self.steps:
            raise ConfigError(f"computed is {computed} of {self.steps} steps; give 2 to {self.steps}.")
        strides = torch.tensor(self.sigmas, dtype=torch.float64).diff()
        # By what was measured alone: with what was not, schedules were up to 6 dB worse in the worst tenth.
        return best_steps(Model(self.gram, strides, _RESPONSE, _NOISE, _RIDGE), computed)


class Estimator:
    """The best weights for the computed outputs of one run, which grow in number step by step.

    Args:
        trajectory: At the noise levels of the run.
        first: Step with which the run begins.
    """

    def __init__(self, trajectory: Trajectory, *, first: int = 0) -> None:
        count, sigmas = trajectory.steps, torch.tensor(trajectory.sigmas, dtype=torch.float64)
        # Row t: the coefficients of D_t over v_0, v_1, ...
        self._moved = torch.tril(sigmas.diff().expand(count + 1, count), -1)
        self._moved[:, :first] = 0.0
        self._gram = trajectory.kernel
        self._first = first
        self._exact = True
        self._place = self._moved[first]
        self._rows: list[Tensor] = []
        self._noise: list[float] = []

    def measured(self, step: int) -> None:
        """The output of this step was computed, with the latent where it was estimated to be last."""
        self._exact = self._exact and step == self._first + len(self._rows)
        error = self._place - self._moved[step]
        row = _RESPONSE * error
        row[step] += 1.0
        self._rows.append(row)
        self._noise.append(_NOISE**2 * max(float(error @ self._gram @ error), 0.0))

    def exact(self, step: int) -> bool:
        """Whether everything up to this step, and the step itself, was computed."""
        return self._exact and step + 1 == self._first + len(self._rows)

    def weights(self, step: int) -> list[float]:
        """Weights of the computed outputs in the estimate of `D_step`; the latent is taken to be there."""
        target = self._moved[step]
        if self.exact(step - 1):
            self._place = target
            return [float(weight) for weight in target[self._first : step]]
        rows = torch.stack(self._rows)
        onto, noise = rows @ self._gram, torch.tensor(self._noise, dtype=torch.float64)
        kernel = onto @ rows.T + noise.diag()
        kernel.diagonal().mul_(1.0 + _RIDGE)
        found = torch.linalg.solve(kernel, onto @ target)
        self._place = found @ rows
        return [float(weight) for weight in found]


def _matern(sigmas: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Both kernels between the steps, the smooth one first."""
    levels = torch.tensor(sigmas, dtype=torch.float64)[:-1].clamp(0.0, 1.0)
    ratio = ((1.0 + _MARGIN - levels) / (levels + _MARGIN)).log()
    distance = (ratio[:, None] - ratio).abs() / _LENGTH
    three, five = math.sqrt(3.0) * distance, math.sqrt(5.0) * distance
    return (1.0 + five + five.square() / 3.0) * (-five).exp(), (1.0 + three) * (-three).exp()
