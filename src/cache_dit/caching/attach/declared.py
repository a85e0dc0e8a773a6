"""What is known of a transformer before it is planned for: its block lists and their configuration."""

from __future__ import annotations

import dataclasses
import inspect

from torch import nn

from cache_dit.caching.attach.hooked import bare_forward
from cache_dit.caching.config import CacheConfig, CalibratorConfig
from cache_dit.caching.models.row import BlockList, Row
from cache_dit.caching.options import Override

_BLANK = Row(name="", lists=())


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Lists:
    """The block lists of one transformer.

    Attributes:
        model: The transformer.
        blocks: The members of each list.
        flows: Path and data flow of each list.
        row: What else is known of the class; a blank row for a class without one.
        joined: The streams keep one layout over all lists, see `Row`.
    """

    model: nn.Module
    blocks: tuple[tuple[nn.Module, ...], ...]
    flows: tuple[BlockList, ...]
    row: Row = _BLANK
    joined: bool = False

    @property
    def name(self) -> str:
        """Class name of the transformer."""
        return type(self.model).__name__


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """The configuration of one list, or of all lists of a transformer together."""

    cache: CacheConfig
    calibrator: CalibratorConfig

    def updated(self, cache: CacheConfig | Override | None, calibrator: CalibratorConfig | None) -> Setting:
        """A copy with what is given in place of what was set; None keeps it."""
        return Setting(
            self.cache if cache is None else self.cache.updated(cache),
            self.calibrator if calibrator is None else calibrator,
        )

    def strify(self) -> str:
        """Method and forecaster in short form, such as `DBCache_F8B0_W8I1M0MC0_R0.08_T0O0`."""
        return f"{self.cache.method}_{self.cache.strify()}_{self.calibrator.strify()}"


def parameters_of(module: nn.Module) -> tuple[str, ...]:
    """Names of the arguments of a module's forward, in order."""
    return tuple(inspect.signature(bare_forward(module)).parameters)
