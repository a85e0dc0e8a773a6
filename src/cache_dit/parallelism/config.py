"""How one sample is spread over processes: what users may choose."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal

from cache_dit.caching.attach.distribution import Distribution, Installed
from cache_dit.caching.options import Options, flag, instance_of, one_of, option, optional, options, whole
from cache_dit.errors import ConfigError, ConfigTypeError

if TYPE_CHECKING:
    from torch import nn

    from cache_dit.parallelism.context.plan import ContextPlan
    from cache_dit.parallelism.tensor import TensorPlan

Size = int | Literal["auto"] | None


class ParallelismBackend(Enum):
    """What may be spread, by the names under which programs know the two kinds.

    Attributes:
        AUTO: The sequence and the layers, as the sizes say.
        NATIVE_DIFFUSER: The sequence alone; a `tp_size` is refused.
        NATIVE_PYTORCH: The layers alone; a `ulysses_size` or `ring_size` is refused.
    """

    AUTO = "auto"
    NATIVE_DIFFUSER = "native_diffuser"
    NATIVE_PYTORCH = "native_pytorch"


def _size(name: str, value: Any) -> None:
    """A whole number of processes, "auto" or None."""
    if isinstance(value, str) and value != "auto":
        raise ConfigError(f"{name} is {value!r}; give a whole number of at least 1, 'auto' or None.")
    if value is not None and value != "auto":
        whole(1)(name, value)


def _modules(name: str, value: Any) -> None:
    """A list of modules or of names of a pipeline's components."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise ConfigTypeError(
            f"{name} is of type {type(value).__name__}; give a list of modules or of names of components, "
            "such as ['text_encoder', 'vae']."
        )


@options
class ParallelismConfig(Options, Distribution):
    """Several processes work on one sample; for `enable_cache(..., parallelism_config=)`.

    Every process runs the same program, mostly by `torchrun`, with `torch.distributed` initialised. Sizes
    multiply: `ulysses_size=2, ring_size=2` are four processes on one sample. Where there are more processes,
    they form replicas that share nothing. With a `process_group` and no size nothing is split, for engines
    that do so themselves: decisions of the cache are then taken by all ranks of the group together.

    Attributes:
        ulysses_size: Processes that exchange sequence for heads around attention (Ulysses, arXiv 2309.14509).
            "auto": all that the other sizes leave. None (default): 1.
        ring_size: Processes that hand keys and values around (ring attention, arXiv 2310.01889). With
            `ulysses_size` both at once (USP, arXiv 2405.07719). "auto" and None (default) as above.
        tp_size: Processes that share every linear layer (tensor parallelism, arXiv 1909.08053). "auto" and
            None (default) as above.
        attention_backend: Name of the attention backend of diffusers that computes attention on a process.
            None (default): as it is.
        ulysses_anything: Sequences need not be a multiple of the processes. Heads never need to be. Default
            False: such sequences are refused.
        ulysses_float8: Queries and values travel as float8 with one scale for each token and head; keys and
            results exactly. Default False.
        ulysses_async: Values and queries travel while the next projection is computed. Default False.
        ring_rotate_method: "allgather" (default): all keys and values are gathered first, then any attention
            backend serves. "p2p": they are handed on while attention is computed, in less memory.
        cp_plan: Where the transformer is split for `ulysses_size` and `ring_size`, a
            `cache_dit.parallelism.context.ContextPlan`. None (default): that of its class.
        tp_plan: How its layers are shared for `tp_size`, a `cache_dit.parallelism.tensor.TensorPlan`. None
            (default): that of its class.
        extra_parallel_modules: More modules of the pipeline to spread, or their names: text encoders, the
            VAE, ControlNets. Default: none.
        process_group: The ranks that share a sample. None (default): as many in a row as the sizes need.
        backend: What may be spread; other sizes than it has are refused. Default `ParallelismBackend.AUTO`.

    Raises:
        ConfigError: A value that is not allowed, or options that exclude each other.
        ConfigTypeError: An option is unknown or of the wrong type.
    """

    ulysses_size: Size = option(_size, default=None)
    ring_size: Size = option(_size, default=None)
    tp_size: Size = option(_size, default=None)
    attention_backend: str | None = option(optional(instance_of(str)), default=None)
    ulysses_anything: bool = option(flag, default=False)
    ulysses_float8: bool = option(flag, default=False)
    ulysses_async: bool = option(flag, default=False)
    ring_rotate_method: Literal["allgather", "p2p"] = option(one_of("allgather", "p2p"), default="allgather")
    cp_plan: ContextPlan | None = None
    tp_plan: TensorPlan | None = None
    extra_parallel_modules: Sequence[Any] = option(_modules, default=())
    process_group: Any = None
    backend: ParallelismBackend = option(instance_of(ParallelismBackend), default=ParallelismBackend.AUTO)

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = {name: getattr(self, name) for name in SIZES}
        automatic = [name for name, size in sizes.items() if size == "auto"]
        if len(automatic) > 1:
            raise ConfigError(f"{' and '.join(automatic)} are 'auto'; one size may be, give the others.")
        if self.ulysses_size is None:
            for name in ("ulysses_anything", "ulysses_float8", "ulysses_async"):
                if getattr(self, name) and not (name == "ulysses_anything" and self.ring_size):
                    raise ConfigError(f"{name} is True but ulysses_size is None; give ulysses_size too.")
        for name in _REFUSED.get(self.backend, ()):
            if sizes[name] not in (None, 1):
                raise ConfigError(
                    f"{name} is {sizes[name]!r} but backend is {self.backend}, which does not have it; give "
                    "ParallelismBackend.AUTO."
                )
        if self.process_group is None and not any(sizes.values()) and not self.extra_parallel_modules:
            raise ConfigError(
                "ParallelismConfig has neither a size nor a process_group; give ulysses_size, ring_size or "
                "tp_size, or the process_group whose ranks share a sample."
            )

    @property
    def splits_context(self) -> bool:
        """Whether the sequence is split."""
        return any(size not in (None, 1) for size in (self.ulysses_size, self.ring_size))

    def resolved(self, processes: int) -> ParallelismConfig:
        """The same with numbers in place of "auto" and None, for so many processes.

        Raises:
            ConfigError: The sizes do not divide the number of processes.
        """
        given = {name: getattr(self, name) for name in SIZES}
        known = 1
        for size in given.values():
            known *= size if isinstance(size, int) else 1
        said = ", ".join(f"{name}={size!r}" for name, size in given.items() if size is not None)
        if processes % known:
            raise ConfigError(
                f"{said} need a multiple of {known} processes but there are {processes}; give other sizes or "
                f"start that many, as with torchrun --nproc_per_node={known}."
            )
        rest = {"auto": processes // known, None: 1}
        fixed: dict[str, Any] = {n: s if isinstance(s, int) else rest[s] for n, s in given.items()}
        return dataclasses.replace(self, **fixed)

    def install(self, models: Sequence[nn.Module], pipe: object) -> Installed:
        """Spread the models; called by `enable_cache`."""
        from cache_dit.parallelism.install import install

        return install(self, models, pipe)


SIZES = ("ring_size", "ulysses_size", "tp_size")
"""From the outermost dimension of the device mesh to the innermost."""

_REFUSED = {
    ParallelismBackend.NATIVE_DIFFUSER: ("tp_size",),
    ParallelismBackend.NATIVE_PYTORCH: ("ulysses_size", "ring_size"),
}
