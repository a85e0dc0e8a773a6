"""Metrics of pictures and the prompts they were drawn from."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, Unpack

import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor

from cache_dit.errors import ConfigError
from cache_dit.metrics.measured import Measured
from cache_dit.metrics.options import NotGivenError, Options, Run
from cache_dit.metrics.pictures import PathLike, Prompted, existing, load, prompted

CLIP_FOLDER = "CLIP_MODEL_DIR"
# Prompt and picture -> how well they fit.
Reward: TypeAlias = Callable[[str, Image], float]


def compute_clip_score(
    prompts: PathLike | Sequence[str],
    pictures: PathLike,
    model: PathLike | None = None,
    **options: Unpack[Options],
) -> Measured:
    """CLIP score: 100 max(cos, 0) of the features of prompt and picture.

    J. Hessel, A. Holtzman, M. Forbes, R. Le Bras and Y. Choi, CLIPScore, EMNLP 2021, arXiv 2104.08718, eq. 1,
    with the factor 100 that diffusion benchmarks use instead of the paper's 2.5. Prompts longer than
    the model can read are cut off.

    Args:
        prompts: Text file in UTF-8 with a prompt on each line (empty lines do not count), or the prompts.
        pictures: Folder of pictures with numbers in their names, from 0 or from 1 without a gap: the first
            belongs to the first prompt. For one prompt also a picture.
        model: Folder of a CLIP model in the form of transformers, with its processor; nothing is downloaded.
            Default None: the folder that CLIP_MODEL_DIR names.
        options: See `Options`. The values of `per_item` are in the order of the prompts.

    Returns:
        Mean over the pictures, from 0 to 100, and their number.

    Raises:
        ConfigError: There is no model, a path is missing, a file is no picture, or pictures and prompts do
            not fit together.
        ConfigTypeError: An option is unknown.
    """
    run = Run.of(options)
    items = prompted(prompts, pictures)
    clip, processor = _clip(model, run.device)
    longest = clip.config.text_config.max_position_embeddings
    scores: dict[str, float] = {}
    with torch.inference_mode():
        for batch in run.track(_batches(items, run.batch_size), len(items), "clip_score"):
            inputs = processor(
                text=[item.prompt for item in batch],
                images=[load(item.path) for item in batch],
                return_tensors="pt",
                padding=True,
                truncation=True,
                max_length=longest,
            ).to(run.device)
            seen = _features(clip.get_image_features(pixel_values=inputs["pixel_values"]))
            read = _features(
                clip.get_text_features(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
            )
            cosines = F.cosine_similarity(seen.double(), read.double()).clamp(min=0).tolist()
            scores.update({item.path.name: 100 * cos for item, cos in zip(batch, cosines, strict=True)})
    return run.done("clip_score", scores)


def compute_image_reward(
    prompts: PathLike | Sequence[str],
    pictures: PathLike,
    score: Reward | None = None,
    **options: Unpack[Options],
) -> Measured:
    """Mean of a score of prompt and picture that you hand in, such as ImageReward, HPS or PickScore.

    ImageReward: J. Xu et al., NeurIPS 2023, arXiv 2304.05977. Its package is not needed by this one: with it,
    give `score=ImageReward.load("ImageReward-v1.0").score`.

    Args:
        prompts: Text file in UTF-8 with a prompt on each line (empty lines do not count), or the prompts.
        pictures: Folder of pictures with numbers in their names, from 0 or from 1 without a gap: the first
            belongs to the first prompt. For one prompt also a picture.
        score: Function of a prompt and a picture (`PIL.Image.Image`, RGB) that gives a number. Required.
        options: See `Options`. The values of `per_item` are in the order of the prompts; `device` and
            `batch_size` are matters of `score`.

    Returns:
        Mean over the pictures, and their number.

    Raises:
        ConfigError: There is no score, a path is missing, a file is no picture, or pictures and prompts do
            not fit together.
        ConfigTypeError: An option is unknown.
    """
    if score is None:
        raise NotGivenError(
            "score of compute_image_reward is not given; give a function of a prompt and a picture, such as "
            "ImageReward.load(PATH).score."
        )
    run = Run.of(options)
    items = prompted(prompts, pictures)
    batches = run.track(_batches(items, 1), len(items), "image_reward")
    return run.done(
        "image_reward",
        {item.path.name: float(score(item.prompt, load(item.path))) for (item,) in batches},
    )


def named_score(name: str) -> Reward:
    """Import the function that `module:function` names, as command lines give it.

    Args:
        name: Such as `my_package.scores:reward`. Importing the module runs its code.

    Returns:
        The function: a prompt and a picture to a number.

    Raises:
        ConfigError: There is no such module, or it has no such function.
    """
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{name!r} cannot be imported: {error}; give MODULE:FUNCTION.") from error
    if not callable(function):
        raise ConfigError(f"{name!r} is no function; give MODULE:FUNCTION.")
    return function


def _batches(items: list[Prompted], most: int) -> list[list[Prompted]]:
    return [items[start : start + most] for start in range(0, len(items), most)]


def _clip(model: PathLike | None, device: torch.device) -> tuple[Any, Any]:
    place = model if model is not None else os.environ.get(CLIP_FOLDER)
    if place is None:
        raise NotGivenError(
            "model of the CLIP score is not given; give model=FOLDER with a CLIP model in the form of "
            f"transformers, or set {CLIP_FOLDER}."
        )
    from transformers import CLIPModel, CLIPProcessor

    folder = existing(place)
    try:
        clip = CLIPModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
        processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        fact = str(error).splitlines()[0]
        raise ConfigError(f"{folder} holds no CLIP model with its processor: {fact}") from error
    return clip.eval().to(device), processor


def _features(output: Any) -> Tensor:
    """The features; transformers 5 wraps them into an output object."""
    return output if isinstance(output, Tensor) else output.pooler_output
