"""The public names are frozen here, so that adding or losing one is a decision."""

from __future__ import annotations

import cache_dit
import cache_dit.caching.block_adapters as block_adapters
from cache_dit import ForwardPattern

PUBLIC = {
    "NONE",
    "BasicCacheConfig",
    "BlockAdapter",
    "BlockAdapterRegister",
    "BudgetConfig",
    "CacheConfig",
    "CacheDiTError",
    "CacheStats",
    "CacheType",
    "CalibratorConfig",
    "DBCache",
    "DBCacheConfig",
    "DBPrune",
    "DBPruneConfig",
    "DMDCalibratorConfig",
    "DeltaDiTConfig",
    "DiCacheCalibratorConfig",
    "DiCacheConfig",
    "DuCaConfig",
    "EasyCacheConfig",
    "FasterCacheCalibratorConfig",
    "Finding",
    "FoCaCalibratorConfig",
    "ForwardPattern",
    "FreqCaCalibratorConfig",
    "GrowingIntervalConfig",
    "HiCacheCalibratorConfig",
    "IntervalConfig",
    "MagCacheConfig",
    "PABConfig",
    "ParallelismBackend",
    "ParallelismConfig",
    "ParamsModifier",
    "PatchFunctor",
    "Pattern_0",
    "Pattern_1",
    "Pattern_2",
    "Pattern_3",
    "Pattern_4",
    "Pattern_5",
    "Place",
    "Preset",
    "Request",
    "Schedule",
    "ScheduleConfig",
    "SeaCacheConfig",
    "SpeCaConfig",
    "SpectrumCalibratorConfig",
    "SurpriseConfig",
    "TaylorSeerCalibratorConfig",
    "TeaCacheConfig",
    "ToCaConfig",
    "ToleranceConfig",
    "Trajectory",
    "TrajectoryCalibratorConfig",
    "__version__",
    "config_schema",
    "diagnose",
    "disable_cache",
    "enable_cache",
    "load_configs",
    "get_adapter",
    "parse_config",
    "presets",
    "quantize",
    "refresh_context",
    "report",
    "save_configs",
    "set_attn_backend",
    "set_compile_configs",
    "steps_mask",
    "strify",
    "summary",
    "supported_matrix",
    "supported_pipelines",
}
IN_BLOCK_ADAPTERS = {"BlockAdapter", "BlockAdapterRegister", "ForwardPattern", "ParamsModifier"}


def test_names_of_the_package() -> None:
    assert set(cache_dit.__all__) == PUBLIC
    assert len(cache_dit.__all__) == len(PUBLIC)
    assert all(hasattr(cache_dit, name) for name in PUBLIC)


def test_names_of_block_adapters_are_those_of_the_package() -> None:
    assert set(block_adapters.__all__) == IN_BLOCK_ADAPTERS
    for name in IN_BLOCK_ADAPTERS:
        assert getattr(block_adapters, name) is getattr(cache_dit, name)


def test_patterns_are_also_plain_names() -> None:
    assert [pattern.name for pattern in ForwardPattern] == [f"Pattern_{number}" for number in range(6)]
    for pattern in ForwardPattern:
        assert getattr(cache_dit, pattern.name) is pattern


def test_every_public_object_is_documented() -> None:
    for name in PUBLIC - {"__version__"}:
        assert (getattr(cache_dit, name).__doc__ or "").strip(), name
