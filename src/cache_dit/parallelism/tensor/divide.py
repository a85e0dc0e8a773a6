"""The one interpreter of tensor-parallel plans: checks a plan against a model, then divides the layers in place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from cache_dit.errors import CacheDiTError, ConfigError, UnsupportedModelError, nearest
from cache_dit.parallelism.tensor.layers import (
    Piece,
    RMSNormAcrossRanks,
    RowParallelLinear,
    share_of,
    whole_of,
)
from cache_dit.parallelism.tensor.plan import Blocks, Joined, Part, TensorPlan
from cache_dit.parallelism.tensor.rows import TENSOR_PLANS

Undo = Callable[[], None]


def divide(model: nn.Module, group: dist.ProcessGroup, plan: TensorPlan | None = None) -> Undo:
    """Divide the blocks of a transformer over the ranks of a group, in place.

    Every rank must hold the whole model with the same weights, and all ranks must call it. Layers stay the
    modules they are, with local weights, so that they may be quantized afterwards. Heads and channels that are no
    multiple of the ranks are divided unevenly. Everything is checked before anything is changed.

    Args:
        model: The transformer, whole and not yet quantized.
        group: The ranks that share every sample.
        plan: What is divided. None: the plan of the model's class in `TENSOR_PLANS`.

    Returns:
        A function that puts the whole weights back, bit for bit; all ranks must call it. It sends every
        divided weight once around the group, and each rank needs the memory of the whole model again.

    Raises:
        UnsupportedModelError: There is no plan for the class.
        ConfigError: A layer cannot be divided: too few heads for the ranks, a LoRA layer, quantized or
            offloaded weights, fused projections.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    plan = plan_of(model) if plan is None else plan
    if size == 1:
        return lambda: None
    changes = _Changes()
    for prefix, module, part in _parts(model, plan):
        _plan_part(changes, f"{type(model).__name__}.{prefix}", module, part, rank, size)
    if not changes.shares:
        raise ConfigError(
            f"The plan for {plan.name} names no layer of this {type(model).__name__}; check its paths: "
            f"{', '.join(blocks.path for blocks in plan.blocks)}."
        )
    undos: list[Undo] = [share.apply(group, rank, size) for share in changes.shares]
    undos.extend(_set(module, name, value) for (module, name), value in changes.counts.items())

    def undo() -> None:
        for share in changes.shares:
            share.check_whole()
        for step in reversed(undos):
            step()

    return undo


def plan_of(model: nn.Module) -> TensorPlan:
    """The plan of a model's class, or of the nearest class that it derives from.

    Raises:
        UnsupportedModelError: None of them has a plan.
    """
    known = {plan.name: plan for plan in TENSOR_PLANS}
    for base in type(model).__mro__:
        if base.__name__ in known:
            return known[base.__name__]
    name = type(model).__name__
    similar = nearest(name, known)
    hint = f" The nearest that has one is {similar}." if similar else ""
    raise UnsupportedModelError(
        f"There is no tensor-parallel plan for {name}.{hint} Give one: "
        f'tp_plan=TensorPlan("{name}", (Blocks("transformer_blocks", (attention("attn"), feed_forward("ff"))),)).'
    )


@dataclass(slots=True)
class _Share:
    """A layer of which this rank keeps a share."""

    name: str
    layer: Any
    dim: int
    pieces: tuple[Piece, ...]
    tensors: tuple[str, ...]
    """The parameters of the layer that are divided."""

    def apply(self, group: dist.ProcessGroup, rank: int, size: int) -> Undo:
        layer, dim, pieces = self.layer, self.dim, self.pieces
        plain, before = type(layer), dict(vars(layer))
        for name in self.tensors:
            parameter = getattr(layer, name)
            parameter.data = share_of(parameter.data, dim, pieces, rank, size)
        if isinstance(layer, nn.Linear):
            layer.out_features, layer.in_features = layer.weight.shape
            if dim == 1:
                layer.__class__ = RowParallelLinear
                layer.group = group
        else:
            layer.__class__ = RMSNormAcrossRanks
            layer.group, layer.width = group, sum(piece.width for piece in pieces)

        def undo() -> None:
            for name in self.tensors:
                parameter = getattr(layer, name)
                parameter.data = whole_of(parameter.data, dim, pieces, group)
            layer.__class__ = plain
            for name in ("in_features", "out_features", "group", "width"):
                vars(layer).pop(name, None)
                if name in before:
                    setattr(layer, name, before[name])

        return undo

    def check_whole(self) -> None:
        """Complain if something has replaced the weights since they were divided."""
        if any(not _is_plain(getattr(self.layer, name, None)) for name in self.tensors):
            raise CacheDiTError(
                f"{self.name} was quantized or offloaded after it was divided, so its whole weight cannot be put "
                "together again; undo that first, or load the model again."
            )


