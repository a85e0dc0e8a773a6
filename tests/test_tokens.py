"""Tokens that are computed on skipped steps: which, with what result, and what that saves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny.models import PIXART
from tiny.runs import Denoising, small_flux
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import cache_dit
from cache_dit import CacheConfig, CalibratorConfig, Place, Request, TaylorSeerCalibratorConfig
from cache_dit.api import attachments_of
from cache_dit.caching.catalogue import DuCaConfig, IntervalConfig, ToCaConfig
from cache_dit.caching.engine.ports import Call
from cache_dit.caching.engine.tokens import is_tokenwise, on_tokens
from cache_dit.caching.forecasters.reuse import Reuse
from cache_dit.caching.maths.moment import Moment
from cache_dit.caching.maths.tokens import Ages, Tokens, put_rows, rows_of
from cache_dit.errors import ConfigError
from cache_dit.stats.flops import SDPA_MAPPING

ALL: dict[str, Any] = {"max_warmup_steps": 1, "interval": 4}


def cached(config: CacheConfig, calibrator: CalibratorConfig | None = None) -> Any:
    return cache_dit.enable_cache(small_flux(), config, calibrator)


def final(config: CacheConfig | None, calibrator: CalibratorConfig | None = None) -> Tensor:
    model = small_flux() if config is None else cached(config, calibrator)
    return Denoising(model, 1, 6, request=Request(6)).finish()


def off(left: Tensor, right: Tensor) -> float:
    return float((left - right).norm() / right.norm())


# --- the choice ---


def chosen(tokens: Tokens, kept: Tensor, steps: int) -> list[list[int] | None]:
    """The tokens of the first sample in each of so many steps in a row."""
    known, made = None, []
    for step in range(steps):
        index, known = tokens.choose(known, kept, step)
        made.append(None if index is None else sorted(index[0].tolist()))
    return made


def test_large_tokens_come_first() -> None:
    kept = torch.tensor([1.0, 4.0, 2.0, 3.0]).reshape(1, 4, 1).expand(2, 4, 8)
    assert chosen(Tokens(0.5, norm=1.0), kept, 2) == [[1, 3], [1, 3]]


def test_old_tokens_come_first() -> None:
    kept = torch.tensor([1.0, 4.0, 2.0, 3.0]).reshape(1, 4, 1)
    assert chosen(Tokens(0.25, age=10.0, norm=1.0), kept, 5) == [[1], [3], [2], [0], [1]]


def test_every_sample_chooses_for_itself() -> None:
    kept = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])[..., None]
    index, known = Tokens(1 / 3, norm=1.0).choose(None, kept, 0)
    assert index is not None
    assert index.tolist() == [[2], [0]]
    assert known.ages.tolist() == [[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]]


def test_the_best_of_every_square() -> None:
    kept = torch.arange(1.0, 17.0).reshape(1, 16, 1)
    # The lower right corner of every 2 x 2 tokens of 4 x 4, in spite of larger ones.
    assert chosen(Tokens(0.25, norm=1.0, spatial=1.0), kept, 1) == [[5, 7, 13, 15]]
    assert chosen(Tokens(0.25, norm=1.0), kept, 1) == [[12, 13, 14, 15]]
    # 10 tokens are no square.
    assert chosen(Tokens(0.2, norm=1.0, spatial=1.0), kept[:, :10], 1) == [[8, 9]]


def test_chance_is_that_of_the_step_and_nobody_elses() -> None:
    kept, tokens = torch.ones(1, 32, 4), Tokens(0.25, random=1.0)
    before = torch.get_rng_state()
    first, again = chosen(tokens, kept, 3), chosen(tokens, kept, 3)
    assert first == again
    assert first[0] != first[1] != first[2]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (Tokens(0.0, norm=1.0), [None, None, None, None]),
        (Tokens(0.1, norm=1.0), [None, None, None, None]),
        (Tokens(0.5, norm=1.0, alternate=True), [None, [1, 3], None, [1, 3]]),
        (Tokens(1.0, random=1.0), [[0, 1, 2, 3]] * 4),
    ],
)
def test_shares(tokens: Tokens, expected: list[list[int] | None]) -> None:
    kept = torch.tensor([1.0, 4.0, 2.0, 3.0]).reshape(1, 4, 1)
    assert chosen(tokens, kept, 4) == expected


def test_zeros_have_scores() -> None:
    index, known = Tokens(0.5, norm=1.0).choose(Ages(1, torch.ones(1, 4)), torch.zeros(1, 4, 2), 0)
    assert index is not None
    assert known.steps == 2
    assert known.ages.sum() == 4.0


def test_rows() -> None:
    values = torch.arange(12.0).reshape(2, 3, 2)
    index = torch.tensor([[2], [0]])
    assert rows_of(values, index).tolist() == [[[4.0, 5.0]], [[6.0, 7.0]]]
    put_rows(values, index, torch.zeros(2, 1, 2))
    assert values.tolist() == [[[0, 1], [2, 3], [0, 0]], [[0, 0], [8, 9], [10, 11]]]


def test_repeating_keeps_what_was_computed() -> None:
    reuse = Reuse()
    state = reuse.observe(reuse.init(), Moment(0, 0.0), torch.zeros(1, 3, 1, dtype=torch.bfloat16))
    state = reuse.patched(state, torch.tensor([[1]]), torch.ones(1, 1, 1))
    assert reuse.predict(state, Moment(1, 1.0)).flatten().tolist() == [0.0, 1.0, 0.0]


# --- modules ---


class Mixing(nn.Module):
    """Every token gets the mean of all."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1, keepdim=True).expand_as(x)


