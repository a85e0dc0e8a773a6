"""Which pictures are compared: one set to tune on, another to report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from cache_dit.demo.model import SIZE, TOKENS

# Drawn at random, disjoint from each other and from the prompts of the demo.
_TRAINING_PROMPTS = (
    "a red tree on sand at day",
    "a yellow mushroom on grass at night with mountains",
    "a red house on sand at day with mountains",
    "a red house on grass at sunset with mountains",
    "a blue balloon on grass at day with mountains",
    "a blue balloon on snow at night",
    "a green tree on snow at sunset",
    "a red mushroom on sand at day",
    "a pink tree on snow at sunset",
    "a green balloon on grass at night with mountains",
    "a purple house on snow at night with mountains",
    "a pink mushroom on sand at sunset",
)
_REPORT_PROMPTS = (
    "a purple balloon on sand at sunset",
    "a yellow mushroom on snow at sunset",
    "a red house on grass at sunset",
    "a green mushroom on snow at day",
    "a green house on sand at day with mountains",
    "a blue mushroom on snow at day with mountains",
    "a pink house on grass at night with mountains",
    "a purple balloon on sand at night",
    "a purple tree on sand at day",
    "a yellow house on grass at night with mountains",
    "a pink balloon on grass at sunset with mountains",
    "a purple house on snow at night",
    "a yellow mushroom on snow at sunset with mountains",
    "a blue mushroom on grass at day with mountains",
    "a green tree on sand at day with mountains",
    "a yellow tree on grass at sunset with mountains",
    "a green house on snow at sunset",
    "a blue tree on grass at day",
    "a pink balloon on sand at night with mountains",
    "a pink tree on snow at night with mountains",
    "a yellow mushroom on sand at day",
    "a green tree on sand at night with mountains",
    "a green balloon on snow at day",
    "a yellow balloon on grass at night",
)


@dataclass(frozen=True, slots=True)
class Picture:
    """A prompt and the seed of its initial noise."""

    prompt: str
    seed: int


class Purpose(Enum):
    """What a set of pictures is for; the value is how result files name it."""

    TRAINING = "training"
    REPORT = "report"

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All pictures of the set. No seed occurs twice, in either set."""
        if self is Purpose.TRAINING:
            return tuple(Picture(prompt, 500 + number) for number, prompt in enumerate(_TRAINING_PROMPTS))
        return tuple(
            Picture(prompt, 1000 + 2 * number + second)
            for number, prompt in enumerate(_REPORT_PROMPTS)
            for second in range(2)
        )


@dataclass(frozen=True, slots=True)
class Cell:
    """Conditions that are never mixed: denoising steps, and scale of classifier-free guidance (1: none)."""

    steps: int
    cfg: float


def draw(pipe: Any, pictures: Sequence[Picture], cell: Cell) -> Tensor:
    """Draw pictures in one batch, each from its own seed.

    Args:
        pipe: The result of `cache_dit.demo.load_pipeline`, with or without a cache on it.
        pictures: One or more.
        cell: Steps and guidance.

    Returns:
        float32 [n, 3, 64, 64] on the CPU, values from 0 to 1.
    """
    images: Tensor = pipe(
        [picture.prompt for picture in pictures],
        negative_prompt=[""] * len(pictures),
        true_cfg_scale=cell.cfg,
        height=SIZE,
        width=SIZE,
        max_sequence_length=TOKENS,
        num_inference_steps=cell.steps,
        generator=[torch.Generator("cpu").manual_seed(picture.seed) for picture in pictures],
        output_type="pt",
    ).images
    return images.float().cpu()
