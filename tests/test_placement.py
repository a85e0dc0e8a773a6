"""The search for computed steps: against the estimator that runs use, and against brute force."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from cache_dit.caching.maths import trajectory
from cache_dit.caching.maths.placement import Model, best_steps
from cache_dit.caching.maths.trajectory import Estimator, Trajectory


def sigmas(steps: int, shift: float = 2.0) -> tuple[float, ...]:
    times = [1.0 - step / steps for step in range(steps + 1)]
    return tuple(shift * time / (1.0 + (shift - 1.0) * time) for time in times)


def model(steps: int) -> Model:
    levels = sigmas(steps)
    strides = torch.tensor(levels, dtype=torch.float64).diff()
    return Model(Trajectory.expected(levels).gram, strides, response=-1.0, noise=2.0, ridge=1e-7)


@pytest.mark.parametrize("count", [1, 2, 5, 11, 12])
def test_errors_are_those_that_the_estimator_makes(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a response to errors, and without noise: on outputs with just these inner products."""
    monkeypatch.setattr(trajectory, "_RESPONSE", 0.0)
    monkeypatch.setattr(trajectory, "_NOISE", 0.0)
    steps, known = 12, model(12)._replace(response=0.0, noise=0.0)
    outputs = torch.linalg.cholesky(known.gram)
    rng = random.Random(count)
    for _ in range(5):
        schedule = [0, *sorted(rng.sample(range(1, steps), count - 1))]
        estimator = Estimator(Trajectory.expected(sigmas(steps)))
        for step in schedule:
            estimator.measured(step)
        estimate = torch.tensor(estimator.weights(steps)).double() @ outputs[schedule]
        error = (estimate - known.strides @ outputs).square().sum()
        found = known.errors(torch.tensor([schedule]))[0]
        torch.testing.assert_close(found, error, rtol=1e-3, atol=1e-9)


def test_what_was_missed_is_noise_in_the_next_outputs() -> None:
    schedules = torch.tensor([[0, 1, 4, 8], [0, 1, 2, 11]])
    quiet, noisy = (model(12)._replace(noise=noise).errors(schedules) for noise in (0.0, 2.0))
    assert bool((noisy > quiet).all())
    assert float(noisy[0] / quiet[0]) > 1.2


@pytest.mark.parametrize("count", [2, 4, 6])
def test_the_search_finds_the_best_of_a_short_run(count: int) -> None:
    every = torch.tensor([(0, *rest) for rest in itertools.combinations(range(1, 10), count - 1)])
    errors = model(10).errors(every)
    found = model(10).errors(torch.tensor([best_steps(model(10), count)]))
    assert float(found) <= 1.05 * float(errors.min())
    assert float(errors.median()) > 1.5 * float(errors.min()), "the choice matters"


@pytest.mark.parametrize(("steps", "count"), [(6, 1), (6, 2), (6, 6), (28, 9)])
def test_a_schedule_has_the_steps_that_are_asked_for(steps: int, count: int) -> None:
    found = best_steps(model(steps), count)
    assert found[0] == 0
    assert len(found) == count
    assert list(found) == sorted(set(found))
    assert found[-1] < steps


def test_the_search_does_better_than_even_gaps() -> None:
    even = torch.linspace(0, 27, 9).round().long()[None]
    found = torch.tensor([best_steps(model(28), 9)])
    assert float(model(28).errors(found)) < 0.8 * float(model(28).errors(even))
