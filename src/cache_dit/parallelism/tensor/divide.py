"""The one interpreter of plans: a plan is checked against a model, then the layers are divided in place."""

from __future__ import annotations

import functools
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
    places,
    share_of,
    whole_of,
)
from cache_dit.parallelism.tensor.plan import Joined, Part, TensorPlan
from cache_dit.parallelism.tensor.rows import TENSOR_PLANS

Undo = Callable[[], None]
_Linears = dict[str, tuple[str | Joined, nn.Linear]]


def divide(model: nn.Module, group: dist.ProcessGroup, plan: TensorPlan | None = None) -> Undo:
    """Divide the blocks of a transformer over the ranks of a group, in place.

    Every rank must hold the whole model with the same weights, and all ranks must call it. Layers stay the
    modules they are, with local weights, so that they may be quantized afterwards. Heads and channels that
    are no multiple of the ranks are divided unevenly. Everything is checked before anything is changed.

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
    changes = _Changes(rank, size)
    for name, module, part in _parts(model, plan):
        _PartOf(changes, f"{type(model).__name__}.{name}", module, part).check()
    if not changes.shares:
        raise ConfigError(
            f"The plan for {plan.name} names no layer of this {type(model).__name__}; check its paths: "
            f"{', '.join(blocks.path for blocks in plan.blocks)}."
        )
    undos = changes.apply(group)

    def undo() -> None:
        for share in changes.shares:
            share.check_unchanged()
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
        f"There is no tensor-parallel plan for {name}.{hint} Give one as tp_plan, such as "
        f'TensorPlan("{name}", (Blocks("transformer_blocks", (attention("attn"), feed_forward("ff"))),)).'
    )


@dataclass(slots=True)
class _Share:
    """A layer of which this rank keeps a share."""

    name: str
    layer: Any
    dim: int
    pieces: tuple[Piece, ...]

    @property
    def divided(self) -> list[str]:
        """Names of the parameters that are divided: of a row-parallel layer the bias stays whole."""
        return (
            ["weight"] if self.dim == 1 else [name for name, _ in self.layer.named_parameters(recurse=False)]
        )

    def apply(self, group: dist.ProcessGroup, rank: int, size: int) -> Undo:
        layer, names, plain = self.layer, self.divided, type(self.layer)
        before = dict(vars(layer))
        for name in names:
            parameter = getattr(layer, name)
            parameter.data = share_of(parameter.data, self.dim, self.pieces, rank, size)
        if isinstance(layer, nn.Linear):
            layer.out_features, layer.in_features = layer.weight.shape
            if self.dim == 1:
                layer.__class__ = RowParallelLinear
                vars(layer)["group"] = group
        else:
            layer.__class__ = RMSNormAcrossRanks
            vars(layer).update(group=group, width=sum(piece.width for piece in self.pieces))

        def undo() -> None:
            for name in names:
                parameter = getattr(layer, name)
                parameter.data = whole_of(parameter.data, self.dim, self.pieces, group)
            layer.__class__ = plain
            for name in ("in_features", "out_features", "group", "width"):
                vars(layer).pop(name, None)
                if name in before:
                    vars(layer)[name] = before[name]

        return undo

    def check_unchanged(self) -> None:
        """Complain if something has replaced the weights since they were divided."""
        if not all(_is_plain(getattr(self.layer, name, None)) for name in self.divided):
            raise CacheDiTError(
                f"{self.name} was quantized or offloaded after it was divided, so its whole weight cannot be "
                "put together again; undo that first, or load the model again."
            )


@dataclass(slots=True)
class _Changes:
    """What is to be done on this rank, all of it checked."""

    rank: int
    size: int
    shares: list[_Share] = field(default_factory=list)
    counts: dict[tuple[nn.Module, str], int] = field(default_factory=dict)
    hooks: dict[nn.Module, Callable[..., Any]] = field(default_factory=dict)
    seen: set[int] = field(default_factory=set)
    """Layers that are shares already: a module may lie in two lists."""

    def add(self, name: str, layer: nn.Module, dim: int, pieces: tuple[Piece, ...]) -> None:
        if id(layer) not in self.seen:
            self.seen.add(id(layer))
            self.shares.append(_Share(name, layer, dim, pieces))

    def own(self, piece: Piece) -> slice:
        """This rank's place in one piece."""
        return places((piece,), self.rank, self.size)[0]

    def apply(self, group: dist.ProcessGroup) -> list[Undo]:
        undos = [share.apply(group, self.rank, self.size) for share in self.shares]
        for (module, name), value in self.counts.items():
            undos.append(functools.partial(setattr, module, name, getattr(module, name)))
            setattr(module, name, value)
        for module, hook in self.hooks.items():
            undos.append(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        return undos


@dataclass(slots=True)
class _PartOf:
    """One part of a plan in one block of a model."""

    changes: _Changes
    name: str
    module: Any
    part: Part

    def check(self) -> None:
        """Find and check the layers, and note what is to be done."""
        part, changes = self.part, self.changes
        columns, rows = self._linears(part.columns), self._linears(part.rows)
        if not columns and not rows:
            return
        if getattr(self.module, "fused_projections", False):
            raise ConfigError(
                f"{self.name} has fused projections, which cannot be divided by heads; call "
                "unfuse_qkv_projections() first."
            )
        processor = getattr(self.module, "processor", None)
        if isinstance(processor, nn.Module) and next(processor.parameters(), None) is not None:
            raise ConfigError(
                f"{self.name} has a {type(processor).__name__} with weights of its own, such as those of an "
                "IP-Adapter, which would not be divided; unload it before enabling tensor parallelism."
            )
        width = self._width(columns, rows)
        units = self._units(width, columns)
        for path, (spec, linear) in columns.items():
            changes.add(
                f"{self.name}.{path}", linear, 0, self._pieces(spec, linear.out_features, width, units)
            )
        for path, (spec, linear) in rows.items():
            changes.add(
                f"{self.name}.{path}", linear, 1, self._pieces(spec, linear.in_features, width, units)
            )
        for path, before in part.norms:
            norm, wide = _find(self.module, path), columns[before][1].out_features if before in columns else 0
            if norm is not None and wide and _norm_width(norm) == wide:
                layer = _across_heads(f"{self.name}.{path}", norm)
                changes.add(f"{self.name}.{path}", layer, 0, (Piece(wide, units),))
        for name in (*part.counts, *part.channels):
            value = getattr(self.module, name, None)
            if isinstance(value, int):
                place = changes.own(Piece(value, units if name in part.counts else value))
                changes.counts[self.module, name] = place.stop - place.start
        if part.rotary:
            channels = changes.own(Piece(width, units))
            heads = changes.own(Piece(self._count("heads"), units))
            changes.hooks[self.module] = functools.partial(_own_rotary, part.rotary, width, channels, heads)

    def _linears(self, names: tuple[str | Joined, ...]) -> _Linears:
        """The Linears that the module has, by path, each checked."""
        found = {}
        for spec in names:
            path = spec.name if isinstance(spec, Joined) else spec
            layer = _find(self.module, path)
            if layer is not None and not isinstance(layer, nn.ModuleList | nn.Sequential):
                found[path] = (spec, _checked(f"{self.name}.{path}", layer))
        return found

    def _width(self, columns: _Linears, rows: _Linears) -> int:
        """Channels between columns and rows on all ranks; of a Joined those that belong to no head."""
        if not rows:
            return max(linear.out_features for _, linear in columns.values())
        spec, linear = next(iter(rows.values()))
        if isinstance(spec, Joined):
            return self._joined(spec, linear.in_features)[-1].width
        return linear.in_features

    def _units(self, width: int, columns: _Linears) -> int:
        """Into how many equal units the width may be divided."""
        units = width
        if self.part.heads is not None:
            units = self._count(self.part.heads)
            keys = columns.get(self.part.keys)
            if keys is not None and keys[1].out_features < width:
                units = units * keys[1].out_features // width
        if units < self.changes.size:
            what = "channels" if self.part.heads is None else "heads of keys and values"
            raise ConfigError(
                f"tp_size is {self.changes.size} but {self.name} has {units} {what}; give tp_size={units} or "
                "less, and ulysses_size or ring_size for the other ranks."
            )
        return units

    def _pieces(self, spec: str | Joined, total: int, width: int, units: int) -> tuple[Piece, ...]:
        if isinstance(spec, Joined):
            return self._joined(spec, total)
        count, left = divmod(total, width)
        return (Piece(width, units),) * count if count and not left else (Piece(total, units),)

    def _joined(self, spec: Joined, total: int) -> tuple[Piece, ...]:
        inner = self._count("inner_dim", spec.attention)
        rest, left = divmod(total - spec.times * inner, spec.rest)
        if rest <= 0 or left:
            raise ConfigError(
                f"{self.name}.{spec.name} has {total} channels on its divided side, which are not "
                f"{spec.times} pieces of {inner} and {spec.rest} equal ones; correct its Joined."
            )
        heads = self._count("heads", spec.attention)
        return (Piece(inner, heads),) * spec.times + (Piece(rest, rest),) * spec.rest

    def _count(self, name: str, path: str = "") -> int:
        module = self.module.get_submodule(path)
        value = getattr(module, name, None)
        if not isinstance(value, int):
            raise ConfigError(
                f"{self.name} ({type(module).__name__}) has no attribute {name!r} that is a number; name the "
                "one that counts its heads in attention(..., heads=)."
            )
        return value


def _parts(model: nn.Module, plan: TensorPlan) -> Iterator[tuple[str, nn.Module, Part]]:
    for blocks in plan.blocks:
        for part in blocks.parts:
            for name, module in _matching(model, f"{blocks.path}.*.{part.path}".rstrip(".")):
                yield name, module, part


def _matching(module: nn.Module, pattern: str, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules at a path in which "*" stands for every member of a list; none where there is no such."""
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


def _checked(name: str, layer: nn.Module) -> nn.Linear:
    if isinstance(layer, RowParallelLinear):
        raise ConfigError(f"{name} is divided over ranks already; call cache_dit.disable_cache first.")
    if hasattr(layer, "base_layer"):
        raise ConfigError(
            f"{name} carries a LoRA, whose weights would not be divided; fuse it (fuse_lora, then "
            "unload_lora_weights) or unload it before enabling tensor parallelism."
        )
    if not isinstance(layer, nn.Linear) or type(layer).forward is not nn.Linear.forward:
        raise ConfigError(
            f"{name} is a {type(layer).__name__}; tensor parallelism divides plain torch.nn.Linear: "
            "enable it first, then quantize."
        )
    if "forward" in vars(layer) or layer.weight.is_meta:
        raise ConfigError(
            f"{name} is offloaded; enable tensor parallelism first, then offload what each rank has left."
        )
    if not _is_plain(layer.weight):
        raise ConfigError(
            f"The weight of {name} is a {type(layer.weight.data).__name__}; tensor parallelism divides plain "
            "tensors: enable it first, then quantize."
        )
    return layer


def _is_plain(parameter: object) -> bool:
    return isinstance(parameter, nn.Parameter) and type(parameter.data) is Tensor and not parameter.is_meta


def _norm_width(norm: Any) -> int:
    """Channels that a norm goes over; 0 where it does not say."""
    weight = getattr(norm, "weight", None)
    shape = getattr(norm, "normalized_shape", getattr(norm, "dim", None)) if weight is None else weight.shape
    return math.prod(shape) if isinstance(shape, tuple) else 0


def _across_heads(name: str, norm: Any) -> nn.Module:
    if "RMSNorm" not in type(norm).__name__ or not hasattr(norm, "eps"):
        raise ConfigError(
            f"{name} is a {type(norm).__name__} across all heads; only root-mean-square norms are added up "
            "over ranks, so this class cannot be divided; use ulysses_size or ring_size."
        )
    found: nn.Module = norm
    return found


def _own_rotary(
    names: tuple[str, ...],
    width: int,
    channels: slice,
    heads: slice,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A forward pre-hook: embeddings over all heads' channels, or with a side of heads, become local."""

    def own(value: Tensor) -> Tensor:
        return value[..., channels] if value.shape[-1] == width else value[:, heads]

    given = {name: tuple(map(own, kwargs[name])) for name in names if kwargs.get(name) is not None}
    return args, kwargs | given