class Weighted(nn.Module):
    """Takes a weight for each token, in another argument."""

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return x * weights


class Cross(nn.Module):
    def forward(self, x: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        return torch.softmax(x @ encoder_hidden_states.mT, -1) @ encoder_hidden_states


@pytest.mark.parametrize(
    ("module", "others", "expected"),
    [
        (nn.Linear(4, 6), (), True),
        (Cross(), (torch.randn(2, 5, 4),), True),
        (Mixing(), (), False),
        (Weighted(), (torch.randn(2, 9, 1),), False),
    ],
    ids=["linear", "cross", "mixing", "weighted"],
)
def test_which_modules_are_token_wise(module: nn.Module, others: tuple[Tensor, ...], expected: bool) -> None:
    x = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = module(x, *others)
        call = Call(nn.Module.__call__, module, (x, *others), {})
        assert is_tokenwise(call, output) is expected
        if expected:
            index = torch.tensor([[1, 7], [8, 0]])
            rows = on_tokens(call, torch.Size((2, 9)), index)
            assert torch.allclose(rows, rows_of(output, index), atol=1e-6)


def test_an_output_of_other_form_is_not_token_wise() -> None:
    x = torch.randn(2, 9)
    call = Call(nn.Module.__call__, nn.Identity(), (x,), {})
    assert not is_tokenwise(call, x)
    assert not is_tokenwise(call, (x,))


# --- runs ---


@pytest.mark.parametrize("kind", [ToCaConfig, DuCaConfig])
def test_no_token_is_plain_repeating(kind: type[ToCaConfig]) -> None:
    assert torch.equal(final(kind(share=0.0, **ALL)), final(IntervalConfig(place=Place.SUBMODULES, **ALL)))


def test_all_tokens_of_feed_forward_modules_are_the_uncached_run() -> None:
    plain = final(None)
    assert off(final(ToCaConfig(share=1.0, place=Place.MLP, **ALL)), plain) < 1e-6
    assert off(final(ToCaConfig(share=0.0, place=Place.MLP, **ALL)), plain) > 1e-3


def test_all_tokens_with_repeated_attention() -> None:
    """Repeats the attention modules and nothing else."""
    attention = final(IntervalConfig(place=Place.ATTENTION, **ALL))
    assert off(final(ToCaConfig(share=1.0, **ALL)), attention) < 1e-5


def test_more_tokens_are_nearer() -> None:
    plain = final(None)
    errors = [off(final(ToCaConfig(share=share, place=Place.MLP, **ALL)), plain) for share in (0.0, 0.5, 1.0)]
    assert errors[0] > errors[1] > errors[2]


def test_alternating_is_between() -> None:
    plain = final(None)
    every, other, none = (
        off(final(config), plain)
        for config in (
            ToCaConfig(share=1.0, place=Place.MLP, **ALL),
            DuCaConfig(share=1.0, place=Place.MLP, **ALL),
            ToCaConfig(share=0.0, place=Place.MLP, **ALL),
        )
    )
    assert every < other < none


def test_forecasts_of_the_other_tokens() -> None:
    calibrator = TaylorSeerCalibratorConfig(taylorseer_order=1)
    options = ALL | {"max_warmup_steps": 2}
    plain, interval = final(None), IntervalConfig(place=Place.MLP, **options)
    none, half, every = (
        final(ToCaConfig(share=share, place=Place.MLP, **options), calibrator) for share in (0.0, 0.5, 1.0)
    )
    assert torch.equal(none, final(interval, calibrator))
    assert off(every, plain) < 1e-6
    assert off(every, plain) < off(half, plain)


def test_shares_in_the_records() -> None:
    model = cached(DuCaConfig(share=0.5, place=Place.MLP, **ALL))
    Denoising(model, 0, 5, request=Request(5)).finish()
    record = attachments_of(model)[0].session.latest
    shares = {
        step.step: {each.share for each in record.steps if each.step == step.step} for step in record.steps
    }
    assert shares[0] == shares[1] == shares[3] == shares[4] == {0.0}
    # Of 16 image tokens, of 5 text tokens, and of both.
    assert all(abs(share - 0.5) <= 0.1 for share in shares[2])
    assert shares[2]


def test_the_flops_are_those_of_the_run() -> None:
    model = cached(ToCaConfig(share=0.5, place=Place.MLP, **ALL))

    run = Denoising(model, 0, 6, request=Request(6))
    # The modules are tried on some tokens in the first step, which counts for no step.
    run.advance()
    with FlopCounterMode(display=False, custom_mapping=SDPA_MAPPING) as counter:
        run.advance()
    run.finish()
    partly = counter.get_total_flops()
    (stats,) = cache_dit.summary(model, logging=False)
    assert stats.flops is not None
    assert stats.flops_saved is not None
    skipped = len(stats.cached_steps)
    # The other steps are whole, so this is what every skipped one has left.
    assert 1.0 - partly / stats.flops == pytest.approx(
        stats.flops_saved * stats.total_steps / skipped, abs=1e-3
    )
    assert 0.1 < stats.flops_saved < 0.5


def test_cross_attention_by_queries() -> None:
    def run(config: CacheConfig | None) -> Tensor:
        model: Any = PIXART.build()
        if config is not None:
            cache_dit.enable_cache(model, config)
        outputs = []
        with torch.no_grad(), Request(4):
            for seed in range(4):
                outputs.append(model(**PIXART.inputs(seed), return_dict=False)[0])
        return torch.stack(outputs)

    options: dict[str, Any] = {"max_warmup_steps": 1, "interval": 9, "place": Place.ATTENTION}
    repeated = run(ToCaConfig(share=0.0, **options))
    cross = run(ToCaConfig(share=1.0, **options))
    assert not torch.allclose(repeated, cross)
    # Self-attention is repeated in both, so neither is the uncached run.
    assert not torch.allclose(cross[1:], run(None)[1:])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"share": 1.5}, "share is 1.5; give a number from 0.0 to 1.0"),
        ({"age": -1.0}, "age is -1.0; give a number of at least 0.0"),
        ({"place": Place.MIDDLE}, "computes tokens inside of modules; give Place.SUBMODULES"),
    ],
)
@pytest.mark.parametrize("kind", [ToCaConfig, DuCaConfig])
def test_refused(kind: type[ToCaConfig], options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        kind(**options)


def test_short_forms() -> None:
    assert cache_dit.strify(ToCaConfig()) == "F0B0_W0I1M0MC0_N5R0.1_SUBMODULES"
    assert DuCaConfig(share=0.25).tokens() == Tokens(0.25, random=1.0, alternate=True)
