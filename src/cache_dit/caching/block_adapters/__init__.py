"""How users say what is cached: adapters, per-list parameters, and a register of model families."""

from cache_dit.caching.block_adapters.adapter import BlockAdapter, ParamsModifier
from cache_dit.caching.block_adapters.register import BlockAdapterRegister
from cache_dit.caching.forward_pattern import ForwardPattern

__all__ = ["BlockAdapter", "BlockAdapterRegister", "ForwardPattern", "ParamsModifier"]
