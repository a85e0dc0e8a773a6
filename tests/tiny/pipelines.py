"""Tiny diffusers pipelines which denoise from prompt embeddings to latents without any download.

Text encoders and tokenizers are left out, and so are autoencoders where the pipeline does not insist on
one: it then assumes the compression of the usual autoencoder, which the sizes below are chosen to match.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from .base import Draw, Inputs, TinyModel
from .image_models import CHROMA, DIT, FLUX, PIXART, QWEN_IMAGE, SD3
from .models import tiny_model
from .video_models import COGVIDEOX, HUNYUAN_VIDEO, LTX, WAN, WAN_SECOND

Call = Callable[[DiffusionPipeline, int, int], Tensor]
Arguments = Callable[[Draw], Inputs]

_TEXT, _TEXT_DIM, _POOLED = 5, 24, 20


@dataclass(frozen=True, eq=False)
class TinyPipeline:
    """One tiny pipeline: how to build it, how to run it, and how it calls its transformers."""

    name: str
    """Class name in diffusers."""
    build: Callable[[], DiffusionPipeline]
    call: Call
    """(pipeline, seed, steps) -> final latents (DiT: pixels); the seed draws noise and prompt alike."""
    calls_per_step: int
    """Forwards per step of the transformer that is on duty in this step."""
    branch_names: tuple[str | None, ...]
    """The name given to `cache_context`, forward by forward of one step; None where nothing is named."""
    label: str = ""
    """Tells several set-ups of one class apart."""
    transformers: tuple[str, ...] = ("transformer",)
    """Attribute names of the transformers, in order of duty."""

    @property
    def id(self) -> str:
        return f"{self.name}-{self.label}" if self.label else self.name


def _build(
    class_name: str, parts: dict[str, Callable[[], Any]], absent: tuple[str, ...]
) -> DiffusionPipeline:
    components = {name: part() for name, part in parts.items()}
    pipe = getattr(diffusers, class_name)(**components, **dict.fromkeys(absent))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _builder(
    class_name: str, model: TinyModel, *, absent: str, **parts: Callable[[], Any]
) -> Callable[[], DiffusionPipeline]:
    return functools.partial(_build, class_name, {"transformer": model.build, **parts}, tuple(absent.split()))


def _call(arguments: Arguments, scheduled_per_step: int = 1) -> Call:
    def call(pipe: DiffusionPipeline, seed: int, steps: int) -> Tensor:
        options: Inputs = {"output_type": "latent", "return_dict": False} | arguments(Draw(seed))
        generator = torch.Generator().manual_seed(seed)
        result = pipe(num_inference_steps=steps * scheduled_per_step, generator=generator, **options)[0]
        # DiT of diffusers 0.35 gives an array.
        return torch.as_tensor(result)

    return call


def _prompt(draw: Draw, *, pooled: bool = False, mask: bool = False, negative: bool = False) -> Inputs:
    prompt: Inputs = {"prompt_embeds": draw(1, _TEXT, _TEXT_DIM)}
    if pooled:
        prompt["pooled_prompt_embeds"] = draw(1, _POOLED)
    if mask:
        prompt["prompt_attention_mask"] = torch.ones(1, _TEXT)
    if negative:
        opposite = _prompt(draw, pooled=pooled, mask=mask)
        prompt |= {f"negative_{name}": value for name, value in opposite.items()}
    return prompt


def _flow_matching() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler()


def _unipc() -> Any:
    return diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )


def _ddim(scheduler: Callable[..., Any] = diffusers.DDIMScheduler) -> Any:
    # Predicted noise is divided by next to nothing at first, and clipped samples hide differences.
    return scheduler(prediction_type="v_prediction", clip_sample=False)


def _cogvideox_ddim() -> Any:
    return _ddim(diffusers.CogVideoXDDIMScheduler)


def _autoencoder() -> Any:
    """Without compression: as many pixels as latents."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        autoencoder = diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",),
            up_block_types=("UpDecoderBlock2D",),
            block_out_channels=(8,),
            norm_num_groups=4,
            latent_channels=4,
        )
    return autoencoder.eval()


_TEXT_ENCODERS = "text_encoder tokenizer text_encoder_2 tokenizer_2"
_TWO_ENCODERS = f"vae {_TEXT_ENCODERS}"
_ONE_ENCODER = "vae text_encoder tokenizer"
_SIZE: Inputs = {"height": 64, "width": 64}

# --- branches named by the pipeline ---

_build_flux = _builder("FluxPipeline", FLUX, absent=_TWO_ENCODERS, scheduler=_flow_matching)

FLUX_PIPELINE = TinyPipeline(
    name="FluxPipeline",
    build=_build_flux,
    call=_call(lambda draw: _SIZE | _prompt(draw, pooled=True)),
    calls_per_step=1,
    branch_names=("cond",),
)
FLUX_TRUE_CFG = TinyPipeline(
    name="FluxPipeline",
    build=_build_flux,
    call=_call(lambda draw: _SIZE | _prompt(draw, pooled=True, negative=True) | {"true_cfg_scale": 3.0}),
    calls_per_step=2,
    branch_names=("cond", "uncond"),
    label="true_cfg",
)


