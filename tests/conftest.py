"""What all tests share: one torch thread, counts of FLOPs, and what is skipped with an older diffusers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny.versions import lacked_of, reason

from cache_dit.caching.attach.override import plain_class
from cache_dit.stats import flops

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that names in its parameters a class that an older diffusers lacks is skipped."""
    for item in items:
        for name in lacked_of(re.findall(r"\w+", item.name)):
            item.add_marker(pytest.mark.skip(reason=reason(f"has no {name}")))


class Counts(dict[Any, Any]):
    """Counts by inputs. That one model could not be counted, as it was compiled, say, is nobody else's."""

    def __setitem__(self, inputs: Any, count: Any) -> None:
        if count is not None:
            super().__setitem__(inputs, count)

    def __missing__(self, inputs: Any) -> None:
        return None


class CountsOfAlike(dict[Any, Any]):
    """Counts by what a model is instead of which, so that the next one of its configuration has them too."""

    def setdefault(self, model: Any, default: Any = None) -> Any:
        shapes = tuple((name, tensor.shape, tensor.device) for name, tensor in model.named_parameters())
        return super().setdefault(
            (plain_class(model), repr(getattr(model, "config", model)), shapes), Counts(default)
        )


@pytest.fixture(autouse=True, scope="session")
def _counted_once() -> Iterator[None]:
    """Counting takes a second, and nearly all tests count for copies of the same few models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flops, "_counted", CountsOfAlike())
        yield
