"""From a pipeline or module to the Linear layers that are meant, all checked before one is changed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from torch import nn

from cache_dit.caching.attach.override import plain_class
from cache_dit.caching.attach.targets import cached_models
from cache_dit.errors import ConfigError, ConfigTypeError, nearest
from cache_dit.quantize import EXCLUDED
from cache_dit.quantize.summary import QuantizeSummary, stored_bytes
from cache_dit.quantize.types import SCHEMES, QuantType, Scheme

_Target = TypeVar("_Target")
Filter = Callable[[nn.Linear, str], bool]
_Chosen = dict[str, nn.Linear]


def apply(
    target: _Target,
    quant_type: QuantType | str,
    exclude_layers: Sequence[str],
    filter_fn: Filter | None,
    report: Callable[[QuantizeSummary], Any] | None,
) -> _Target:
    """What `cache_dit.quantize` does."""
    kind = checked_quant_type(quant_type)
    scheme = SCHEMES[kind]
    models = [target] if isinstance(target, nn.Module) else cached_models(target)
    sorted_out = [(model, *_sort_out(model, kind, exclude_layers, filter_fn)) for model in models]
    for model, chosen, skipped in sorted_out:
        before = stored_bytes(model)
        for name, linear in chosen.items():
            made = scheme.convert(linear)
            if made is not linear:
                parent, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(parent), leaf, made)
        if report is not None:
            model_name = plain_class(model).__name__
            report(QuantizeSummary(model_name, kind, tuple(chosen), skipped, before, stored_bytes(model)))
    return target


def checked_quant_type(quant_type: QuantType | str) -> QuantType:
    """The type of this name, if this machine has what it needs; for checks before a model is loaded.

    Args:
        quant_type: As in `quantize`.

    Raises:
        ConfigError: The type is unknown, its package is not installed, or this hardware cannot compute it.
    """
    try:
        kind = QuantType(quant_type)
    except ValueError:
        names = list(map(str, QuantType))
        hint = nearest(str(quant_type), names)
        meant = f" Did you mean {hint!r}?" if hint else ""
        raise ConfigError(
            f"quant_type is {quant_type!r}; allowed are {', '.join(map(repr, names))}.{meant}"
        ) from None
    _check_machine(kind, SCHEMES[kind])
    return kind


def _check_machine(kind: QuantType, scheme: Scheme) -> None:
    if importlib.util.find_spec(scheme.package) is None:
        raise ConfigError(
            f"quant_type is {str(kind)!r}, which needs {scheme.package}; install it: "
            "pip install 'cache-dit[quantize]'."
        )
    lacking = scheme.hardware()
    if lacking is not None:
        other = QuantType.INT8_WEIGHT_ONLY if kind.value.startswith("int") else QuantType.FLOAT8_WEIGHT_ONLY
        raise ConfigError(
            f"quant_type is {str(kind)!r}, but {lacking}; {str(other)!r} runs everywhere and saves memory."
        )


def _sort_out(
    model: nn.Module, kind: QuantType, excluded: Sequence[str], filter_fn: Filter | None
) -> tuple[_Chosen, dict[str, str]]:
    """The layers of a model to quantize, and the others with the reason why not."""
    linears = dict(_linears(model))
    _check_excluded(excluded, linears, model)
    _check_not_offloaded(model)
    chosen: _Chosen = {}
    skipped: dict[str, str] = {}
    for name, linear in linears.items():
        part = next((text for text in excluded if text in name), None)
        if part is not None:
            reason: str | None = f"excluded by {part!r}"
        elif filter_fn is not None and not filter_fn(linear, name):
            reason = "excluded by filter_fn"
        elif SCHEMES[kind].swaps and linear is model:
            reason = "is the module that was given; give the one around it"
        else:
            reason = SCHEMES[kind].objection(linear)
        if reason is None:
            chosen[name] = linear
        else:
            skipped[name] = reason
    if not chosen:
        reasons = "; ".join(dict.fromkeys(skipped.values())) or "it has none"
        raise ConfigError(
            f"quant_type is {str(kind)!r}, but no Linear of {plain_class(model).__name__} can take it "
            f"({reasons}). Give another type, or exclude less."
        )
    return chosen, skipped


def _linears(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    for name, module in model.named_modules():
        # torch's own MultiheadAttention reads this weight without calling the module.
        if isinstance(module, nn.Linear) and not isinstance(
            module, nn.modules.linear.NonDynamicallyQuantizableLinear
        ):
            yield name, module


def _check_excluded(excluded: Sequence[str], linears: _Chosen, model: nn.Module) -> None:
    if isinstance(excluded, str):
        raise ConfigTypeError(f"exclude_layers is {excluded!r}, a str; give a list: [{excluded!r}].")
    if excluded is EXCLUDED:
        return
    for index, text in enumerate(excluded):
        if not any(text in name for name in linears):
            hint = nearest(text, {part for name in linears for part in name.split(".")})
            meant = f" Did you mean {hint!r}?" if hint else ""
            raise ConfigError(
                f"exclude_layers[{index}] is {text!r}, which is in the name of no Linear of "
                f"{plain_class(model).__name__}.{meant}"
            )


def _check_not_offloaded(model: nn.Module) -> None:
    """Offloading keeps the parameters that it found, so exchanged ones would never be loaded."""
    for name, module in model.named_modules():
        hooks = getattr(getattr(module, "_diffusers_hook", None), "hooks", {})
        grouped = any("group_offloading" in key for key in hooks)
        if grouped or getattr(getattr(module, "_hf_hook", None), "offload", False):
            call = "enable_group_offload" if grouped else "enable_sequential_cpu_offload"
            raise ConfigError(
                f"{name or plain_class(model).__name__} is offloaded already; call quantize before {call}."
            )