@dataclass(slots=True)
class _Changes:
    shares: list[_Share] = field(default_factory=list)
    counts: dict[tuple[nn.Module, str], int] = field(default_factory=dict)
    seen: set[int] = field(default_factory=set)
    """Layers that are shares already: a module may lie in two lists."""

    def add(self, name: str, layer: nn.Module, dim: int, pieces: tuple[Piece, ...]) -> None:
        if id(layer) not in self.seen:
            self.seen.add(id(layer))
            tensors = [key for key, value in layer.named_parameters(recurse=False) if dim == 0 or value.ndim > 1]
            self.shares.append(_Share(name, layer, dim, pieces, tuple(tensors)))


def _parts(model: nn.Module, plan: TensorPlan) -> Iterator[tuple[str, nn.Module, Part]]:
    for blocks in plan.blocks:
        for part in blocks.parts:
            for name, module in _matching(model, f"{blocks.path}.*.{part.path}".rstrip(".")):
                yield name, module, part


def _matching(module: nn.Module, pattern: str, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules at a path in which "*" stands for every member of a list; none where there is no such path."""
    if not pattern:
        yield prefix.rstrip("."), module
        return
    first, _, rest = pattern.partition(".")
    for name, child in module.named_children():
        if first in ("*", name):
            yield from _matching(child, rest, f"{prefix}{name}.")


def _find(module: nn.Module, path: str) -> Any:
    """The submodule at a path; None where there is none."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def _plan_part(changes: _Changes, prefix: str, module: nn.Module, part: Part, rank: int, size: int) -> None:
    columns, rows = (_linears(prefix, module, names) for names in (part.columns, part.rows))
    if not columns and not rows:
        return
    if getattr(module, "fused_projections", False):
        raise ConfigError(
            f"{prefix} has fused projections, which tensor parallelism cannot divide by heads; call "
            "unfuse_qkv_projections() first."
        )
    width, units = _width(prefix, module, part, columns, rows, size)

    def pieces_of(spec: str | Joined, total: int) -> tuple[Piece, ...]:
        if isinstance(spec, Joined):
            return _joined(prefix, module, spec, total)
        count, left = divmod(total, width)
        return (Piece(width, units),) * count if count and not left else (Piece(total, units),)

    for path, (spec, linear) in columns.items():
        changes.add(f"{prefix}.{path}", linear, 0, pieces_of(spec, linear.out_features))
    for path, (spec, linear) in rows.items():
        changes.add(f"{prefix}.{path}", linear, 1, pieces_of(spec, linear.in_features))
    for path, before in part.norms:
        norm = _find(module, path)
        if norm is not None and before in columns and _norm_width(norm) == columns[before][1].out_features:
            changes.add(
                f"{prefix}.{path}", _across_heads(f"{prefix}.{path}", norm), 0, (Piece(_norm_width(norm), units),)
            )
    for name in part.counts:
        value = getattr(module, name, None)
        if isinstance(value, int):
            own = units * (rank + 1) // size - units * rank // size
            changes.counts[module, name] = value // units * own


def _linears(
    prefix: str, module: nn.Module, names: tuple[str | Joined, ...]
) -> dict[str, tuple[str | Joined, nn.Linear]]:
    """The Linears that the module has, by path, each checked."""
    found = {}
    for spec in names:
        path = spec.name if isinstance(spec, Joined) else spec
        layer = _find(module, path)
        if layer is not None and not isinstance(layer, nn.ModuleList | nn.Sequential):
            found[path] = (spec, _checked(f"{prefix}.{path}", layer))
    return found


def _checked(name: str, layer: nn.Module) -> nn.Linear:
    if isinstance(layer, RowParallelLinear | RMSNormAcrossRanks):
        raise ConfigError(f"{name} is divided over ranks already; call disable_cache on the pipeline first.")
    if hasattr(layer, "base_layer"):
        raise ConfigError(
            f"{name} carries a LoRA, whose weights would not be divided; fuse it (fuse_lora, then "
            "unload_lora_weights) or unload it before enabling tensor parallelism."
        )
    if not isinstance(layer, nn.Linear) or type(layer).forward is not nn.Linear.forward:
        raise ConfigError(
            f"{name} is a {type(layer).__name__}; tensor parallelism divides plain torch.nn.Linear: enable it first, "
            "then quantize."
        )
    if "forward" in vars(layer) or layer.weight.is_meta:
        raise ConfigError(
            f"{name} is offloaded; enable tensor parallelism first, then offload what is left on each rank."
        )
    if not _is_plain(layer.weight):
        raise ConfigError(
            f"The weight of {name} is a {type(layer.weight.data).__name__}; tensor parallelism divides plain "
            "tensors: enable it first, then quantize."
        )
    return layer


def _is_plain(parameter: object) -> bool:
    return isinstance(parameter, nn.Parameter) and type(parameter.data) is Tensor and not parameter.is_meta


def _width(
    prefix: str,
    module: Any,
    part: Part,
    columns: dict[str, tuple[str | Joined, nn.Linear]],
    rows: dict[str, tuple[str | Joined, nn.Linear]],
    size: int,
) -> tuple[int, int]:
    """Channels between columns and rows, and into how many units they may be divided."""
    if rows:
        spec, linear = next(iter(rows.values()))
        joined = isinstance(spec, Joined)
        pieces = _joined(prefix, module, spec, linear.in_features) if isinstance(spec, Joined) else ()
        width = pieces[-1].width if joined else linear.in_features
    else:
        width = max(linear.out_features for _, linear in columns.values())
    if part.heads is None:
        units = width
    else:
        units = _heads(prefix, module, part.heads)
        keys = columns.get(part.keys)
        if keys is not None and keys[1].out_features < width:
            units = units * keys[1].out_features // width
    if units < size:
        what = "channels" if part.heads is None else "heads of keys and values"
        raise ConfigError(
            f"tp_size is {size} but {prefix} has {units} {what}; give tp_size={units} or less, or use Ulysses or "
            "ring for the other ranks."
        )
    return width, units


def _heads(prefix: str, module: Any, name: str) -> int:
    heads = getattr(module, name, None)
    if not isinstance(heads, int):
        raise ConfigError(
            f"{prefix} ({type(module).__name__}) has no attribute {name!r} that counts its heads; name the right one "
            "in attention(..., heads=)."
        )
    return heads


def _joined(prefix: str, module: nn.Module, spec: Joined, total: int) -> tuple[Piece, ...]:
    attention = module if not spec.attention else module.get_submodule(spec.attention)
    inner = _heads(prefix, attention, "inner_dim")
    rest, left = divmod(total - spec.times * inner, spec.rest)
    if rest <= 0 or left:
        raise ConfigError(
            f"{prefix}.{spec.name} has {total} channels on its divided side, which are not {spec.times} pieces of "
            f"{inner} and {spec.rest} equal ones; correct times and rest of its Joined."
        )
    heads = _heads(prefix, attention, "heads")
    return (Piece(inner, heads),) * spec.times + (Piece(rest, rest),) * spec.rest


def _norm_width(norm: Any) -> int:
    """Channels that a norm goes over; 0 where it does not say."""
    shape = getattr(norm, "normalized_shape", None) or getattr(norm, "dim", None)
    if getattr(norm, "weight", None) is not None:
        shape = norm.weight.shape
    return math.prod(shape) if isinstance(shape, tuple) else 0


def _across_heads(name: str, norm: Any) -> nn.Module:
    if "RMSNorm" not in type(norm).__name__ or not hasattr(norm, "eps"):
        raise ConfigError(
            f"{name} is a {type(norm).__name__} across all heads; only root-mean-square norms are added up over "
            "ranks, so this class cannot be divided; use Ulysses or ring."
        )
    checked: nn.Module = norm
    return checked


def _set(module: nn.Module, name: str, value: int) -> Undo:
    before = getattr(module, name)
    setattr(module, name, value)
    return lambda: setattr(module, name, before)
