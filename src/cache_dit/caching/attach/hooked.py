"""Forwards below the hooks that accelerate and diffusers put around them, by replacing them on instances."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


def bare_forward(module: nn.Module) -> Callable[..., Any]:
    """The forward of a module below all hooks; where there is none, or none that is known, its forward.

    Each of the two libraries keeps what it found, which may be a hook of the other.
    """
    known = vars(module)
    references = getattr(known.get("_diffusers_hook"), "_fn_refs", ())
    below = [known.get("_old_forward"), *(one.original_forward or one.forward for one in references[:1])]
    plain = (forward for forward in below if forward is not None and not _is_hook(forward))
    return next(plain, module.forward)


@contextmanager
def unhooked(model: nn.Module) -> Iterator[None]:
    """Let a model run without hooks, which would bring, drop or cast its weights.

    Raises:
        RuntimeError: There are hooks of another kind.
    """
    kept = {module: vars(module)["forward"] for module in model.modules() if _is_hooked(module)}
    below = {module: bare_forward(module) for module in kept}
    if strange := [module for module, forward in below.items() if _is_hook(forward)]:
        raise RuntimeError(f"{type(strange[0]).__name__} has hooks that cannot be left out.")
    try:
        for module, forward in below.items():
            vars(module)["forward"] = forward
        yield
    finally:
        for module, forward in kept.items():
            vars(module)["forward"] = forward


def _is_hooked(module: nn.Module) -> bool:
    known = vars(module)
    return "forward" in known and bool(
        "_old_forward" in known or getattr(known.get("_diffusers_hook"), "_fn_refs", ())
    )


def _is_hook(forward: Callable[..., Any]) -> bool:
    return isinstance(forward, functools.partial)
