"""Context parallelism: every process has a part of the sequence."""

from cache_dit.parallelism.context.plan import Along, ContextPlan, Front, Mask
from cache_dit.parallelism.context.plans import CONTEXT_PLANS

__all__ = ["CONTEXT_PLANS", "Along", "ContextPlan", "Front", "Mask"]
