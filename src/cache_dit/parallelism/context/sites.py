"""Attention where it is called: the same code of the same class, with another attention function.

The attention processors of diffusers call `dispatch_attention_fn` or `scaled_dot_product_attention` by a
global name. Here a processor instance gets a private subclass of its class, whose methods are the same code
under other globals. So every processor and every attention backend serves, fused projections and LoRAs too,
and no class is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, SimpleNamespace
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from cache_dit.errors import ConfigError

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None, Callable[..., Tensor], float | None], Tensor]
"""From (B, s, H, D) queries, keys, values, a mask, attention on one process and the scale to the result."""

_NAMES = frozenset({"dispatch_attention_fn", "scaled_dot_product_attention"})


def attention_modules(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a block that compute attention, each with its name."""
    for path, module in block.named_modules():
        if hasattr(module, "processor") or _methods(type(module)):
            yield path.rpartition(".")[2] or path, module


def caller_of(module: nn.Module) -> object:
    """What calls attention for a module: its processor, or the module itself.

    Raises:
        ConfigError: Neither does, by a name that is known.
    """
    for caller in (getattr(module, "processor", None), module):
        if _methods(type(caller)):
            return caller
    processor = type(getattr(module, "processor", module)).__name__
    raise ConfigError(
        f"{processor} of {type(module).__name__} computes no softmax attention that could be shared between "
        "processes; ulysses_size and ring_size are not possible for this model, tp_size may be."
    )


def attending(kind: type, attend: Attend) -> type:
    """A subclass of a processor's or a module's class that passes every attention to `attend`."""
    methods = _methods(kind)
    made = {name: _rebound(method, attend) for name, method in methods.items()}
    same = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(kind)(kind.__name__, (kind,), {**same, **made})


def _methods(kind: type) -> dict[str, FunctionType]:
    """Methods that attention is called in, by themselves or through a function of their module."""
    found: dict[str, FunctionType] = {}
    for base in kind.__mro__:
        for name, member in vars(base).items():
            if isinstance(member, FunctionType) and name not in found and _attends(member):
                found[name] = member
    return found


def _attends(function: FunctionType) -> bool:
    names = set(_names_in(function.__code__))
    helpers = (function.__globals__.get(name) for name in names)
    return bool(names & _NAMES) or any(
        isinstance(helper, FunctionType)
        and helper.__globals__ is function.__globals__
        and helper is not function
        and bool(_NAMES & set(_names_in(helper.__code__)))
        for helper in helpers
    )


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


def _rebound(function: FunctionType, attend: Attend) -> FunctionType:
    known = function.__globals__
    names: dict[str, Any] = dict(known)
    # Dynamo would look names up in the module of that name, where they mean something else.
    del names["__name__"]
    names["dispatch_attention_fn"] = _dispatch(attend)
    names["F"] = SimpleNamespace(**{**vars(functional), "scaled_dot_product_attention": _product(attend)})
    for name, helper in known.items():
        if isinstance(helper, FunctionType) and helper.__globals__ is known:
            names[name] = _copy(helper, names)
    return _copy(function, names)


def _copy(function: FunctionType, names: dict[str, Any]) -> FunctionType:
    made = FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    made.__kwdefaults__ = function.__kwdefaults__
    made.__module__, made.__doc__, made.__qualname__ = (
        function.__module__,
        function.__doc__,
        function.__qualname__,
    )
    return made


def _dispatch(attend: Attend) -> Callable[..., Tensor]:
    """In the place of `dispatch_attention_fn` of diffusers, which takes (B, s, H, D)."""
    from diffusers.models.attention_dispatch import dispatch_attention_fn

    def dispatch(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
        attention_kwargs: dict[str, Any] | None = None,
        *,
        backend: Any = None,
        parallel_config: Any = None,
    ) -> Tensor:
        _check_causal(is_causal)
        if attn_mask is not None and attn_mask.ndim == 2:
            attn_mask = attn_mask[:, None, None, :]

        def compute(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
            shared = query.shape[2] != key.shape[2]
            result: Tensor = dispatch_attention_fn(
                query, key, value, mask, dropout_p, False, scale, shared, attention_kwargs, backend=backend
            )
            return result

        return attend(query, key, value, attn_mask, compute, scale)

    return dispatch


def _product(attend: Attend) -> Callable[..., Tensor]:
    """In the place of `torch.nn.functional.scaled_dot_product_attention`, which takes (B, H, s, D)."""

    def product(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        _check_causal(is_causal)

        def compute(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
            shared = query.shape[2] != key.shape[2]
            q, k, v = (one.transpose(1, 2) for one in (query, key, value))
            return functional.scaled_dot_product_attention(
                q, k, v, mask, dropout_p, scale=scale, enable_gqa=shared
            ).transpose(1, 2)

        q, k, v = (one.transpose(1, 2) for one in (query, key, value))
        return attend(q, k, v, attn_mask, compute, scale).transpose(1, 2)

    return product


def _check_causal(is_causal: bool) -> None:
    if is_causal:
        raise ConfigError(
            "A causal attention cannot be shared between processes, since their tokens are in another order; "
            "use tp_size for this model."
        )
