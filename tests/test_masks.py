"""Step masks: literal masks at the published step count, and what holds at every other."""

from __future__ import annotations

from typing import Any

import pytest

from cache_dit import steps_mask
from cache_dit.errors import ConfigError

AT_28 = {
    "slow": "1111111101110011100110010001",
    "medium": "1111110110001100011000110001",
    "fast": "1111110100010000100000100001",
    "ultra": "1111001000001000000100000001",
}


def text(mask: list[int]) -> str:
    return "".join(map(str, mask))


@pytest.mark.parametrize("policy", AT_28)
def test_policy_at_28_steps(policy: str) -> None:
    assert text(steps_mask(mask_policy=policy, total_steps=28)) == AT_28[policy]


@pytest.mark.parametrize("policy", AT_28)
def test_policy_at_every_step_count(policy: str) -> None:
    share = AT_28[policy].count("1") / 28
    for total in range(1, 101):
        mask = steps_mask(mask_policy=policy, total_steps=total)
        assert len(mask) == total
        assert set(mask) <= {0, 1}
        assert mask[0] == mask[-1] == 1
        assert abs(sum(mask) - round(share * total)) <= 2, f"{sum(mask)} of {total} steps computed"


@pytest.mark.parametrize("policy", AT_28)
def test_early_steps_stay_denser_at_other_step_counts(policy: str) -> None:
    for total in (14, 20, 50, 100):
        mask = steps_mask(mask_policy=policy, total_steps=total)
        half = total // 2
        assert sum(mask[:half]) > sum(mask[half:])


def test_slower_policies_compute_more_at_every_step_count() -> None:
    for total in range(1, 101):
        counts = [sum(steps_mask(mask_policy=policy, total_steps=total)) for policy in AT_28]
        assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize(
    ("compute", "cache", "expected"),
    [
        ([2, 1], [3], "110001"),
        ([2, 1], [3, 2], "11000100"),
        ([1], [], "1"),
        ([4], None, "1111"),
        ((1, 1, 1), (1, 1), "10101"),
    ],
)
def test_bins_are_taken_literally(compute: Any, cache: Any, expected: str) -> None:
    assert text(steps_mask(compute_bins=compute, cache_bins=cache)) == expected
    assert text(steps_mask(compute, cache, total_steps=len(expected))) == expected


def test_bins_of_the_documents() -> None:
    mask = steps_mask(compute_bins=[6, 1, 1, 1, 1], cache_bins=[1, 2, 5, 5, 5], total_steps=28)
    assert text(mask) == "1111110100100000100000100000"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, ("mask_policy", "bins")),
        ({"total_steps": 28}, ("mask_policy", "slow, medium, fast, ultra")),
        ({"mask_policy": "fats", "total_steps": 28}, ("mask_policy", "'fats'", "Did you mean 'fast'?")),
        ({"mask_policy": "fast"}, ("total_steps", "None")),
        ({"mask_policy": "fast", "total_steps": 0}, ("total_steps", "0")),
        ({"mask_policy": "fast", "compute_bins": [1]}, ("bins", "mask_policy")),
        ({"compute_bins": [2, 0], "cache_bins": [1]}, ("compute_bins", "[2, 0]", "1 or more")),
        ({"compute_bins": [2, 1], "cache_bins": [-1]}, ("cache_bins", "[-1]", "1 or more")),
        ({"compute_bins": [1], "cache_bins": [1, 1]}, ("compute_bins has 1", "cache_bins 2")),
        ({"compute_bins": [1, 1, 1], "cache_bins": [1]}, ("compute_bins has 3", "cache_bins 1")),
        ({"compute_bins": [2], "cache_bins": [2], "total_steps": 5}, ("total_steps is 5", "4 steps")),
    ],
)
def test_bad_input(given: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        steps_mask(**given)
    for word in words:
        assert word in str(caught.value)
