"""FLOPs of one forward, by module, counted without computing anything."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, UnsupportedFakeTensorException
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from cache_dit.caching.attach.override import plain_class


def _attention(query: Any, key: Any, value: Any, *rest: Any, out_shape: Any = None, **options: Any) -> int:
    del rest, out_shape, options
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]  # torch's own signature


# torch counts 0 for its CPU attention kernel unless it is told.
SDPA_MAPPING: dict[Any, Any] = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}


def forward_flops(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[nn.Module, int] | None:
    """Count the FLOPs of one uncached forward with torch's `FlopCounterMode` on fake tensors.

    Args:
        model: The transformer; its weights are neither read nor changed.
        args: Positional arguments; tensors may be on the device "meta".
        kwargs: Keyword arguments, likewise.

    Returns:
        FLOPs of every module of the model, the model itself included, or None where the forward depends on
        values that fake tensors do not have.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():

            def fake(tensor: Tensor) -> Tensor:
                made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
                return made

            args, kwargs = tree_map_only(Tensor, fake, (args, kwargs))
            with FlopCounterMode(display=False, custom_mapping=SDPA_MAPPING) as counter:
                plain_class(model).__call__(model, *args, **kwargs)
    except (UnsupportedFakeTensorException, RuntimeError, NotImplementedError):
        return None
    counts = counter.get_flop_counts()
    root = type(model).__name__
    return {
        module: sum(counts.get(f"{root}.{path}" if path else root, {}).values())
        for path, module in model.named_modules()
    }
