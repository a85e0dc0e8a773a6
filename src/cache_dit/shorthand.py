"""Configurations as text: the short form of benchmarks and file names, and presets with their arguments."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from typing import Any

from cache_dit import presets
from cache_dit.caching.catalogue import (
    DBPruneConfig,
    DMDCalibratorConfig,
    FoCaCalibratorConfig,
    FreqCaCalibratorConfig,
    HiCacheCalibratorConfig,
    SpectrumCalibratorConfig,
    TaylorSeerCalibratorConfig,
)
from cache_dit.caching.config import BasicCacheConfig, CalibratorConfig, DBCacheConfig, Place
from cache_dit.errors import CacheDiTError, ConfigError, nearest
from cache_dit.presets import Preset

_LONGEST = 4_000
_REAL = r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)"


def _limit(count: str) -> int:
    return int(count) or -1


def _sets(name: str, value: Callable[[str], Any] = int) -> Callable[[str], dict[str, Any]]:
    return lambda text: {name: value(text)}


# Every token: what it looks like, and the options of the cache that it sets.
_CACHE: dict[str, Callable[..., dict[str, Any]]] = {
    r"F(\d+)": _sets("Fn_compute_blocks"),
    r"B(\d+)": _sets("Bn_compute_blocks"),
    r"W(\d+)": _sets("max_warmup_steps"),
    r"I(\d+)": _sets("warmup_interval"),
    r"M(\d+)": _sets("max_cached_steps", _limit),
    r"MC(\d+)": _sets("max_continuous_cached_steps", _limit),
    f"R{_REAL}": _sets("residual_diff_threshold", float),
    f"P{_REAL}(D?)": lambda threshold, dynamic: {
        "residual_diff_threshold": float(threshold),
        "enable_dynamic_prune_threshold": bool(dynamic),
    },
    f"({'|'.join(place.name for place in Place)})": lambda name: {"place": Place[name]},
    r"SCM([01]+)(?:_(dynamic|static))?": lambda mask, policy: {
        "steps_computation_mask": [*map(int, mask)],
        "steps_computation_policy": policy or "dynamic",
    },
    r"CFG([01])": _sets("enable_separate_cfg", lambda text: text == "1"),
    r"U(\d+)": _sets("uncond_interval"),
    "PS": lambda: {"per_sample": True},
}
# The same for calibrators. The order behind T0, which is off, says nothing.
_CALIBRATORS: dict[str, Callable[..., CalibratorConfig]] = {
    r"T0(?:O\d+)?": CalibratorConfig,
    r"T1(?:O(\d+))?(P?)": lambda order, published: TaylorSeerCalibratorConfig(
        taylorseer_order=int(order or 1), differences="published" if published else "newton"
    ),
    "FoCa": FoCaCalibratorConfig,
    f"HiCacheO(\\d+)S{_REAL}": lambda order, sigma: HiCacheCalibratorConfig(
        order=int(order), sigma=float(sigma)
    ),
    f"FreqCaO(\\d+)S{_REAL}C{_REAL}": lambda order, sigma, cutoff: FreqCaCalibratorConfig(
        order=int(order), sigma=float(sigma), cutoff=float(cutoff)
    ),
    f"DMD(\\d+)G{_REAL}": lambda kept, growth: DMDCalibratorConfig(
        snapshots=int(kept), max_growth=float(growth)
    ),
    f"SpectrumD(\\d+)R{_REAL}B{_REAL}W(\\d+)(A?)": lambda degree, ridge, blend, window, anchored: (
        SpectrumCalibratorConfig(
            degree=int(degree),
            ridge=float(ridge),
            blend=float(blend),
            window=int(window),
            anchored=bool(anchored),
        )
    ),
}
# What was measured, behind what was set: cached steps, pruned blocks in per cent, seconds.
_MEASURED = re.compile(r"(_S\d+)?(_P\d\d+\.\d)?(_T\d+(\.\d+)?s)?$", re.ASCII)
_EXAMPLE = "F8B0_W8M0MC3_R0.12_T1O1"


def parse_config(text: str) -> Preset:
    """Read a cache and its calibrator from one string, for `enable_cache`.

    The short form is that of `cache_dit.strify`, whose inverse this is, as far as it says all: tokens joined
    by underscores or by nothing, in any order. What is left out has its default. `DBCache_` or `DBPrune_` may
    stand in front, and the cached steps and seconds of a run at the end, as in `_S16_T11.39s`.

    | token | option |
    | --- | --- |
    | F8, B0 | Fn_compute_blocks, Bn_compute_blocks |
    | W8, I1 | max_warmup_steps, warmup_interval |
    | M0, MC3 | max_cached_steps, max_continuous_cached_steps; 0: no limit |
    | R0.12 | residual_diff_threshold |
    | P0.06, P0.06D | the same for DBPrune, D with the dynamic threshold |
    | SCM110_dynamic | steps_computation_mask and its policy |
    | CFG1, U5, PS, OUTPUT | enable_separate_cfg, uncond_interval, per_sample, the name of a `Place` |
    | T0O1, T1O2, T1O2P | no TaylorSeer; TaylorSeer of order 2; with the published differences |
    | FoCa, HiCacheO2S0.5, ... | the calibrator of this short form |

    A function of `cache_dit.presets` with literal arguments is read too; words need no quotes.

    Args:
        text: At most 4,000 characters.

    Returns:
        Both configurations.

    Raises:
        ConfigError: A token or preset is unknown, a token is there twice or has a value that is not allowed.
        ConfigTypeError: An argument of a preset has the wrong type.

    Examples:
        >>> cache_dit.enable_cache(pipe, cache_dit.parse_config("F8B0_W8M0MC3_R0.12_T1O1"))
        >>> cache_dit.enable_cache(pipe, cache_dit.parse_config("taylorseer(interval=5, order=2)"))
    """
    text = text.strip()
    if not text or len(text) > _LONGEST:
        raise ConfigError(
            f"a config string of {len(text)} characters; give 1 to {_LONGEST:,}, such as {_EXAMPLE}."
        )
    return _preset(text) if text[0].islower() else _short_form(text)


def _short_form(text: str) -> Preset:
    family = re.match("(DBCache|DBPrune)_", text, re.IGNORECASE)
    fields: dict[str, Any] = {}
    if family and family[1].lower() == "dbprune":
        fields["enable_dynamic_prune_threshold"] = False
    calibrator: CalibratorConfig | None = None
    at = family.end() if family else 0
    measured = _MEASURED.search(text, at)
    end = measured.start() if measured else len(text)
    while at < end:
        size, found = _token(text, at, end)
        if isinstance(found, CalibratorConfig):
            if calibrator is not None:
                raise _wrong(text, at, size, "is a second calibrator")
            calibrator = found
        else:
            for name in found:
                if name in fields and name != "enable_dynamic_prune_threshold":
                    raise _wrong(text, at, size, f"sets {name} again")
            fields |= found
        at += size
        at += text.startswith("_", at) and at + 1 < end
    return Preset(_cache(fields), calibrator or CalibratorConfig())


def _token(text: str, at: int, end: int) -> tuple[int, dict[str, Any] | CalibratorConfig]:
    """Length and meaning of the token at a position."""
    makers: dict[str, Callable[..., dict[str, Any] | CalibratorConfig]] = {**_CACHE, **_CALIBRATORS}
    for pattern, made in makers.items():
        match = re.compile(f"{pattern}(?=[A-Z_]|$)", re.ASCII).match(text, at, end)
        if match:
            try:
                found = made(*match.groups())
                if isinstance(found, dict):
                    _cache(found)  # so that a value that is not allowed is told by its token
            except CacheDiTError as error:
                raise _wrong(text, at, len(match[0]), f"is not allowed: {error}") from error
            return len(match[0]), found
    rest = re.match("[A-Z]*[^A-Z_]*", text[at:end])
    size = len(rest[0]) if rest and rest[0] else 1
    raise _wrong(text, at, size, f"is no option of a cache or calibrator; a whole string is {_EXAMPLE}")


def _cache(fields: dict[str, Any]) -> BasicCacheConfig:
    kind = DBPruneConfig if "enable_dynamic_prune_threshold" in fields else DBCacheConfig
    return kind(**fields)


def _wrong(text: str, at: int, size: int, why: str) -> ConfigError:
    return ConfigError(f"{text!r}: {text[at : at + size]!r} at position {at} {why.rstrip('.')}.")


def _preset(text: str) -> Preset:
    try:
        call: ast.expr = ast.parse(text, mode="eval").body
        arguments = call if isinstance(call, ast.Call) else ast.Call(call, [], [])
        name = arguments.func.id if isinstance(arguments.func, ast.Name) else ""
        args = [_literal(value) for value in arguments.args]
        kwargs = {given.arg or "**": _literal(given.value) for given in arguments.keywords}
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(
            f"{text!r} is no preset with literal arguments; write it like taylorseer(interval=5, order=2)."
        ) from error
    known = presets.NAMED
    if name not in known:
        hint = nearest(name, known)
        meant = f"Did you mean {hint!r}?" if hint else f"Known are: {', '.join(known)}."
        raise ConfigError(f"{text!r}: there is no preset {name!r}. {meant}")
    try:
        inspect.signature(known[name]).bind(*args, **kwargs)
    except TypeError as error:
        raise ConfigError(f"{text!r}: {error}; it takes {inspect.signature(known[name])}.") from error
    made: Preset = known[name](*args, **kwargs)
    return made


def _literal(node: ast.expr) -> Any:
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)
