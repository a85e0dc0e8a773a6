"""The same prompts with every setting: pictures, latency and FLOPs, kept so that a run can be cut off."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache_dit.api import disable_cache, enable_cache
from cache_dit.bench.drawing import DEMO, Camera, Job, cached_account, load
from cache_dit.bench.manifest import Drawn, claim, keep, read_drawn
from cache_dit.caching.block_adapters.adapter import ParamsModifier
from cache_dit.demo.comparison import one_thread
from cache_dit.errors import ConfigError
from cache_dit.presets import Preset
from cache_dit.shorthand import parse_config

BASE = "base"


@dataclass(frozen=True, slots=True)
class Variant:
    """One setting of a benchmark.

    Attributes:
        name: What tables call it; its folder too, without quotes and spaces.
        preset: Cache and calibrator; None: no cache.
        modifiers: Changes for single block lists, see `enable_cache`.
    """

    name: str
    preset: Preset | None
    modifiers: tuple[ParamsModifier, ...] = ()

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return "".join(letter for letter in self.name if letter not in " '\"")

    @contextmanager
    def applied(self, pipe: Any) -> Iterator[None]:
        """The setting is on a pipeline."""
        if self.preset is not None:
            enable_cache(pipe, self.preset, params_modifiers=self.modifiers or None)
        try:
            yield
        finally:
            disable_cache(pipe)


UNCACHED = Variant(BASE, None)


def variants_of(configs: Sequence[str]) -> list[Variant]:
    """The uncached variant and those of some config strings, each once.

    Raises:
        ConfigError: A string is wrong, none is given, or two would have one folder.
    """
    if not configs:
        raise ConfigError("there is no config; give --config F8B0_W8M0MC3_T1O1_R0.12, or --set low.")
    made = [UNCACHED, *(Variant(text, parse_config(text)) for text in dict.fromkeys(configs))]
    check_folders(made)
    return made


def check_folders(variants: Sequence[Variant]) -> None:
    """Raise `ConfigError` where two variants would have one folder, or where a folder is no name."""
    seen: dict[str, str] = {}
    for variant in variants:
        if not variant.folder or set(variant.folder) & set("/\\\0") or len(variant.folder) > 200:
            raise ConfigError(f"{variant.name!r} cannot be the name of a folder; write it shorter.")
        if variant.folder in seen:
            raise ConfigError(
                f"{seen[variant.folder]!r} and {variant.name!r} are one setting; give one of them."
            )
        seen[variant.folder] = variant.name


def draw_all(
    job: Job,
    variants: Sequence[Variant],
    out: Path,
    told: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> dict[str, list[Drawn]]:
    """Draw every picture that is not there yet; times and FLOPs of those that are come from their manifest.

    Args:
        job: What is drawn.
        variants: With which settings, one after the other.
        out: Folder of the run; a folder in it for each variant.
        told: Called with a variant's name, the number of its pictures that are done and that of all.

    Returns:
        The lines of every variant by its name, in the order of the prompts.

    Raises:
        ConfigError: The folder holds another run, or a setting does not fit the model.
    """
    claim(out, job.identity())
    camera: Camera | None = None
    lines: dict[str, list[Drawn]] = {}
    with one_thread() if job.model == DEMO else nullcontext():
        for variant in variants:
            folder = out / variant.folder
            done = read_drawn(folder)
            missing = [number for number in range(len(job.prompts)) if number not in done]
            told(variant.name, len(job.prompts) - len(missing), len(job.prompts))
            if missing and camera is None:
                camera = load(job)
                for one in variants:  # what does not fit the model shows before the first picture
                    with one.applied(camera.pipe):
                        pass
                camera.warm_up()
            if missing and camera is not None:
                with (
                    variant.applied(camera.pipe),
                    camera.watching() if variant.preset is None else nullcontext(),
                ):
                    for number in missing:
                        _take(camera, variant, number, folder, done)
                        told(variant.name, len(done), len(job.prompts))
            lines[variant.name] = [done[number] for number in range(len(job.prompts))]
    return lines


def _take(camera: Camera, variant: Variant, number: int, folder: Path, done: dict[int, Drawn]) -> None:
    file, seconds = camera.picture(number)
    flops, steps, cached = (
        (camera.uncached_flops(), (), ()) if variant.preset is None else cached_account(camera.pipe)
    )
    drawn = Drawn(
        number=number,
        file=f"{number:04d}.png",
        sha256=hashlib.sha256(file).hexdigest(),
        prompt=camera.job.prompts[number],
        seed=camera.job.seed + number,
        seconds=seconds,
        flops=flops,
        steps=steps,
        cached=cached,
    )
    keep(folder, done, drawn, file)
