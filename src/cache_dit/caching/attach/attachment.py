"""Caching as it is in force on one transformer: what was asked for, and the session that does it."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable

from torch import nn

from cache_dit.caching.attach.declared import Lists, Setting
from cache_dit.caching.attach.planning import make_plan
from cache_dit.caching.config import CacheConfig
from cache_dit.caching.engine.requests import LiveRuns, Request
from cache_dit.caching.engine.session import Session
from cache_dit.caching.patch_functors import Patch
from cache_dit.errors import ConfigError

_MOST_OTHERS = 8
"""Configurations of requests that a summary can tell of; those in use are kept by their requests."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False, weakref_slot=True)
class Attachment:
    """One transformer's lists, settings and session; made anew for every change of configuration.

    Attributes:
        lists: What is cached.
        settings: One for all lists, or one for each.
        shares_run: Other transformers take part in the run.
        session: The engine.
        replaced: Configuration, in short form, that was in force when caching was enabled again; else None.
        choose: The settings for lists that the first forward will show; None once they are known.
        patch: What a patch functor has changed.
        requested: The settings are those of requests with a configuration of their own. Default False.
        others: The same under such configurations, the latest few.
    """

    lists: Lists
    settings: tuple[Setting, ...]
    shares_run: bool
    session: Session
    replaced: str | None = None
    choose: Callable[[Lists], tuple[Setting, ...]] | None = None
    patch: Patch | None = None
    requested: bool = False
    others: deque[Attachment] = dataclasses.field(default_factory=lambda: deque(maxlen=_MOST_OTHERS))

    @property
    def blocks(self) -> tuple[nn.Module, ...]:
        """Every block of every list, and what else is skipped."""
        listed = (block for members in self.lists.blocks for block in members)
        return tuple(dict.fromkeys((*listed, *self.session.plan.blocks)))

    def changed(self, change: Callable[[Setting], Setting]) -> Attachment:
        """The same lists under changed settings and with a session of their own."""
        made = attachment(self.lists, tuple(map(change, self.settings)), shares_run=self.shares_run)
        choose = self.choose
        later = None if choose is None else lambda lists: tuple(map(change, choose(lists)))
        return dataclasses.replace(made, choose=later, patch=self.patch)

    def settled(self, lists: Lists) -> Attachment:
        """The same for the lists that the first forward has shown."""
        settings = self.choose(lists) if self.choose else self.settings
        made = attachment(lists, settings, shares_run=self.shares_run)
        return dataclasses.replace(made, replaced=self.replaced, patch=self.patch)

    def of(self, request: Request) -> Attachment:
        """What is in force for a request: this, or the same under the request's own configuration."""
        if not request.configured:
            return self
        own: Attachment | None = request.attachments.get(self)
        if own is None:
            cache, calibrator = request.cache_config, request.calibrator_config
            own = self._under(tuple([one.updated(cache, calibrator) for one in self.settings]))
            request.attachments[self] = own
        return own

    def _under(self, settings: tuple[Setting, ...]) -> Attachment:
        """The same under a request's settings; requests with equal ones share it."""
        limit, asked = self.settings[0].cache.max_live_requests, settings[0].cache.max_live_requests
        # A whole configuration always has a limit: only one that was chosen can be a mistake.
        if asked not in (limit, CacheConfig.max_live_requests):
            raise ConfigError(
                f"max_live_requests is {asked} in the configuration of a request, but it counts for all "
                f"those of the transformer, where it is {limit}; set it in enable_cache."
            )
        # A copy, since another thread may add one meanwhile.
        known = next((one for one in tuple(self.others) if one.settings == settings), None)
        if known is not None:
            return known
        made = attachment(self.lists, settings, shares_run=self.shares_run, live=self.session.live)
        made = dataclasses.replace(made, requested=True)
        self.others.append(made)
        return made

    def strify(self) -> str:
        """Configuration in short form, such as `DBCache_F8B0_W8I1M0MC0_R0.08_T0O0`."""
        return "+".join(setting.strify() for setting in self.settings)


def attachment(
    lists: Lists, settings: tuple[Setting, ...], *, shares_run: bool, live: LiveRuns | None = None
) -> Attachment:
    """Check the settings against the model and make its session; the model is not touched.

    `live` are the runs that count against the limit of this model; None: there are none yet.

    Raises:
        ConfigError: An option does not fit the model.
        PatternError: A declared stream is no argument of the blocks.
    """
    plan = make_plan(lists, settings, shares_run=shares_run)
    session = Session(plan, live or LiveRuns(settings[0].cache.max_live_requests))
    return Attachment(lists=lists, settings=settings, shares_run=shares_run, session=session)
