from . import presets
from ._version import __version__
from .api import disable_cache, enable_cache, refresh_context
from .attention import set_attn_backend
from .caching.block_adapters import (
    BlockAdapter,
    BlockAdapterRegister,
    ForwardPattern,
    ParamsModifier,
)
from .caching.catalogue import (
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
from .caching.config import CacheConfig, CacheType, Place
from .caching.engine.requests import Request
from .caching.maths.masks import steps_mask
from .caching.maths.schedule import Schedule
from .caching.maths.trajectory import Trajectory
from .caching.patch_functors import PatchFunctor
from .compile import set_compile_configs
from .configs import config_schema, load_configs, save_configs
from .errors import CacheDiTError
from .pages import report
from .parallelism import ParallelismBackend, ParallelismConfig
from .presets import Preset
from .quantize import quantize
from .short_names import (
    NONE,
    DBCache,
    DBPrune,
    Pattern_0,
    Pattern_1,
    Pattern_2,
    Pattern_3,
    Pattern_4,
    Pattern_5,
    get_adapter,
)
from .shorthand import parse_config
from .stats import (
    CacheStats,
    Finding,
    diagnose,
    strify,
    summary,
)
from .supported import supported_matrix, supported_pipelines

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
