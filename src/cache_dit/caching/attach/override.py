"""Private subclasses that override `__call__` on single instances, by swapping the instance's class.

This is how `torch.nn.utils.parametrize` and FSDP2 work too. The subclass has the name of the class that it
stands for, `isinstance` and `state_dict` see no difference, no other instance is touched, and taking it off
is one assignment. The override is outside of everything that replaces `forward` (hooks of accelerate and
diffusers, a compiled call), so a skipped block skips those as well.
"""

from __future__ import annotations

import copyreg
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cache_dit.caching.attach.attachment import Attachment
from cache_dit.caching.attach.distribution import Distribution, Edge, Installed, check
from cache_dit.caching.attach.observe import observe
from cache_dit.caching.config import Place
from cache_dit.caching.engine.forward import current_frame
from cache_dit.caching.engine.ports import Call
from cache_dit.caching.engine.requests import Request, branch_name, current_request
from cache_dit.errors import CacheDiTError, ConfigError, PatternError, UnsupportedModelError

_PLAIN = "_cache_dit_plain_class"
_ATTACHED = "_cache_dit_attachment"
_INSTALLED = "_cache_dit_distribution"
_EDGE = "_cache_dit_edge"
_OURS = (_ATTACHED, _INSTALLED, _EDGE)


def plain_class(thing: object) -> type:
    """The class of an object as it was before caching."""
    return type(thing).__dict__.get(_PLAIN) or type(thing)


def attachment_of(model: object) -> Attachment | None:
    """What is attached to a transformer, or None."""
    return vars(model).get(_ATTACHED) if hasattr(model, "__dict__") else None


def installed_on(model: object) -> Installed | None:
    """How a model is spread over processes, or None."""
    return vars(model).get(_INSTALLED) if hasattr(model, "__dict__") else None


def put_on(model: nn.Module, attached: Attachment) -> None:
    """Start caching on a transformer, in place of what was attached before."""
    _dress(model, attached, installed_on(model))


def take_off(model: nn.Module) -> None:
    """Stop caching on a transformer; nothing happens where there is none.

    Raises:
        CacheDiTError: Something else has replaced the class of the model or of a block since then.
    """
    attached = attachment_of(model)
    if attached is None:
        return
    _dress(model, None, installed_on(model))
    if attached.patch is not None:
        attached.patch.undo()


def distribute(model: nn.Module, installed: Installed | None) -> None:
    """Let a model work on its part of the sequence as `installed` says; None: on all of it again."""
    _dress(model, attachment_of(model), installed)


def spread(distribution: Distribution, models: Sequence[nn.Module], pipe: object) -> Callable[[], None]:
    """Spread models over processes; what is returned takes that back.

    Raises:
        ConfigError: They are already, or the distribution does not fit them; they are as they were.
    """
    for model in models:
        known = installed_on(model)
        if known is not None:
            raise ConfigError(
                f"parallelism_config is given but {type(model).__name__} is spread over processes already "
                f"({known.label}); call cache_dit.disable_cache first."
            )
    installed = distribution.install(models, pipe)
    try:
        for model in models:
            distribute(model, installed)
    except BaseException:
        _take_back(installed, models)
        raise
    return lambda: gather_in(models)


def gather_in(models: Sequence[nn.Module]) -> None:
    """Undo `spread`; nothing happens where models are whole."""
    for installed in {id(one): one for one in map(installed_on, models) if one is not None}.values():
        _take_back(installed, models)


def _take_back(installed: Installed, models: Sequence[nn.Module]) -> None:
    for model in models:
        if installed_on(model) is installed:
            distribute(model, None)
    installed.undo()


def _dress(model: nn.Module, attached: Attachment | None, installed: Installed | None) -> None:
    """Give a model, and what is inside of it, the overrides that are wanted in place of those it has.

    The whole model is cached as every process has it, around what splits it; blocks are cached as they are
    split, inside of that.
    """
    edges = _edges(model, installed)
    if attached is not None:
        check(attached.session.plan, model, installed)
    worn = [*_changed(attachment_of(model)), *_edges(model, installed_on(model)), model]
    covered = [thing for thing in worn if is_covered(thing)]
    if covered:
        raise CacheDiTError(
            f"{type(covered[0]).__name__} was wrapped by something else (such as fully_shard) after "
            "enable_cache, so caching cannot be taken off from under it; undo that first."
        )
    for thing in worn:
        thing.__class__ = plain_class(thing)
        vars(thing).pop(_EDGE, None)
    for name, value in ((_ATTACHED, attached), (_INSTALLED, installed)):
        vars(model).pop(name, None)
        if value is not None:
            vars(model)[name] = value
    for thing, edge in edges.items():
        vars(thing)[_EDGE] = edge
    if model in edges:
        _swap(model, _edge_class)
    if attached is not None:
        _swap(model, _transformer_class)
        for block in attached.blocks:
            _swap(block, _block_class)
        for module in attached.session.plan.muted:
            _swap(module, _muted_class)
    for thing in edges:
        if thing is not model:
            _swap(thing, _edge_class)


def _changed(attached: Attachment | None) -> tuple[nn.Module, ...]:
    return () if attached is None else (*attached.blocks, *attached.session.plan.muted)


def _edges(model: nn.Module, installed: Installed | None) -> Mapping[nn.Module, Edge]:
    return {} if installed is None else installed.edges.get(model, {})


def rebind(compiled: Any) -> None:
    """Let what `torch.compile` returned call its module as it is now; it has kept the `__call__` of then."""
    compiled._initialize()


