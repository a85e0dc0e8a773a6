"""Two thresholds, for the double and the single stream blocks: what they cost and what they look like."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any
from urllib.parse import quote

from cache_dit.bench.drawbench import UNCACHED, Variant, check_folders
from cache_dit.bench.manifest import Drawn
from cache_dit.caching.block_adapters.adapter import ParamsModifier
from cache_dit.caching.config import BasicCacheConfig
from cache_dit.errors import ConfigError
from cache_dit.shorthand import parse_config

Pair = tuple[float, float]  # thresholds of the first and of the second list of blocks
_WIDTH = 140


def sweep_variants(config: str, pairs: Sequence[Pair]) -> dict[Pair, Variant]:
    """The setting of every pair: each of the two lists decides for itself, by a threshold of its own.

    Args:
        config: Config string of all other options.
        pairs: Each once.

    Raises:
        ConfigError: No pair, a threshold that is not allowed, or a method without one.
    """
    preset = parse_config(config)
    cache = preset.cache_config
    if not isinstance(cache, BasicCacheConfig):
        raise ConfigError(f"{config!r} has no residual_diff_threshold; give one such as F1B0_W4M0MC0_T0O0.")
    if not pairs:
        raise ConfigError(
            "there is no pair of thresholds; give --double 0.1,0.2 --single 0.1,0.2, or --pair."
        )
    made = {}
    for pair in dict.fromkeys(pairs):
        changes = (ParamsModifier(cache_config=cache.reset(residual_diff_threshold=value)) for value in pair)
        made[pair] = Variant(f"{config}_double{pair[0]:g}_single{pair[1]:g}", preset, tuple(changes))
    check_folders([UNCACHED, *made.values()])
    return made


def sweep_table(variants: Mapping[Pair, Variant], lines: Mapping[str, Sequence[Drawn]]) -> str:
    """Seconds and the first picture of every pair: a grid where every combination is there, else a list.

    Seconds are medians over the pictures. Links are relative to the folder of the run.
    """
    doubles, singles = (sorted({pair[place] for pair in variants}) for place in (0, 1))
    if set(product(doubles, singles)) != set(variants):
        return _listed(variants, lines)
    head = [
        "Threshold (double)",
        *(f"Single {single:g} Inference (s)" for single in singles),
        *(f"Single {single:g} Image" for single in singles),
    ]
    rows = [_grid_row("0 (uncached)", [UNCACHED] * len(singles), lines)]
    for double in doubles:
        rows.append(_grid_row(f"{double:g}", [variants[double, single] for single in singles], lines))
    return _markdown(head, rows)


def sweep_data(
    variants: Mapping[Pair, Variant], lines: Mapping[str, Sequence[Drawn]]
) -> list[dict[str, Any]]:
    """Plain values, for JSON."""
    return [
        {
            "double": pair[0],
            "single": pair[1],
            "seconds": _seconds(lines[variant.name]),
            "tflops": [None if line.flops is None else line.flops / 1e12 for line in lines[variant.name]],
            "cached_steps": [list(line.cached) for line in lines[variant.name]],
            "folder": variant.folder,
        }
        for pair, variant in variants.items()
    ]


def _listed(variants: Mapping[Pair, Variant], lines: Mapping[str, Sequence[Drawn]]) -> str:
    settings = [(("0", "0 (uncached)"), UNCACHED)]
    settings += [((f"{double:g}", f"{single:g}"), variant) for (double, single), variant in variants.items()]
    head = ["Threshold (double)", "Threshold (single)", "Inference (s)", "Image"]
    rows = [
        [*pair, f"{_seconds(lines[variant.name]):.2f}", _image(variant, lines[variant.name])]
        for pair, variant in settings
    ]
    return _markdown(head, rows)


def _grid_row(name: str, row: Sequence[Variant], lines: Mapping[str, Sequence[Drawn]]) -> list[str]:
    return [
        name,
        *(f"{_seconds(lines[variant.name]):.2f}" for variant in row),
        *(_image(variant, lines[variant.name]) for variant in row),
    ]


def _seconds(lines: Sequence[Drawn]) -> float:
    return statistics.median(line.seconds for line in lines)


def _image(variant: Variant, lines: Sequence[Drawn]) -> str:
    return f'<img src="./{quote(variant.folder)}/{lines[0].file}" alt="{variant.folder}" width="{_WIDTH}">'


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows))
