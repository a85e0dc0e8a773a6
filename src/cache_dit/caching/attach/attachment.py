"""Caching as it is in force on one transformer: what was asked for, and the session that does it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from cache_dit.caching.attach.planning import Lists, Setting, make_plan
from cache_dit.caching.engine.session import Session


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """One transformer's lists, settings and session; made anew for every change of configuration.

    Attributes:
        lists: What is cached.
        settings: One for all lists, or one for each.
        shares_run: Other transformers take part in the run.
        session: The engine.
        replaced: Configuration, in short form, that was in force when caching was enabled again; else None.
    """

    lists: Lists
    settings: tuple[Setting, ...]
    shares_run: bool
    session: Session
    replaced: str | None = None

    def changed(self, change: Callable[[Setting], Setting]) -> Attachment:
        """The same lists under changed settings and with a session of their own."""
        return attachment(self.lists, tuple(map(change, self.settings)), shares_run=self.shares_run)

    def strify(self) -> str:
        """Configuration in short form, such as `DBCache_F8B0_W8I1M0MC0_R0.08_T0O0`."""
        return "+".join(
            f"{setting.cache.cache_type.value}_{setting.cache.strify()}_{setting.calibrator.strify()}"
            for setting in self.settings
        )


def attachment(lists: Lists, settings: tuple[Setting, ...], *, shares_run: bool) -> Attachment:
    """Check the settings against the model and make its session; the model is not touched.

    Raises:
        ConfigError: An option does not fit the model.
        PatternError: A declared stream is no argument of the blocks.
    """
    session = Session(make_plan(lists, settings, shares_run=shares_run))
    return Attachment(lists=lists, settings=settings, shares_run=shares_run, session=session)
