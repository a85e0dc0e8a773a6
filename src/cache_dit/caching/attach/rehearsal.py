"""A trial of a data flow that was only seen: does a skipped forward give what the computed one gave?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from cache_dit.caching.attach.attachment import attachment
from cache_dit.caching.attach.declared import Lists, Setting
from cache_dit.caching.attach.observe import undisturbed, way_out
from cache_dit.caching.config import CalibratorConfig, DBCacheConfig
from cache_dit.caching.engine.ports import Arguments, Keywords
from cache_dit.caching.engine.requests import Request
from cache_dit.errors import UnsupportedModelError

_ALWAYS = DBCacheConfig(
    Fn_compute_blocks=1, max_warmup_steps=1, residual_diff_threshold=1.0, enable_separate_cfg=False
)
_TOLERANCE = 0.05
"""Relative error of the output: bfloat16 rounds to less, and a stream that was missed makes more."""


def rehearse(lists: Lists, call: Callable[..., Any], args: Arguments, kwargs: Keywords) -> None:
    """Compute one forward and skip the same once more, as in a real run: both must give the same."""
    session = attachment(lists, (Setting(_ALWAYS, CalibratorConfig()),), shares_run=False).session
    request = Request()

    def forward(*given: Any, **named: Any) -> Any:
        return session.forward(request, call, lists.model, given, named)

    computed, skipped = (_floats(undisturbed(lists.model, forward, args, kwargs)) for _ in range(2))
    error = max(
        (float((a - b).norm() / b.norm()) for a, b in zip(skipped, computed, strict=True) if bool(b.any())),
        default=0.0,
    )
    if not error <= _TOLERANCE:
        paths = " and ".join(flow.label for flow in lists.flows)
        raise UnsupportedModelError(
            f"auto found {paths} in {lists.name}, but a forward that skips their blocks differs by "
            f"{error:.0%} from the computed one on the same input: the forward carries more from block to "
            f"block than they return. {way_out(lists.flows[0].path, bare=lists.flows[0].bare)}"
        )


def _floats(output: Any) -> list[Tensor]:
    leaves = tree_leaves(output)
    return [leaf.float() for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