def _qwen_arguments(draw: Draw) -> Inputs:
    prompt = _prompt(draw, negative=True)
    mask = torch.ones(1, _TEXT, dtype=torch.long)
    masks = dict.fromkeys(("prompt_embeds_mask", "negative_prompt_embeds_mask"), mask)
    return _SIZE | prompt | masks | {"true_cfg_scale": 4.0}


QWEN_IMAGE_PIPELINE = TinyPipeline(
    name="QwenImagePipeline",
    build=_builder("QwenImagePipeline", QWEN_IMAGE, absent=_ONE_ENCODER, scheduler=_flow_matching),
    call=_call(_qwen_arguments),
    calls_per_step=2,
    branch_names=("cond", "uncond"),
)


def _wan_arguments(draw: Draw) -> Inputs:
    return _SIZE | {"num_frames": 5, "guidance_scale": 4.0} | _prompt(draw, negative=True)


WAN_PIPELINE = TinyPipeline(
    name="WanPipeline",
    build=_builder("WanPipeline", WAN, absent=_ONE_ENCODER, scheduler=_unipc),
    call=_call(_wan_arguments),
    calls_per_step=2,
    branch_names=("cond", "uncond"),
)
WAN_TWO_TRANSFORMERS = TinyPipeline(
    name="WanPipeline",
    build=_builder(
        "WanPipeline",
        WAN,
        absent=_ONE_ENCODER,
        scheduler=_flow_matching,
        transformer_2=WAN_SECOND.build,
        boundary_ratio=lambda: 0.6,
    ),
    call=_call(lambda draw: _wan_arguments(draw) | {"guidance_scale_2": 3.0}),
    calls_per_step=2,
    branch_names=("cond", "uncond"),
    label="two_transformers",
    transformers=("transformer", "transformer_2"),
)
WAN_TIMESTEP_PER_TOKEN = TinyPipeline(
    name="WanPipeline",
    build=_builder("WanPipeline", WAN, absent=_ONE_ENCODER, scheduler=_unipc, expand_timesteps=lambda: True),
    call=_call(_wan_arguments),
    calls_per_step=2,
    branch_names=("cond", "uncond"),
    label="expand_timesteps",
)

HUNYUAN_VIDEO_PIPELINE = TinyPipeline(
    name="HunyuanVideoPipeline",
    build=_builder("HunyuanVideoPipeline", HUNYUAN_VIDEO, absent=_TWO_ENCODERS, scheduler=_flow_matching),
    call=_call(lambda draw: _SIZE | {"num_frames": 5} | _prompt(draw, pooled=True, mask=True)),
    calls_per_step=1,
    branch_names=("cond",),
)
HUNYUAN_VIDEO_TRUE_CFG = TinyPipeline(
    name="HunyuanVideoPipeline",
    build=HUNYUAN_VIDEO_PIPELINE.build,
    call=_call(
        lambda draw: (
            _SIZE
            | {"num_frames": 5, "true_cfg_scale": 3.0}
            | _prompt(draw, pooled=True, mask=True, negative=True)
        )
    ),
    calls_per_step=2,
    branch_names=("cond", "uncond"),
    label="true_cfg",
)

# --- both branches in one batch, named as one ---

COGVIDEOX_PIPELINE = TinyPipeline(
    name="CogVideoXPipeline",
    build=_builder("CogVideoXPipeline", COGVIDEOX, absent=_ONE_ENCODER, scheduler=_cogvideox_ddim),
    call=_call(lambda draw: _SIZE | {"num_frames": 5, "guidance_scale": 3.0} | _prompt(draw, negative=True)),
    calls_per_step=1,
    branch_names=("cond_uncond",),
)
LTX_PIPELINE = TinyPipeline(
    name="LTXPipeline",
    build=_builder("LTXPipeline", LTX, absent=_ONE_ENCODER, scheduler=_flow_matching),
    call=_call(
        lambda draw: {"height": 128, "width": 128, "num_frames": 9} | _prompt(draw, mask=True, negative=True)
    ),
    calls_per_step=1,
    branch_names=("cond_uncond",),
)

# --- nothing named ---

CHROMA_PIPELINE = TinyPipeline(
    name="ChromaPipeline",
    build=_builder("ChromaPipeline", CHROMA, absent=_ONE_ENCODER, scheduler=_flow_matching),
    call=_call(lambda draw: _SIZE | _prompt(draw, mask=True, negative=True)),
    calls_per_step=2,
    branch_names=(None, None),
)

FLUX_IMAGE_TO_IMAGE = TinyPipeline(
    name="FluxImg2ImgPipeline",
    build=_builder(
        "FluxImg2ImgPipeline", FLUX, absent=_TEXT_ENCODERS, scheduler=_flow_matching, vae=_autoencoder
    ),
    call=_call(
        lambda draw: (
            {"height": 8, "width": 8, "image": draw(1, 4, 8, 8), "strength": 0.5, "true_cfg_scale": 3.0}
            | _prompt(draw, pooled=True, negative=True)
        ),
        # Half of the scheduled steps are left out at strength 0.5.
        scheduled_per_step=2,
    ),
    calls_per_step=2,
    branch_names=(None, None),
)

