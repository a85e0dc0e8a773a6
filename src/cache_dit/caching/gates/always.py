"""Skip whatever no limit and no mask computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cache_dit.caching.maths.gate import Gate, Reason, Verdict
from cache_dit.caching.maths.moment import Moment


@dataclass(frozen=True, slots=True)
class Always(Gate):
    """The rule of a static steps mask and of threshold 1: nothing is measured, the limits alone decide.

    Attributes:
        reason: What records say of a skipped step.
    """

    reason: Reason = Reason.ALWAYS

    def decide(self, state: Any, at: Moment, change: float | None) -> Verdict:
        return Verdict(True, self.reason)
