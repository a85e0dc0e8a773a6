"""The metrics that a benchmark may show: what they need, and how a table names and sorts them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

from cache_dit.errors import ConfigError
from cache_dit.metrics import (
    compute_clip_score,
    compute_image_reward,
    compute_lpips,
    compute_psnr,
    compute_ssim,
    named_score,
)


class Quality(Enum):
    """A metric; the value is its name on the command line."""

    PSNR = "psnr"
    SSIM = "ssim"
    LPIPS = "lpips"
    CLIP_SCORE = "clip_score"
    IMAGE_REWARD = "image_reward"

    @property
    def title(self) -> str:
        """Heading of its section."""
        return {"clip_score": "CLIP Score", "image_reward": "Image Reward"}.get(self.value, self.column)

    @property
    def column(self) -> str:
        """Heading of its column."""
        return self.name

    @property
    def rising(self) -> bool:
        """Whether more is better."""
        return self is not Quality.LPIPS

    @property
    def of_prompts(self) -> bool:
        """Whether pictures are compared with their prompts, and not with the uncached pictures."""
        return self in (Quality.CLIP_SCORE, Quality.IMAGE_REWARD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """What some metrics need.

    Attributes:
        lpips: Folder or file with the weights of LPIPS; None: the folder that LPIPS_MODEL_DIR names.
        clip: Folder of a CLIP model; None: the folder that CLIP_MODEL_DIR names.
        reward: `module:function` of a function of a prompt and a picture, such as ImageReward's `score`.
    """

    lpips: Path | None = None
    clip: Path | None = None
    reward: str | None = None


def measure(
    quality: Quality, weights: Weights, prompts: Sequence[str], base: Path, folder: Path
) -> float | None:
    """One metric of a folder of pictures; None for the uncached ones where they are what is compared with.

    Raises:
        ConfigError: Weights or pictures are missing.
    """
    computed: Callable[..., Any]
    if quality.of_prompts:
        computed = (
            partial(compute_clip_score, model=weights.clip)
            if quality is Quality.CLIP_SCORE
            else partial(compute_image_reward, score=_reward(weights.reward))
        )
        return computed(prompts, folder, progress=False).value
    if folder == base:
        return None
    of_pairs: dict[Quality, Callable[..., Any]] = {
        Quality.PSNR: compute_psnr,
        Quality.SSIM: compute_ssim,
        Quality.LPIPS: partial(compute_lpips, weights=weights.lpips),
    }
    return of_pairs[quality](base, folder, progress=False).value


def check(qualities: Sequence[Quality], weights: Weights) -> None:
    """Raise `ConfigError` where what a metric needs is not there, before anything is drawn."""
    needed = {
        Quality.LPIPS: (weights.lpips, "LPIPS_MODEL_DIR"),
        Quality.CLIP_SCORE: (weights.clip, "CLIP_MODEL_DIR"),
    }
    for quality in qualities:
        if quality is Quality.IMAGE_REWARD:
            _reward(weights.reward)
        elif quality in needed:
            given, variable = needed[quality]
            path = given or os.environ.get(variable)
            if path is None or not Path(path).exists():
                raise ConfigError(
                    f"the weights of {quality.value} are {str(path)!r}, which is not there; give their "
                    f"folder, or set {variable}."
                )


def _reward(name: str | None) -> Callable[..., Any]:
    if name is None:
        raise ConfigError(
            "image_reward needs --reward module:function, a function of a prompt and a picture."
        )
    return named_score(name)
