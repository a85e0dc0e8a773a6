"""How the streams of a block list travel: through which argument in, through which output slot out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

Arguments = tuple[Any, ...]
Keywords = dict[str, Any]
Echo = Callable[[Arguments, Keywords], Any]


class Call(NamedTuple):
    """A call of a module: its class's own `__call__`, the module, and what it is given."""

    function: Callable[..., Any]
    model: nn.Module
    args: Arguments
    kwargs: Keywords

    def run(self) -> Any:
        """What the call returns."""
        return self.function(self.model, *self.args, **self.kwargs)

    def named(self, parameters: Sequence[str]) -> Keywords:
        """Every argument by its name; `parameters` are the names in order."""
        return {**dict(zip(parameters, self.args, strict=False)), **self.kwargs}

    def tensors(self) -> tuple[Tensor, ...]:
        """The arguments that are tensors."""
        return tuple([value for value in (*self.args, *self.kwargs.values()) if isinstance(value, Tensor)])


@dataclass(frozen=True, slots=True)
class Port:
    """An argument of a block: its name and its position in the signature, without `self`."""

    name: str
    position: int

    def read(self, args: Arguments, kwargs: Keywords) -> Any:
        """The value of this argument in a call."""
        return args[self.position] if self.position < len(args) else kwargs.get(self.name)


@dataclass(frozen=True, slots=True)
class Ports:
    """The output slots of a block, each with the argument of the next block that it continues.

    Attributes:
        slots: One entry for each output slot; None is a side output that continues nothing.
        bare: The block returns its one output as it is, not in a tuple.
        main: Index of the slot whose residual is the signal (the hidden states).
    """

    slots: tuple[Port | None, ...]
    bare: bool
    main: int

    def read(self, call: Call) -> tuple[Any, ...]:
        """What enters in a call, one entry a slot, None for a side output."""
        args, kwargs = call.args, call.kwargs
        # A list and no generator: this is done for every block that is visited.
        return tuple([None if port is None else port.read(args, kwargs) for port in self.slots])

    def pack(self, values: tuple[Any, ...]) -> Any:
        """The output of a block from one value a slot."""
        return values[0] if self.bare else values

    def unpack(self, output: Any) -> tuple[Any, ...] | None:
        """One value a slot from the output of a block, or None where the output has another form."""
        several = isinstance(output, (tuple, list))
        if self.bare:
            return None if several else (output,)
        return tuple(output) if several and len(output) == len(self.slots) else None

    def echo(self) -> Echo:
        """A function of a call that returns what entered in the form of an output.

        It stands in for a skipped block, so it is written out for one and two streams.
        """
        ports = [port for port in self.slots if port is not None]
        if len(ports) == len(self.slots) == 1 and self.bare:
            return _echo_one(ports[0])
        if len(ports) == len(self.slots) == 2:
            return _echo_two(ports[0], ports[1])
        return lambda args, kwargs: self.pack(tuple(port.read(args, kwargs) for port in ports))


def _echo_one(port: Port) -> Echo:
    name, position = port.name, port.position

    def echo(args: Arguments, kwargs: Keywords) -> Any:
        return args[position] if position < len(args) else kwargs[name]

    return echo


def _echo_two(first: Port, second: Port) -> Echo:
    name, position = first.name, first.position
    other_name, other_position = second.name, second.position

    def echo(args: Arguments, kwargs: Keywords) -> Any:
        given = len(args)
        return (
            args[position] if position < given else kwargs[name],
            args[other_position] if other_position < given else kwargs[other_name],
        )

    return echo
