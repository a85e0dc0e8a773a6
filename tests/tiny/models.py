"""All tiny models."""

from __future__ import annotations

from . import (
    audio_models,
    control_models,
    image_models_1,
    image_models_2,
    image_models_3,
    video_models_1,
    video_models_2,
)
from .base import Draw, Inputs, InputsOf, TinyModel, output_of
from .image_models import CHROMA, DIT, FLUX, PIXART, QWEN_IMAGE, SD3, SD35
from .video_models import (
    COGVIDEOX,
    HUNYUAN_VIDEO,
    HUNYUAN_VIDEO_TOKEN_REPLACE,
    LTX,
    WAN,
    WAN_IMAGE,
    WAN_SECOND,
)

__all__ = ["TINY_MODELS", "Draw", "Inputs", "InputsOf", "TinyModel", "output_of", "tiny_model"]

TINY_MODELS: tuple[TinyModel, ...] = (
    FLUX,
    QWEN_IMAGE,
    WAN,
    WAN_SECOND,
    WAN_IMAGE,
    SD3,
    SD35,
    DIT,
    PIXART,
    HUNYUAN_VIDEO,
    HUNYUAN_VIDEO_TOKEN_REPLACE,
    COGVIDEOX,
    LTX,
    CHROMA,
    *image_models_1.MODELS,
    *image_models_2.MODELS,
    *image_models_3.MODELS,
    *video_models_1.MODELS,
    *video_models_2.MODELS,
    *audio_models.MODELS,
    *control_models.MODELS,
)


def tiny_model(model_id: str) -> TinyModel:
    """Look up by `TinyModel.id`: the class name, with "-label" for further configurations of the class."""
    return next(model for model in TINY_MODELS if model.id == model_id)
