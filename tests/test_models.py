"""Every transformer and ControlNet class of the installed diffusers is known, or refused with a reason."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import diffusers
import diffusers.models.controlnets
import diffusers.models.transformers
import pytest
from tiny.models import TINY_MODELS
from tiny.versions import needs_all
from torch import nn

import cache_dit
from cache_dit.caching.models.rows import ROWS
from cache_dit.caching.models.unsupported import UNSUPPORTED
from cache_dit.errors import UnsupportedModelError

# Beside the two packages that are all denoisers.
ELSEWHERE = {"UVit2DModel"}


def installed() -> set[str]:
    packages = (diffusers.models.transformers, diffusers.models.controlnets)
    modules = [
        importlib.import_module(f"{package.__name__}.{found.name}")
        for package in packages
        for found in pkgutil.iter_modules(package.__path__)
    ]
    return {
        name
        for module in modules
        for name, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, diffusers.ModelMixin) and kind.__module__ == module.__name__
    }


def test_every_class_is_a_row_or_has_a_reason() -> None:
    needs_all()
    known = {row.name for row in ROWS}
    assert len(known) == len(ROWS), "a class has two rows"
    assert not known & set(UNSUPPORTED)
    assert installed() - known - set(UNSUPPORTED) == set()
    assert known - installed() == ELSEWHERE


def test_no_reason_outlives_its_class() -> None:
    needs_all()
    assert set(UNSUPPORTED) <= installed()


@pytest.mark.parametrize("name", sorted(row.name for row in ROWS))
def test_every_row_has_a_tiny_model(name: str) -> None:
    assert any(tiny.name == name for tiny in TINY_MODELS)


def test_the_reason_is_told() -> None:
    kind = type("RFD4ProteinaTransformer", (nn.Module,), {})
    with pytest.raises(UnsupportedModelError, match="is not supported, because it runs its layers several"):
        cache_dit.enable_cache(kind())
