"""Which steps to compute, so that the linear estimate of `maths.trajectory` ends nearest to the truth."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_REACH = 3  # steps that a computed step is moved by at most in one go


class Model(NamedTuple):
    """What the estimate is made from, see `maths.trajectory`.

    Attributes:
        gram: [S, S] float64: mean inner products of the outputs of all steps.
        strides: [S]: what the sampler multiplies each output by.
        response: How an error of the latent shows in the output.
        noise: The size of the rest of that, for each unit of the error.
        ridge: Relative addition to the diagonal.
    """

    gram: Tensor
    strides: Tensor
    response: float = -1.0
    noise: float = 2.0
    ridge: float = 1e-7

    def errors(self, schedules: Tensor) -> Tensor:
        """[B]: expected squared errors of the last latent; `schedules` [B, n] are rising steps from 0.

        The noise of the outputs counts with its amplitude, and so does what follows from it: what is
        off in one run is off in one direction. Schedules chosen so were better on the demo model than those
        for independent noise, mostly in the worst pictures.
        """
        (batch, count), total = schedules.shape, len(self.strides)
        # Row t: how far the latent has come before step t, over the outputs; then the same as estimated.
        ways = torch.ones(total + 1, total, dtype=torch.float64).tril(-1) * self.strides
        place = torch.zeros(batch, total, dtype=torch.float64)
        rows = torch.zeros(batch, count, total, dtype=torch.float64)
        noise = torch.zeros(batch, count, dtype=torch.float64)
        unknown = torch.zeros(batch, dtype=torch.float64)
        after = torch.cat([schedules[:, 1:], torch.full((batch, 1), total)], dim=1)
        for number in range(count):
            step, known = schedules[:, number], number + 1
            missed = place - ways[step]
            rows[:, number] = self.response * missed
            rows[torch.arange(batch), number, step] += 1.0
            noise[:, number] = self.noise * (self._squares(missed) + unknown).sqrt()
            onto = rows[:, :known] @ self.gram
            kernel = onto @ rows[:, :known].mT + noise[:, :known].square().diag_embed()
            kernel.diagonal(dim1=1, dim2=2).mul_(1.0 + self.ridge)
            target = ways[after[:, number]]
            weights = torch.linalg.solve(kernel, (onto @ target[..., None])[..., 0])
            # As long as every step is computed nothing has to be estimated.
            exact = after[:, number] == known
            place = torch.where(exact[:, None], target, (weights[:, None] @ rows[:, :known])[:, 0])
            unknown = torch.where(exact, 0.0, (weights.abs() * noise[:, :known]).sum(1).square())
        return self._squares(place - ways[-1]) + unknown

    def _squares(self, coefficients: Tensor) -> Tensor:
        return ((coefficients @ self.gram) * coefficients).sum(1).clamp_min(0.0)


def best_steps(model: Model, count: int) -> tuple[int, ...]:
    """The `count` computed steps, the first among them, with the smallest error that a descent finds.

    From the best of a few schedules with growing gaps, single steps are moved while that lowers the error.
    All moves are tried at once, so that a search over 50 steps takes seconds.
    """
    total = len(model.strides)
    starts = torch.tensor(_starts(total, count))
    found = (descended(model, starts[place]) for place in model.errors(starts).argsort()[:3])
    return min(found, key=lambda one: one.error).steps


class Found(NamedTuple):
    """A schedule and the error to be expected of it."""

    steps: tuple[int, ...]
    error: float


def descended(model: Model, start: Tensor, fixed: int = 1) -> Found:
    """The end of a descent from a schedule, [n], whose first `fixed` steps stay."""
    best = Found(tuple(start.tolist()), float(model.errors(start[None])))
    while True:
        taken, first, end = set(best.steps), best.steps[fixed - 1] + 1, len(model.strides)
        moved = [
            sorted(taken - {step} | {to})
            for step in best.steps[fixed:]
            for to in range(max(first, step - _REACH), min(end, step + _REACH + 1))
            if to not in taken
        ]
        if not moved:
            return best
        errors = model.errors(torch.tensor(moved))
        place = int(errors.argmin())
        if not float(errors[place]) < best.error * (1.0 - 1e-6):
            return best
        best = Found(tuple(moved[place]), float(errors[place]))


def _starts(total: int, count: int) -> list[Sequence[int]]:
    """Schedules that begin with a computed prefix, and go on with gaps that stay or grow."""
    starts: list[Sequence[int]] = []
    for prefix, power in itertools.product(range(1, min(6, count)), (1.0, 1.3, 1.7, 2.2)):
        shares = (((rank + 1) / (count - prefix)) ** power for rank in range(count - prefix))
        steps = {*range(prefix), *(prefix - 1 + round((total - prefix) * share) for share in shares)}
        # Rounding may collide where steps are dense.
        free = (step for step in range(total) if step not in steps)
        starts.append(sorted({*steps, *itertools.islice(free, count - len(steps))}))
    return starts or [range(count)]
