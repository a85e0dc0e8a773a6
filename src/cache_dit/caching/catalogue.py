"""Every method, by its option class: the list to which a new one is added."""

from cache_dit.caching.config import BasicCacheConfig as BasicCacheConfig
from cache_dit.caching.config import CalibratorConfig as CalibratorConfig
from cache_dit.caching.config import DBCacheConfig as DBCacheConfig
from cache_dit.caching.forecasters.dicache import DiCacheCalibratorConfig as DiCacheCalibratorConfig
from cache_dit.caching.forecasters.dmd import DMDCalibratorConfig as DMDCalibratorConfig
from cache_dit.caching.forecasters.fastercache import (
    FasterCacheCalibratorConfig as FasterCacheCalibratorConfig,
)
from cache_dit.caching.forecasters.foca import FoCaCalibratorConfig as FoCaCalibratorConfig
from cache_dit.caching.forecasters.freqca import FreqCaCalibratorConfig as FreqCaCalibratorConfig
from cache_dit.caching.forecasters.hicache import HiCacheCalibratorConfig as HiCacheCalibratorConfig
from cache_dit.caching.forecasters.spectrum import SpectrumCalibratorConfig as SpectrumCalibratorConfig
from cache_dit.caching.forecasters.taylorseer import TaylorSeerCalibratorConfig as TaylorSeerCalibratorConfig
from cache_dit.caching.forecasters.trajectory import TrajectoryCalibratorConfig as TrajectoryCalibratorConfig
from cache_dit.caching.gates.budget import BudgetConfig as BudgetConfig
from cache_dit.caching.gates.delta_dit import DeltaDiTConfig as DeltaDiTConfig
from cache_dit.caching.gates.dicache import DiCacheConfig as DiCacheConfig
from cache_dit.caching.gates.duca import DuCaConfig as DuCaConfig
from cache_dit.caching.gates.easycache import EasyCacheConfig as EasyCacheConfig
from cache_dit.caching.gates.growing import GrowingIntervalConfig as GrowingIntervalConfig
from cache_dit.caching.gates.interval import IntervalConfig as IntervalConfig
from cache_dit.caching.gates.magcache import MagCacheConfig as MagCacheConfig
from cache_dit.caching.gates.pab import PABConfig as PABConfig
from cache_dit.caching.gates.prune import DBPruneConfig as DBPruneConfig
from cache_dit.caching.gates.scheduled import ScheduleConfig as ScheduleConfig
from cache_dit.caching.gates.seacache import SeaCacheConfig as SeaCacheConfig
from cache_dit.caching.gates.speca import SpeCaConfig as SpeCaConfig
from cache_dit.caching.gates.surprise import SurpriseConfig as SurpriseConfig
from cache_dit.caching.gates.teacache import TeaCacheConfig as TeaCacheConfig
from cache_dit.caching.gates.toca import ToCaConfig as ToCaConfig
from cache_dit.caching.gates.tolerance import ToleranceConfig as ToleranceConfig
