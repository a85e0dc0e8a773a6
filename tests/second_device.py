"""A second device without one: tensors in the memory of the host that say that they are elsewhere.

`Away` holds a tensor of the host and calls itself one of the device "gpu". What is computed from it is away
too; an operator that gets tensors from both places is refused, as on a real accelerator. Under a `Watch` all
that makes the host wait for the device, and all that travels between them, is written down. torch names the
device by one of its own functions for backends in Python, once for a process and for good.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = "gpu"
_aten = torch.ops.aten
_WAITS = (
    _aten._local_scalar_dense.default,
    _aten.nonzero.default,
    _aten.masked_select.default,
    _aten.equal.default,
)

backend_registration._setup_privateuseone_for_python_backend(DEVICE)


class Away(Tensor):
    """A tensor of the second device."""

    inside: Tensor

    @staticmethod
    def __new__(cls, inside: Tensor) -> Self:
        made: Any = torch.Tensor._make_wrapper_subclass(
            cls,
            inside.shape,
            strides=inside.stride(),
            storage_offset=inside.storage_offset(),
            dtype=inside.dtype,
            device=torch.device(DEVICE, 0),
        )
        made.inside = inside
        return made  # type: ignore[no-any-return]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {}, lambda what: None)


class Watch:
    """Within it literals are made on the second device too, and `seen` fills.

    Attributes:
        seen: "wait", "in" or "out" with the function of cache_dit that it happened in, or "model".
    """

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        self._modes = ExitStack()

    def __enter__(self) -> Self:
        self._modes.enter_context(_Operators(self._note))
        self._modes.enter_context(_Literals())
        return self

    def __exit__(self, *_: object) -> None:
        self._modes.close()

    def _note(self, what: str) -> None:
        ours = [frame for frame in traceback.extract_stack() if "/cache_dit/caching/" in frame.filename]
        inside = bool(ours) and not ours[-1].filename.endswith("override.py")
        self.seen.append((what, ours[-1].name if inside else "model"))


class _Operators(TorchDispatchMode):
    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self._note = note

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {}, self._note)


class _Literals(TorchFunctionMode):
    """torch makes them below all modes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if func is torch.tensor and _is_away(given.get("device")):
            device = given.pop("device")
            return func(*args, **given).to(device)
        return func(*args, **given)


def _is_away(device: Any) -> bool:
    return device is not None and torch.device(device).type == DEVICE


def _computed(func: Any, args: Any, kwargs: Mapping[str, Any], note: Callable[[str], None]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    here = [one for one in tensors if not isinstance(one, Away)]
    away, wanted = len(here) < len(tensors), kwargs.get("device")
    arrives = _is_away(wanted)
    if not away and not arrives:
        return func(*args, **kwargs)
    leaves = away and wanted is not None and not arrives
    if func in _WAITS:
        note("wait")
    if func is _aten._to_copy.default and (leaves or not away):
        note("out" if leaves else "in")
    elif func is _aten.copy_.default and here:
        note("in" if isinstance(args[0], Away) else "out")
    elif func is not _aten._to_copy.default and any(one.ndim for one in here):
        raise RuntimeError(
            f"{func} got tensors from two devices: {[(one.shape, one.device) for one in tensors]}"
        )

    def plain(leaf: Any) -> Any:
        if isinstance(leaf, torch.device) and _is_away(leaf):
            return torch.device("cpu")
        return leaf.inside if isinstance(leaf, Away) else leaf

    output = func(*tree_map(plain, args), **tree_map(plain, dict(kwargs)))
    if func is _aten._to_copy.default and output is tensors[0]:
        output = output.clone()
    if leaves or (func is _aten.copy_.default and not isinstance(args[0], Away)):
        return output
    wrapped = tree_map(lambda leaf: Away(leaf) if isinstance(leaf, Tensor) else leaf, output)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if away else wrapped


def sent(tree: Any) -> Any:
    """The same on the second device."""
    return tree_map(lambda leaf: Away(leaf.detach()) if isinstance(leaf, Tensor) else leaf, tree)


def fetched(tree: Any) -> Any:
    """The same on the host."""
    return tree_map(lambda leaf: leaf.inside if isinstance(leaf, Away) else leaf, tree)


def move(module: nn.Module) -> nn.Module:
    """Move a module there, for good."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        return module._apply(lambda tensor: Away(tensor.detach()))
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
