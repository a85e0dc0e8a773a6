"""The best linear estimate of the latent from the outputs computed so far, and the schedules for it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from cache_dit.errors import ConfigError
from cache_dit.tune.recording import Recording
from cache_dit.tune.searches import Choice, Rerun, Search

# Added to the diagonal of a system, relative to it: outputs are no more exact than that in float32.
_RIDGE = 1e-7


class Ways(NamedTuple):
    """Estimates of the ways from the noise, for B schedules of n computed steps in a run of S.

    Attributes:
        weights: [B, S + 1, n]: before every step and after the last, over the computed outputs.
        known: [B, S + 1, S]: what that is over the outputs of the uncached run, as far as it can be told.
        unknown: [B, S + 1]: the mean square of the rest.
    """

    weights: Tensor
    known: Tensor
    unknown: Tensor


class Products(NamedTuple):
    """What is kept of a run of S steps.

    Attributes:
        gram: [S, S] float64: mean products of the outputs of every two steps.
        strides: [S] float64: what the sampler multiplies each output by.
    """

    gram: Tensor
    strides: Tensor


@dataclass(frozen=True, kw_only=True)
class LinearEstimate(Search):
    """Weigh the computed outputs so that the latent is expected to be nearest to the uncached one.

    Whatever forecasts outputs by polynomials, and corrects the latent afterwards, moves it by a weighted sum
    of the outputs computed so far. The best weights follow from how outputs of different steps go together
    over a few uncached runs. Let `v_j` be those outputs, `h_j` the strides of the sampler and
    `X_t = sum_{j<t} h_j v_j` the way from the noise. In a run that computes only some steps the way is
    estimated by `w_t . b`, with b its outputs and `w_t = (A G A' + N)^-1 A G x_t`: the linear estimate of
    least mean square, in geostatistics known as kriging. G holds the mean products of the `v_j`, `x_t` the
    coefficients of `X_t` over them. The row of A for a computed step is that step, changed by what is known
    of the error d that the latent has there, `response * d`; the rest is noise N of the size `spread *
    |d|`.

    The outputs are those that guidance mixes: as it is linear, the same weights serve every branch. Needs
    Euler's method on the flow of flow matching. Costs one uncached run for each prompt; 8 are enough, with 24
    the worst picture is better.

    Attributes:
        response: Change of the output along an error of the latent, for each unit of that error. Default -1,
            measured on the demo model.
        spread: Size of the rest of that change. Default 2, measured likewise.
        reach: How far a computed step is moved at once while schedules are compared, in steps. Default 3.
    """

    name: ClassVar[str] = "linear estimate"

    response: float = -1.0
    spread: float = 2.0
    reach: int = 3

    def look(self, recording: Recording, rerun: Rerun) -> Products:
        noise = recording.noise
        if noise is None or noise.strides is None or recording.start is None:
            raise ConfigError(
                "The sampler of this pipeline does not move the latent by multiples of the transformer's "
                "output, as Euler's on flow matching does; give another search, such as DPCache()."
            )
        strides = torch.tensor(noise.strides, dtype=torch.float64)
        latents = torch.cat([recording.start[None], recording.latents]).double()
        outputs = latents.diff(dim=0) / strides[:, None]
        return Products(outputs @ outputs.T / outputs.shape[1], strides)

    def choose(self, seen: Sequence[Products], total: int, count: int) -> Choice:
        grams = torch.stack([products.gram for products in seen])
        mean, strides = grams.mean(0), seen[0].strides

        def errors(schedules: Tensor) -> Tensor:
            """[B]: the error to be expected of the final latent for each of [B, n] schedules, in dB."""
            ways = self.ways(mean, strides, schedules)
            missed = ways.known[:, -1] - strides
            squares = torch.einsum("bi,pij,bj->bp", missed, grams, missed) + ways.unknown[:, -1, None]
            return 10.0 * squares.clamp_min(1e-14).log10().mean(1)

        starts = torch.tensor(_starts(total, count))
        best = min(
            (self._improved(starts[place], total, errors) for place in errors(starts).argsort()[:3]),
            key=lambda found: found[0],
        )[1]
        weights = self.ways(mean, strides, best[None]).weights[0].diff(dim=0) / strides[:, None]
        counts = (best <= torch.arange(total)[:, None]).sum(1)
        rows = (row[:count] for row, count in zip(weights.tolist(), counts.tolist(), strict=True))
        # Eight digits: outputs have no more.
        rounded = tuple(tuple(float(f"{entry:.8g}") for entry in row) for row in rows)
        return Choice(tuple(best.tolist()), rounded)

    def ways(self, gram: Tensor, strides: Tensor, computed: Tensor) -> Ways:
        """The estimates in runs that compute the steps in the rows of `computed`, [B, n]."""
        (batch, count), total = computed.shape, len(strides)
        targets = torch.ones(total + 1, total, dtype=strides.dtype).tril(-1) * strides
        weights = torch.zeros(batch, total + 1, count, dtype=strides.dtype)
        outputs = torch.zeros(batch, count, total, dtype=strides.dtype)
        noise = torch.zeros(batch, count, dtype=strides.dtype)
        item = torch.arange(batch)
        for number in range(count):
            step, seen = computed[:, number], number + 1
            error = (weights[item, step, None, :] @ outputs)[:, 0] - targets[step]
            outputs[:, number] = self.response * error
            outputs[item, number, step] += 1.0
            noise[:, number] = self.spread**2 * ((error @ gram) * error).sum(1).clamp_min(0.0)
            products = outputs[:, :seen] @ gram
            system = products @ outputs[:, :seen].mT + noise[:, :seen].diag_embed()
            system.diagonal(dim1=1, dim2=2).mul_(1.0 + _RIDGE)
            later = torch.arange(total + 1) > step[:, None]
            solved = torch.linalg.solve(system, products @ targets.T).mT
            weights[..., :seen] = torch.where(later[..., None], solved, weights[..., :seen])
            # As long as every step was computed nothing has to be estimated.
            weights[step == number, seen, :seen] = strides[:seen]
        return Ways(weights, weights @ outputs, (weights**2 @ noise[..., None])[..., 0])

    def _improved(
        self, start: Tensor, total: int, errors: Callable[[Tensor], Tensor]
    ) -> tuple[float, Tensor]:
        """The schedule at the end of a descent that moves one computed step at a time, and its error."""
        best, error = start, float(errors(start[None]))
        while True:
            taken = set(best.tolist())
            moved = [
                sorted(taken - {step} | {step + by})
                for step in taken - {0}
                for by in range(-self.reach, self.reach + 1)
                if 0 < step + by < total and step + by not in taken
            ]
            if not moved:
                return error, best
            found = errors(torch.tensor(moved))
            if float(found.min()) > error - 1e-4:
                return error, best
            best, error = torch.tensor(moved[int(found.argmin())]), float(found.min())


def _starts(total: int, count: int) -> list[list[int]]:
    """Schedules to begin with: a computed prefix, then gaps that stay or grow."""
    starts = []
    for prefix in range(1, min(6, count)):
        for power in (1.0, 1.3, 1.7, 2.2):
            places = [
                prefix - 1 + (total - prefix) * (rank / (count - prefix)) ** power
                for rank in range(1, count - prefix + 1)
            ]
            steps = {*range(prefix), *(min(round(place), total - 1) for place in places)}
            # Rounding may collide where steps are dense.
            free = (step for step in range(total) if step not in steps)
            starts.append(sorted({*steps, *itertools.islice(free, count - len(steps))}))
    return starts or [[0]]
