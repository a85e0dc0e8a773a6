"""Training-free caching for diffusion transformers.

>>> import cache_dit
>>> cache_dit.enable_cache(pipe)
>>> image = pipe("a red house").images[0]
>>> cache_dit.summary(pipe)
"""

from cache_dit import presets
from cache_dit._version import __version__
from cache_dit.api import disable_cache, enable_cache, refresh_context
from cache_dit.attention import set_attn_backend
from cache_dit.caching.block_adapters import (
    BlockAdapter,
    BlockAdapterRegister,
    ForwardPattern,
    ParamsModifier,
)
from cache_dit.caching.catalogue import (
    BasicCacheConfig,
    BudgetConfig,
    CalibratorConfig,
    DBCacheConfig,
    DBPruneConfig,
    DeltaDiTConfig,
    DiCacheCalibratorConfig,
    DiCacheConfig,
    DMDCalibratorConfig,
    DuCaConfig,
    EasyCacheConfig,
    FasterCacheCalibratorConfig,
    FoCaCalibratorConfig,
    FreqCaCalibratorConfig,
    GrowingIntervalConfig,
    HiCacheCalibratorConfig,
    IntervalConfig,
    MagCacheConfig,
    PABConfig,
    ScheduleConfig,
    SeaCacheConfig,
    SpeCaConfig,
    SpectrumCalibratorConfig,
    SurpriseConfig,
    TaylorSeerCalibratorConfig,
    TeaCacheConfig,
    ToCaConfig,
    ToleranceConfig,
    TrajectoryCalibratorConfig,
)
from cache_dit.caching.config import CacheConfig, CacheType, Place
from cache_dit.caching.engine.requests import Request
from cache_dit.caching.maths.masks import steps_mask
from cache_dit.caching.maths.schedule import Schedule
from cache_dit.caching.maths.trajectory import Trajectory
from cache_dit.caching.patch_functors import PatchFunctor
from cache_dit.compile import set_compile_configs
from cache_dit.configs import config_schema, load_configs, save_configs
from cache_dit.errors import CacheDiTError
from cache_dit.pages import report
from cache_dit.parallelism import ParallelismBackend, ParallelismConfig
from cache_dit.presets import Preset
from cache_dit.quantize import quantize
from cache_dit.shorthand import parse_config
from cache_dit.stats import (
    CacheStats,
    Finding,
    diagnose,
    strify,
    summary,
    supported_matrix,
    supported_pipelines,
)

NONE = CacheType.NONE
DBCache = CacheType.DBCache
DBPrune = CacheType.DBPrune

get_adapter = BlockAdapterRegister.get_adapter

Pattern_0 = ForwardPattern.Pattern_0
Pattern_1 = ForwardPattern.Pattern_1
Pattern_2 = ForwardPattern.Pattern_2
Pattern_3 = ForwardPattern.Pattern_3
Pattern_4 = ForwardPattern.Pattern_4
Pattern_5 = ForwardPattern.Pattern_5

__all__ = [
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
    "get_adapter",
    "load_configs",
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
]
