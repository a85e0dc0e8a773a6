"""The models that `cache-dit generate` knows by name: where they lie and how they are called by default."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cache_dit.errors import ConfigError, nearest


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """One model, or the models that are called like it.

    Attributes:
        name: What the command line and file names call it.
        model: Id on the Hugging Face hub; "" for the model that ships with this package.
        pipeline: Class in diffusers.
        height: Pixels.
        width: Pixels.
        steps: Denoising steps.
        cfg: Scale of guidance; None where the pipeline takes none.
        frames: Of a video. 1 (default): it makes pictures.
        fps: Frames a second of the saved video. Default 16.
        cfg_name: The argument of the pipeline that `cfg` is given as. Default "guidance_scale".
        frames_name: The same of the number of frames. Default "num_frames".
        negative: Whether a negative prompt does something. Default True.
        image: Whether an input picture is needed. Default False.
        multiple: Height and width are multiples of it, in pixels. Default 16.
        vae_float32: The VAE is to stay in float32, as its authors advise. Default False.
        beside: Components that the model leaves out: name, class in transformers, hub id. Default none.
        call: Further arguments of the pipeline.
    """

    name: str
    model: str
    pipeline: str
    height: int
    width: int
    steps: int
    cfg: float | None
    frames: int = 1
    fps: int = 16
    cfg_name: str = "guidance_scale"
    frames_name: str = "num_frames"
    negative: bool = True
    image: bool = False
    multiple: int = 16
    vae_float32: bool = False
    beside: tuple[tuple[str, str, str], ...] = ()
    call: Mapping[str, Any] = field(default_factory=dict)

    @property
    def video(self) -> bool:
        """Whether it makes videos."""
        return self.frames > 1


def _flux(name: str, model: str, steps: int, cfg: float, pipeline: str = "Flux", **more: Any) -> Family:
    """Guidance is distilled into these, so a negative prompt does nothing."""
    pipeline = f"{pipeline}Pipeline"
    model = f"black-forest-labs/{model}"
    return Family(name, model, pipeline, 1024, 1024, steps, cfg, negative=False, **more)


def _qwen(name: str, model: str, pipeline: str, steps: int = 50, **more: Any) -> Family:
    """Without a negative prompt, be it a blank, there is no guidance."""
    model, pipeline = f"Qwen/{model}", f"{pipeline}Pipeline"
    return Family(name, model, pipeline, 1024, 1024, steps, 4.0, cfg_name="true_cfg_scale", **more)


def _wan(
    name: str, model: str, size: tuple[int, int] = (480, 832), cfg: float = 5.0, steps: int = 50, **more: Any
) -> Family:
    defaults = {"pipeline": "WanPipeline", "frames": 81, "vae_float32": True}
    return Family(
        name, f"Wan-AI/{model}", height=size[0], width=size[1], steps=steps, cfg=cfg, **{**defaults, **more}
    )


_WAN_I2V: dict[str, Any] = {"pipeline": "WanImageToVideoPipeline", "image": True}
_LLAMA = "meta-llama/Meta-Llama-3.1-8B-Instruct"
_HUNYUAN = "hunyuanvideo-community"

DEMO = Family(
    "demo",
    "",
    "FluxPipeline",
    64,
    64,
    28,
    2.0,
    cfg_name="true_cfg_scale",
    # What it was trained with: nine words and an end mark.
    call={"max_sequence_length": 10},
)

FAMILIES: tuple[Family, ...] = (
    DEMO,
    _flux("flux", "FLUX.1-dev", 28, 3.5),
    _flux("flux_schnell", "FLUX.1-schnell", 4, 0.0, call={"max_sequence_length": 256}),
    _flux("flux_krea", "FLUX.1-Krea-dev", 28, 4.5),
    _flux("flux_kontext", "FLUX.1-Kontext-dev", 28, 2.5, "FluxKontext", image=True),
    _flux("flux2", "FLUX.2-dev", 50, 4.0, "Flux2"),
    _flux("flux2_klein", "FLUX.2-klein-4B", 4, 1.0, "Flux2Klein"),
    _flux("flux2_klein_base", "FLUX.2-klein-base-4B", 50, 4.0, "Flux2Klein"),
    _qwen("qwen_image", "Qwen-Image", "QwenImage"),
    _qwen("qwen_image_2.1", "Qwen-Image-2.1", "QwenImage21", 40),
    _qwen("qwen_image_edit", "Qwen-Image-Edit", "QwenImageEdit", image=True),
    _qwen("qwen_image_edit_plus", "Qwen-Image-Edit-2509", "QwenImageEditPlus", 40, image=True),
    _wan("wan", "Wan2.1-T2V-1.3B-Diffusers"),
    _wan("wan_14b", "Wan2.1-T2V-14B-Diffusers"),
    _wan("wan_i2v", "Wan2.1-I2V-14B-480P-Diffusers", **_WAN_I2V),
    _wan("wan_vace", "Wan2.1-VACE-1.3B-diffusers", pipeline="WanVACEPipeline"),
    _wan("wan2.2", "Wan2.2-T2V-A14B-Diffusers", (720, 1280), 4.0, 40, call={"guidance_scale_2": 3.0}),
    _wan("wan2.2_i2v", "Wan2.2-I2V-A14B-Diffusers", (480, 832), 3.5, 40, **_WAN_I2V),
    _wan("wan2.2_5b", "Wan2.2-TI2V-5B-Diffusers", (704, 1280), frames=121, fps=24, multiple=32),
    Family("z_image", "Tongyi-MAI/Z-Image-Turbo", "ZImagePipeline", 1024, 1024, 9, 0.0),
    Family(
        "hunyuan_image",
        f"{_HUNYUAN}/HunyuanImage-2.1-Diffusers",
        "HunyuanImagePipeline",
        2048,
        2048,
        50,
        None,
        multiple=32,
    ),
    Family(
        "hunyuan_video",
        f"{_HUNYUAN}/HunyuanVideo",
        "HunyuanVideoPipeline",
        720,
        1280,
        50,
        6.0,
        129,
        15,
        negative=False,
    ),
    Family(
        "hunyuan_video1.5",
        f"{_HUNYUAN}/HunyuanVideo-1.5-480p_t2v",
        "HunyuanVideo15Pipeline",
        480,
        832,
        50,
        None,
        121,
        24,
    ),
    Family(
        "hunyuan_dit", "Tencent-Hunyuan/HunyuanDiT-v1.2-Diffusers", "HunyuanDiTPipeline", 1024, 1024, 50, 5.0
    ),
    Family(
        "sd3",
        "stabilityai/stable-diffusion-3-medium-diffusers",
        "StableDiffusion3Pipeline",
        1024,
        1024,
        28,
        7.0,
    ),
    Family(
        "sd3.5", "stabilityai/stable-diffusion-3.5-large", "StableDiffusion3Pipeline", 1024, 1024, 28, 3.5
    ),
    Family("ltx", "Lightricks/LTX-Video", "LTXPipeline", 480, 704, 50, 3.0, 161, 25, multiple=32),
    Family("ltx2", "Lightricks/LTX-2", "LTX2Pipeline", 512, 768, 40, 4.0, 121, 24, multiple=32),
    Family("cogvideox", "THUDM/CogVideoX-5b", "CogVideoXPipeline", 480, 720, 50, 6.0, 49, 8),
    Family("cogvideox_2b", "THUDM/CogVideoX-2b", "CogVideoXPipeline", 480, 720, 50, 6.0, 49, 8),
    Family("cogview3", "THUDM/CogView3-Plus-3B", "CogView3PlusPipeline", 1024, 1024, 50, 5.0),
    Family("cogview4", "THUDM/CogView4-6B", "CogView4Pipeline", 1024, 1024, 50, 3.5),
    Family("pixart", "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", "PixArtSigmaPipeline", 1024, 1024, 20, 4.5),
    Family("pixart_alpha", "PixArt-alpha/PixArt-XL-2-1024-MS", "PixArtAlphaPipeline", 1024, 1024, 20, 4.5),
    Family(
        "sana",
        "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers",
        "SanaPipeline",
        1024,
        1024,
        20,
        4.5,
        multiple=32,
    ),
    Family("chroma", "lodestones/Chroma1-HD", "ChromaPipeline", 1024, 1024, 40, 3.0),
    Family(
        "hidream",
        "HiDream-ai/HiDream-I1-Full",
        "HiDreamImagePipeline",
        1024,
        1024,
        50,
        5.0,
        beside=(("tokenizer_4", "AutoTokenizer", _LLAMA), ("text_encoder_4", "LlamaForCausalLM", _LLAMA)),
    ),
    Family("ovis", "AIDC-AI/Ovis-Image-7B", "OvisImagePipeline", 1024, 1024, 50, 5.0),
    Family("longcat", "meituan-longcat/LongCat-Image", "LongCatImagePipeline", 1024, 1024, 50, 4.5),
    Family(
        "kandinsky5",
        "kandinskylab/Kandinsky-5.0-T2I-Lite-sft-Diffusers",
        "Kandinsky5T2IPipeline",
        1024,
        1024,
        50,
        3.5,
    ),
    Family(
        "kandinsky5_video",
        "kandinskylab/Kandinsky-5.0-T2V-Lite-sft-5s-Diffusers",
        "Kandinsky5T2VPipeline",
        512,
        768,
        50,
        5.0,
        121,
        24,
    ),
    Family("mochi", "genmo/mochi-1-preview", "MochiPipeline", 480, 848, 64, 4.5, 85, 30),
    Family("allegro", "rhymes-ai/Allegro", "AllegroPipeline", 720, 1280, 100, 7.5, 88, 15, vae_float32=True),
    Family("lumina2", "Alpha-VLLM/Lumina-Image-2.0", "Lumina2Pipeline", 1024, 1024, 50, 4.0),
    Family("aura_flow", "fal/AuraFlow", "AuraFlowPipeline", 1024, 1024, 50, 3.5),
    Family(
        "skyreels_v2",
        "Skywork/SkyReels-V2-T2V-14B-540P-Diffusers",
        "SkyReelsV2Pipeline",
        544,
        960,
        50,
        6.0,
        97,
        24,
        vae_float32=True,
    ),
    Family(
        "glm_image", "zai-org/GLM-Image", "GlmImagePipeline", 1024, 1024, 50, 1.5, negative=False, multiple=32
    ),
    Family("bria", "briaai/BRIA-3.2", "BriaPipeline", 1024, 1024, 30, 5.0),
    Family("bria_fibo2", "briaai/Fibo-2.0-dev", "BriaFibo2Pipeline", 1024, 1024, 30, 5.0),
    Family("prx", "Photoroom/prx-512-t2i-sft", "PRXPipeline", 512, 512, 28, 5.0),
    Family("nucleus", "NucleusAI/NucleusMoE-Image", "NucleusMoEImagePipeline", 1024, 1024, 50, 4.0),
    Family("omnigen", "Shitao/OmniGen-v1-diffusers", "OmniGenPipeline", 1024, 1024, 50, 2.5, negative=False),
    Family("ideogram4", "ideogram-ai/ideogram-v4", "Ideogram4Pipeline", 2048, 2048, 48, None, negative=False),
    Family("lumina", "Alpha-VLLM/Lumina-Next-SFT-diffusers", "LuminaPipeline", 1024, 1024, 30, 4.0),
    Family(
        "cosmos2_image",
        "nvidia/Cosmos-Predict2-2B-Text2Image",
        "Cosmos2TextToImagePipeline",
        768,
        1360,
        35,
        7.0,
    ),
    Family(
        "cosmos",
        "nvidia/Cosmos-1.0-Diffusion-7B-Text2World",
        "CosmosTextToWorldPipeline",
        704,
        1280,
        36,
        7.0,
        121,
        30,
    ),
    Family(
        "sana_video",
        "Efficient-Large-Model/SANA-Video_2B_480p_diffusers",
        "SanaVideoPipeline",
        480,
        832,
        50,
        6.0,
        81,
        frames_name="frames",
        multiple=32,
        vae_float32=True,
    ),
    Family(
        "motif_video",
        "Motif-Technologies/Motif-Video-2B",
        "MotifVideoPipeline",
        736,
        1280,
        50,
        None,
        121,
        24,
    ),
    Family(
        "helios",
        "BestWishYsh/Helios-Base",
        "HeliosPipeline",
        384,
        640,
        50,
        5.0,
        132,
        24,
        vae_float32=True,
    ),
    Family("anyflow", "nvidia/AnyFlow-Wan2.1-T2V-14B-Diffusers", "AnyFlowPipeline", 480, 832, 4, 1.0, 33, 16),
    Family(
        "latte", "maxin-cn/Latte-1", "LattePipeline", 512, 512, 50, 7.5, 16, 8, frames_name="video_length"
    ),
)
"""Every family; a new one is a row."""


def family_of(name: str) -> Family:
    """Look a family up; capitals, dashes, underscores and dots do not matter.

    Args:
        name: As in `FAMILIES`.

    Returns:
        The family.

    Raises:
        ConfigError: There is none of this name.
    """
    known = {_plain(family.name): family for family in FAMILIES}
    found = known.get(_plain(name))
    if found is None:
        names = [family.name for family in FAMILIES]
        hint = nearest(name, names)
        meant = f"Did you mean {hint!r}?" if hint else f"Known are {', '.join(names)}."
        raise ConfigError(f"there is no model family {name!r}. {meant}")
    return found


def _plain(name: str) -> str:
    return re.sub(r"[-_. ]", "", name.lower())