def open_runs(pipe: object, new_request: Callable[[Any], Request]) -> None:
    """Let every call of a pipeline instance be a request of its own."""
    if plain_class(pipe) is type(pipe):
        _swap(pipe, _pipeline_class, new_request)


def close_runs(pipe: object) -> None:
    """Undo `open_runs`."""
    pipe.__class__ = plain_class(pipe)


def _swap(thing: object, subclass: Callable[..., type], *details: Any) -> None:
    thing.__class__ = subclass(type(thing), *details)


def is_covered(thing: object) -> bool:
    """Whether something else has replaced the class of an object since caching did."""
    return plain_class(thing) is type(thing) and hasattr(type(thing), _PLAIN)


def _subclass(plain: Any, **members: Any) -> type:
    _outside_of_compile()

    def __reduce_ex__(self: Any, protocol: Any) -> Any:
        # A copy or a pickle is a plain model without what is attached.
        make, args, state, *rest = plain.__reduce_ex__(self, protocol)
        args = tuple(plain if item is made else item for item in args)
        if make is copyreg.__newobj__:  # type: ignore[attr-defined]  # typeshed leaves it out
            # pickle insists that this function gets the class of the object itself.
            make = object.__new__
        if isinstance(state, dict):
            state = {name: value for name, value in state.items() if name not in _OURS}
        return (make, args, state, *rest)

    same = {name: getattr(plain, name) for name in ("__module__", "__qualname__", "__doc__")}
    made: type = type(plain)(
        plain.__name__, (plain,), {**same, **members, _PLAIN: plain, "__reduce_ex__": __reduce_ex__}
    )
    return made


@functools.cache
def _block_class(plain: Any) -> type:
    def __call__(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        frame = current_frame.get()
        if frame is not None:
            slot = frame.slots.get(self)
            if slot is not None:
                run = frame.runs[slot.segment]
                if slot.echo is not None:
                    if run.skipping:
                        return slot.echo(args, kwargs)
                    if run.computing:
                        return plain.__call__(self, *args, **kwargs)
                return run.visit(slot, Call(plain.__call__, self, args, kwargs))
        return plain.__call__(self, *args, **kwargs)

    return _subclass(plain, __call__=__call__)


@functools.cache
def _muted_class(plain: Any) -> type:
    def __call__(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        frame = current_frame.get()
        if frame is None or not any(run.skipping for run in frame.runs):
            return plain.__call__(self, *args, **kwargs)
        given = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        return given.new_zeros(())

    return _subclass(plain, __call__=__call__)


@functools.cache
def _edge_class(plain: Any) -> type:
    def __call__(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        edge: Edge = vars(self)[_EDGE]
        if edge.enter is not None:
            args, kwargs = edge.enter(args, kwargs)
        output = plain.__call__(self, *args, **kwargs)
        return output if edge.leave is None else edge.leave(output)

    return _subclass(plain, __call__=__call__)


@functools.cache
def _transformer_class(plain: Any) -> type:
    def __call__(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        attached = attachment_of(self)
        if attached is None:
            return plain.__call__(self, *args, **kwargs)
        try:
            if not attached.lists.flows:
                attached = _settled(self, attached, plain.__call__, args, kwargs)
            request = current_request()
            session, installed = attached.of(request).session, installed_on(self)
            check(session.plan, self, installed)
            reduce = None if installed is None else installed.reduce
            return session.forward(request, plain.__call__, self, args, kwargs, reduce)
        except torch._dynamo.exc.Unsupported as error:
            place = attached.settings[0].cache.place
            if place not in (Place.ATTENTION, Place.MLP, Place.SUBMODULES):
                raise
            raise ConfigError(
                f"place is {place} and the blocks of {attached.lists.name} are compiled in one piece, but "
                "modules inside of them are skipped; compile with fullgraph=False, which breaks the graph at "
                "each of them, or give Place.BLOCKS or Place.MIDDLE."
            ) from error
        except (PatternError, UnsupportedModelError):
            # The declaration is wrong, or nothing can be cached, so every later forward would fail as well.
            take_off(self)
            raise

    members: dict[str, Any] = {"__call__": __call__}
    announce = getattr(plain, "cache_context", None)
    if announce is not None:

        @contextmanager
        def cache_context(self: nn.Module, name: str, **kwargs: Any) -> Iterator[None]:
            token = branch_name.set(name)
            try:
                with announce(self, name, **kwargs):
                    yield
            finally:
                branch_name.reset(token)

        members["cache_context"] = functools.wraps(announce)(cache_context)
    return _subclass(plain, **members)


def _settled(
    model: nn.Module, pending: Attachment, call: Callable[..., Any], args: Any, kwargs: Any
) -> Attachment:
    """What is attached to a model that nobody declared, after a forward that shows its block lists."""
    made = pending.settled(observe(pending.lists, call, args, kwargs))
    current = attachment_of(model)
    if current is not pending:
        # Another thread, or the user, was faster.
        return current or made
    put_on(model, made)
    return made


@functools.cache
def _pipeline_class(plain: Any, new_request: Callable[[Any], Request]) -> type:
    @functools.wraps(plain.__call__)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        with new_request(self):
            return plain.__call__(self, *args, **kwargs)

    return _subclass(plain, __call__=__call__)


@functools.cache
def _outside_of_compile() -> None:
    """Keep dynamo from tracing this package; what it calls is compiled as usual.

    It would compile a piece of the engine for every state that it is in. `torch.compiler.disable` on each
    function is no way: its wrapper takes three times as long as a skipped block.
    """
    torch._dynamo.trace_rules.add("cache_dit.caching")
