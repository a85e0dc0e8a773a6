"""Forecasters: exact where they must be, and careful with tensors that others hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cache_dit.caching.engine.plan import Segment
from cache_dit.caching.engine.ports import Port, Ports
from cache_dit.caching.engine.state import SegmentState
from cache_dit.caching.forecasters.dicache import Aligned
from cache_dit.caching.forecasters.dmd import DMD
from cache_dit.caching.forecasters.foca import FoCa
from cache_dit.caching.forecasters.freqca import FreqCa
from cache_dit.caching.forecasters.hicache import HiCache
from cache_dit.caching.forecasters.newton import Newton
from cache_dit.caching.forecasters.reuse import Reuse
from cache_dit.caching.forecasters.spectrum import Spectrum
from cache_dit.caching.forecasters.taylorseer import TaylorSeer
from cache_dit.caching.maths.forecaster import Forecaster
from cache_dit.caching.maths.moment import Moment

NODES = (0, 1, 3, 4, 8, 10, 15)
EVEN_NODES = (3, 5, 7, 9, 11, 13, 15)
ORDERS = (1, 2, 3, 4)
FORECASTERS: tuple[Forecaster, ...] = (
    Reuse(),
    *map(Newton, ORDERS),
    *map(TaylorSeer, ORDERS),
    FoCa(),
    HiCache(),
    Spectrum(window=5),
    Spectrum(window=2, anchored=True),
    DMD(),
    DMD(snapshots=4),
    Aligned(),
    FreqCa(),
)

each_order = pytest.mark.parametrize("order", ORDERS)
each_forecaster = pytest.mark.parametrize("forecaster", FORECASTERS, ids=str)


def moment(step: int) -> Moment:
    return Moment(step, float(step), end=27.0, total=28, signal=torch.full((2, 3, 7), float(step)))


def nodes_for(forecaster: Forecaster) -> tuple[int, ...]:
    """Computed steps that the forecaster can make use of."""
    return EVEN_NODES if isinstance(forecaster, DMD) else NODES


def polynomial(degree: int) -> Callable[[int], Tensor]:
    generator = torch.Generator().manual_seed(degree)
    weights = torch.randn(degree + 1, 2, 3, 7, dtype=torch.float64, generator=generator)
    return lambda step: sum((step / 8) ** power * weights[power] for power in range(degree + 1))  # type: ignore[return-value]


def watched(forecaster: Forecaster, function: Callable[[int], Tensor], nodes: tuple[int, ...]) -> Any:
    """State after these computed steps, in memory that the forecaster offers for reuse."""
    state = forecaster.init()
    for step in nodes:
        value, spare = function(step), forecaster.spare(state)
        value = value.clone() if spare is None else spare.copy_(value)
        state = forecaster.observe(state, moment(step), value)
    return state


@each_order
@pytest.mark.parametrize("count", range(1, len(NODES) + 1))
def test_newton_is_exact_on_polynomials_at_uneven_gaps(order: int, count: int) -> None:
    degree = min(order, count - 1)
    function = polynomial(degree)
    state = watched(Newton(order), function, NODES[:count])
    for step in (NODES[count - 1] + 1, NODES[count - 1] + 2, NODES[count - 1] + 5):
        torch.testing.assert_close(
            Newton(order).predict(state, moment(step)), function(step), rtol=1e-9, atol=1e-9
        )


@each_order
def test_newton_is_not_exact_on_the_next_degree(order: int) -> None:
    function = polynomial(order + 1)
    state = watched(Newton(order), function, NODES)
    assert float((Newton(order).predict(state, moment(17)) - function(17)).abs().max()) > 1e-3


@each_order
def test_linear_feature_is_extrapolated_forward(order: int) -> None:
    state = watched(Newton(order), lambda step: torch.tensor([2.0 * step, -3.0 * step]), (4, 6))
    assert Newton(order).predict(state, moment(7)).tolist() == [14.0, -21.0]
    assert Newton(order).predict(state, moment(9)).tolist() == [18.0, -27.0]


@each_forecaster
def test_one_value_is_reused(forecaster: Forecaster) -> None:
    state = watched(forecaster, polynomial(2), (3,))
    assert torch.equal(forecaster.predict(state, moment(9)), polynomial(2)(3))


def test_reuse_returns_the_last_value() -> None:
    state = watched(Reuse(), polynomial(2), (0, 1, 4))
    assert torch.equal(Reuse().predict(state, moment(9)), polynomial(2)(4))


@each_forecaster
def test_predicting_changes_nothing(forecaster: Forecaster) -> None:
    state = watched(forecaster, polynomial(4), nodes_for(forecaster))
    first = forecaster.predict(state, moment(16)).clone()
    forecaster.predict(state, moment(20))
    assert torch.equal(forecaster.predict(state, moment(16)), first)


@each_forecaster
def test_memory_says_how_many_values_a_prediction_uses(forecaster: Forecaster) -> None:
    nodes = nodes_for(forecaster)
    late = watched(forecaster, polynomial(4), nodes[-forecaster.memory :])
    for skipped in range(len(nodes) - forecaster.memory):
        state = watched(forecaster, polynomial(4), nodes[skipped:])
        torch.testing.assert_close(
            forecaster.predict(state, moment(16)), forecaster.predict(late, moment(16))
        )
    if forecaster.memory > 1:
        fewer = watched(forecaster, polynomial(4), nodes[1 - forecaster.memory :])
        assert not torch.allclose(forecaster.predict(fewer, moment(16)), forecaster.predict(late, moment(16)))


@each_forecaster
def test_a_full_state_lives_in_the_same_memory(forecaster: Forecaster) -> None:
    state = forecaster.init()
    spares = []
    places = set()
    for step in nodes_for(forecaster):
        spare = forecaster.spare(state)
        spares.append(spare is not None)
        value = torch.full((1, 2, 5), float(step)) if spare is None else spare.fill_(step)
        places.add(value.data_ptr())
        state = forecaster.observe(state, moment(step), value)
    assert spares == [False] * forecaster.memory + [True] * (len(NODES) - forecaster.memory)
    assert len(places) == forecaster.memory


@each_forecaster
def test_it_makes_do_with_the_memory_that_there_is(forecaster: Forecaster) -> None:
    assert forecaster.within(forecaster.memory) == forecaster
    assert forecaster.within(forecaster.memory + 1) == forecaster
    for memory in range(1, forecaster.memory):
        lowered = forecaster.within(memory)
        assert lowered is None if memory == 1 else lowered is not None and 1 < lowered.memory <= memory


@each_forecaster
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_forecast_has_the_dtype_of_its_values(forecaster: Forecaster, dtype: torch.dtype) -> None:
    state = watched(forecaster, lambda step: polynomial(2)(step).to(dtype), nodes_for(forecaster))
    assert forecaster.predict(state, moment(17)).dtype is dtype


class TwoStreams(nn.Module):
    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        return hidden_states, encoder_hidden_states


def kept(forecaster: Forecaster, residual: bool) -> SegmentState:
    blocks = tuple(TwoStreams() for _ in range(2))
    names = ("hidden_states", "encoder_hidden_states")
    return SegmentState(
        Segment(
            paths=("blocks",),
            blocks=blocks,
            start=0,
            stop=2,
            ports=Ports((Port(names[0], 0), Port(names[1], 1)), bare=False, main=0),
            parameters=names,
            policy=None,
            leader=0,
            forecasters=(forecaster, Reuse()),
            residual=residual,
        )
    )


@each_forecaster
@pytest.mark.parametrize("residual", [True, False], ids=["residual", "hidden_states"])
def test_no_tensor_that_was_handed_in_or_out_is_changed_later(forecaster: Forecaster, residual: bool) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw() -> tuple[Tensor, Tensor]:
        return torch.randn(1, 2, 4, generator=generator), torch.randn(1, 2, 3, generator=generator)

    state = kept(forecaster, residual)
    seen: list[tuple[Tensor, Tensor]] = []
    for step in range(0, 20, 2):
        entry, output, next_entry = draw(), draw(), draw()
        assert state.fits(entry)
        state.observe(moment(step), entry, output)
        forecast = state.forecast(moment(step + 1), next_entry)
        for tensor in (*entry, *output, *next_entry, *forecast):
            seen.append((tensor, tensor.clone()))
    assert all(torch.equal(tensor, copy) for tensor, copy in seen)


@each_forecaster
@pytest.mark.parametrize("residual", [True, False], ids=["residual", "hidden_states"])
def test_writing_into_what_was_handed_out_changes_no_later_forecast(
    forecaster: Forecaster, residual: bool
) -> None:
    entry, output = (torch.ones(4), torch.ones(3)), (torch.full((4,), 3.0), torch.full((3,), 5.0))
    state = kept(forecaster, residual)
    state.fits(entry)
    state.observe(moment(0), entry, output)
    for tensor in (*state.forecast(moment(1), entry), *output):
        tensor.zero_()
    assert [value.mean().item() for value in state.forecast(moment(2), entry)] == [3.0, 5.0]


def test_another_shape_or_mode_drops_what_was_kept() -> None:
    entry = (torch.ones(4), torch.ones(3))
    for other, mode in (((torch.ones(5), torch.ones(3)), False), (entry, True)):
        state = kept(Reuse(), residual=True)
        assert state.fits(entry)
        state.observe(moment(0), entry, entry)
        assert state.ready
        assert state.fits(entry)
        with torch.inference_mode(mode):
            assert not state.fits(other)
        assert not state.ready


def test_nothing_kept_holds_an_autograd_graph() -> None:
    for residual in (True, False):
        state = kept(Newton(2), residual)
        entry = (torch.ones(4, requires_grad=True), torch.ones(3, requires_grad=True))
        for step in range(4):
            state.fits(entry)
            state.observe(moment(step), entry, tuple(value * (step + 2) for value in entry))
        assert not any(row.requires_grad for row in state.forecasts[0].values)
        assert not state.forecasts[1].requires_grad


def test_of_two_steps_of_one_noise_level_the_later_counts() -> None:
    forecaster, slope = Newton(2), torch.tensor([2.0, -1.0])
    state = forecaster.init()
    for time in (0.0, 0.25, 0.5):
        state = forecaster.observe(state, Moment(0, time), torch.full((2,), 9.0))
        state = forecaster.observe(state, Moment(1, time), 1.0 + time * slope)
    assert state.times == (0.5, 0.25)
    torch.testing.assert_close(forecaster.predict(state, Moment(5, 0.9)), 1.0 + 0.9 * slope)
