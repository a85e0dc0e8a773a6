"""FLOPs of one forward, by module, counted without computing anything."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, UnsupportedFakeTensorException
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from cache_dit.caching.attach.hooked import unhooked
from cache_dit.caching.attach.override import plain_class
from cache_dit.caching.engine.ports import Arguments, Keywords

# torch counts 0 for its CPU attention kernel unless it is told.
SDPA_MAPPING: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *_, **__: int(
        sdpa_flop_count(query, key, value)  # type: ignore[no-untyped-call]  # torch's own signature
    )
}
# Counting takes as long as some real steps of a small model, so counts are kept with their model.
_counted: WeakKeyDictionary[nn.Module, dict[Any, tuple[int, ...] | None]] = WeakKeyDictionary()


def forward_flops(model: nn.Module, args: Arguments, kwargs: Keywords) -> dict[nn.Module, int] | None:
    """Count the FLOPs of one uncached forward with torch's `FlopCounterMode` on fake tensors.

    Args:
        model: The transformer; its weights are neither read nor changed.
        args: Positional arguments; tensors may be on the device "meta".
        kwargs: Keyword arguments, likewise.

    Returns:
        FLOPs of every module of the model, the model itself included, or None where fake tensors cannot go
        through the forward, because it depends on values that they do not have, for instance.
    """
    modules = tuple(model.modules())
    leaves, structure = tree_flatten((args, kwargs))
    # What the count can depend on.
    kinds = ((leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else repr(leaf) for leaf in leaves)
    inputs = (tuple(kinds), str(structure), tuple(map(plain_class, modules)))
    known = _counted.setdefault(model, {})
    if inputs not in known:
        known[inputs] = _count(model, args, kwargs)
    flops = known[inputs]
    return None if flops is None else dict(zip(modules, flops, strict=True))


def _count(model: nn.Module, args: Arguments, kwargs: Keywords) -> tuple[int, ...] | None:
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))

    def fake(tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)

    try:
        # What is compiled within fake tensors fails later with real ones; flex attention compiles itself.
        with (
            torch.compiler.set_stance("force_eager"),
            FakeTensorMode(allow_non_fake_inputs=True),
            torch.no_grad(),
        ):
            args, kwargs = tree_map_only(Tensor, fake, (args, kwargs))
            with unhooked(model), FlopCounterMode(display=False, custom_mapping=SDPA_MAPPING) as counter:
                plain_class(model).__call__(model, *args, **kwargs)
    except (UnsupportedFakeTensorException, RuntimeError, NotImplementedError, TypeError, AssertionError):
        # The last two are how flex attention and torch's module tracker (where a parameter is the input of a
        # module) refuse.
        return None
    counts = counter.get_flop_counts()
    root = type(model).__name__
    return tuple(
        sum(counts.get(f"{root}.{path}" if path else root, {}).values()) for path, _ in model.named_modules()
    )