_SD3_ENCODERS = f"{_TWO_ENCODERS} text_encoder_3 tokenizer_3"


def _sd3_arguments(draw: Draw) -> Inputs:
    return _SIZE | {"guidance_scale": 3.0} | _prompt(draw, pooled=True, negative=True)


SD3_PIPELINE = TinyPipeline(
    name="StableDiffusion3Pipeline",
    build=_builder("StableDiffusion3Pipeline", SD3, absent=_SD3_ENCODERS, scheduler=_flow_matching),
    call=_call(_sd3_arguments),
    calls_per_step=1,
    branch_names=(None,),
)
SD3_SKIP_LAYER_GUIDANCE = TinyPipeline(
    name="StableDiffusion3Pipeline",
    build=SD3_PIPELINE.build,
    call=_call(
        lambda draw: _sd3_arguments(draw) | {"skip_guidance_layers": [2, 3], "skip_layer_guidance_stop": 0.6}
    ),
    calls_per_step=1,
    branch_names=(None,),
    label="skip_layer_guidance",
)
"""Not in `TINY_PIPELINES`: some steps have a second call, of half the batch and with blocks left out."""

DIT_PIPELINE = TinyPipeline(
    name="DiTPipeline",
    build=_builder("DiTPipeline", DIT, absent="", scheduler=_ddim, vae=_autoencoder),
    call=_call(lambda draw: {"class_labels": [int(draw.time * 100)], "output_type": "pt"}),
    calls_per_step=1,
    branch_names=(None,),
)
PIXART_PIPELINE = TinyPipeline(
    name="PixArtSigmaPipeline",
    build=_builder("PixArtSigmaPipeline", PIXART, absent=_ONE_ENCODER, scheduler=_ddim),
    call=_call(
        lambda draw: (
            _SIZE
            | {"negative_prompt": None, "use_resolution_binning": False}
            | _prompt(draw, mask=True, negative=True)
        )
    ),
    calls_per_step=1,
    branch_names=(None,),
)


def _masked(draw: Draw) -> Inputs:
    prompt = _prompt(draw, mask=True, negative=True)
    return _SIZE | {name: value.long() if name.endswith("mask") else value for name, value in prompt.items()}


def _one_encoder(family: str, arguments: Arguments, *branch_names: str | None) -> TinyPipeline:
    """A pipeline with one text encoder and flow matching, named like its transformer."""
    model = tiny_model(f"{family}Transformer2DModel")
    return TinyPipeline(
        name=f"{family}Pipeline",
        build=_builder(f"{family}Pipeline", model, absent=_ONE_ENCODER, scheduler=_flow_matching),
        call=_call(arguments),
        calls_per_step=len(branch_names),
        branch_names=branch_names,
    )


_SANA: Inputs = {
    "height": 256,
    "width": 256,
    "use_resolution_binning": False,
    "negative_prompt": None,
    "complex_human_instruction": None,
}
SANA_PIPELINE = _one_encoder("Sana", lambda draw: _masked(draw) | _SANA, None)
Z_IMAGE_PIPELINE = _one_encoder(
    "ZImage",
    lambda draw: _SIZE | {name: list(value) for name, value in _prompt(draw, negative=True).items()},
    None,
)
LUMINA2_PIPELINE = _one_encoder("Lumina2", _masked, None, None)
AURA_FLOW_PIPELINE = _one_encoder("AuraFlow", lambda draw: _masked(draw) | {"height": 48, "width": 48}, None)
COGVIEW4_PIPELINE = _one_encoder(
    "CogView4", lambda draw: _SIZE | _prompt(draw, negative=True), "cond", "uncond"
)

TINY_PIPELINES: tuple[TinyPipeline, ...] = (
    FLUX_PIPELINE,
    FLUX_TRUE_CFG,
    FLUX_IMAGE_TO_IMAGE,
    QWEN_IMAGE_PIPELINE,
    WAN_PIPELINE,
    WAN_TWO_TRANSFORMERS,
    WAN_TIMESTEP_PER_TOKEN,
    SD3_PIPELINE,
    DIT_PIPELINE,
    PIXART_PIPELINE,
    HUNYUAN_VIDEO_PIPELINE,
    HUNYUAN_VIDEO_TRUE_CFG,
    COGVIDEOX_PIPELINE,
    LTX_PIPELINE,
    CHROMA_PIPELINE,
    SANA_PIPELINE,
    Z_IMAGE_PIPELINE,
    LUMINA2_PIPELINE,
    AURA_FLOW_PIPELINE,
    COGVIEW4_PIPELINE,
)


def tiny_pipeline(pipeline_id: str) -> TinyPipeline:
    """Look up by `TinyPipeline.id`: the class name, with "-label" for further set-ups of the class."""
    return next(pipeline for pipeline in TINY_PIPELINES if pipeline.id == pipeline_id)
