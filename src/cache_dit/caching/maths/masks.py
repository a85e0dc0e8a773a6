"""Step masks: which steps must be computed, fixed before the run (SCM)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from cache_dit.caching.options import one_of
from cache_dit.errors import ConfigError

# Compute and cache bins for 28 steps, as published by the reference system; in the spirit of LeMiCa (arXiv
# 2511.00090) and EasyCache (arXiv 2507.02860): early errors are amplified, so early steps are computed.
_POLICIES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "slow": ((8, 3, 3, 2, 1, 1), (1, 2, 2, 2, 3)),
    "medium": ((6, 2, 2, 2, 2, 1), (1, 3, 3, 3, 3)),
    "fast": ((6, 1, 1, 1, 1, 1), (1, 3, 4, 5, 4)),
    "ultra": ((4, 1, 1, 1, 1), (2, 5, 6, 7)),
}
_MOST_STEPS = 100_000


def steps_mask(
    compute_bins: Sequence[int] | None = None,
    cache_bins: Sequence[int] | None = None,
    total_steps: int | None = None,
    mask_policy: str | None = None,
) -> list[int]:
    """Return one number a step: 1, the step must be computed; 0, it may be skipped.

    Give either a policy or your own bins. Bins alternate, compute first: `compute_bins=[2, 1]`,
    `cache_bins=[3]` is `[1, 1, 0, 0, 0, 1]`, taken literally.

    Args:
        compute_bins: Lengths of the runs of computed steps.
        cache_bins: Lengths of the runs of skippable steps between and after them.
        total_steps: Number of steps of the run. Required with a policy; with bins it is checked.
        mask_policy: "slow", "medium", "fast" or "ultra": 18, 15, 11 or 8 of 28 steps are computed. At other
            step counts the positions of the computed steps are interpolated; the first and the last step
            are always computed.

    Returns:
        A 1 or 0 for each step, as `steps_computation_mask` takes it.

    Raises:
        ConfigError: Neither or both ways given, an unknown policy, a bin or step count below 1 or above
            100,000, or bins that do not add up to `total_steps`.

    Examples:
        >>> "".join(map(str, steps_mask(mask_policy="fast", total_steps=28)))
        '1111110100010000100000100001'
    """
    if compute_bins is not None or cache_bins is not None:
        if mask_policy is not None:
            raise ConfigError("steps_mask got bins and mask_policy; give one of the two.")
        return _from_bins(compute_bins or (), cache_bins or (), total_steps)
    if mask_policy is None:
        raise ConfigError(f"steps_mask got nothing; give mask_policy ({', '.join(_POLICIES)}) or bins.")
    one_of(*_POLICIES)("mask_policy", mask_policy)
    if total_steps is None or not 1 <= total_steps <= _MOST_STEPS:
        raise ConfigError(f"total_steps is {total_steps} with mask_policy; give 1 to {_MOST_STEPS} steps.")
    return stretch(_from_bins(*_POLICIES[mask_policy], None), total_steps)


def _from_bins(compute: Sequence[int], cache: Sequence[int], total: int | None) -> list[int]:
    for name, bins in (("compute_bins", compute), ("cache_bins", cache)):
        if any(length < 1 for length in bins) or sum(bins) > _MOST_STEPS:
            raise ConfigError(f"{name} is {list(bins)}; give steps, 1 or more, {_MOST_STEPS} at most in all.")
    if len(compute) - len(cache) not in (0, 1):
        raise ConfigError(
            f"compute_bins has {len(compute)} bins and cache_bins {len(cache)}; they alternate, compute "
            "first, so give as many cache bins as compute bins or one less."
        )
    mask: list[int] = []
    for computed, cached in zip_longest(compute, cache, fillvalue=0):
        mask += [1] * computed + [0] * cached
    if total is not None and len(mask) != total:
        raise ConfigError(
            f"total_steps is {total} but the bins add up to {len(mask)} steps; make them equal."
        )
    return mask


def stretch(table: list[int], total: int) -> list[int]:
    """Place the same share of computed steps at interpolated positions on a run of `total` steps."""
    positions = [step for step, computed in enumerate(table) if computed]
    scale = total / len(table)
    count = max(1, round(len(positions) * scale))
    mask = [0] * total
    for j in range(count):
        rank = min(max((j + 0.5) * len(positions) / count - 0.5, 0.0), len(positions) - 1.0)
        low, high = positions[int(rank)], positions[min(int(rank) + 1, len(positions) - 1)]
        position = low + (rank % 1) * (high - low)
        step = min(max(round((position + 0.5) * scale - 0.5), 0), total - 1)
        # Rounding may collide where computed steps are dense: take the next free step.
        while step < total - 1 and mask[step]:
            step += 1
        mask[step] = 1
    mask[0] = mask[-1] = 1
    return mask
