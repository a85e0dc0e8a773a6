"""All rows. To add a model, add its row to the others of its kind and a tiny model to the tests."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from cache_dit.caching.forward_pattern import ENCODER as E
from cache_dit.caching.forward_pattern import HIDDEN as H
from cache_dit.caching.models.row import Row, returns, returns_one, row

# What many models have; E is short for encoder hidden states and H for hidden states, as in `ForwardPattern`.
_BLOCKS = returns_one("blocks")
_LAYERS = returns_one("layers")
_ONE = returns_one("transformer_blocks")
_EH = returns("transformer_blocks", E, H)
_HE = returns("transformer_blocks", H, E)
_SINGLE_ONE = returns_one("single_transformer_blocks")
_SINGLE_EH = returns("single_transformer_blocks", E, H)
_SINGLE_HE = returns("single_transformer_blocks", H, E)
_RESIDUALS = "controlnet_block_samples"
_CONTROLS = "controlnet_block_samples controlnet_single_block_samples"

# The streams keep one layout over both lists.
_joined = partial(row, joined=True)
# ControlNets hand the output of every one of their blocks to the transformer that they control, so it is
# forecast for every block; zero convolutions and scales behind the blocks are computed freshly.
_controlnet = partial(row, on_request=True)
_each = partial(replace, each_counts=True)


ROWS: tuple[Row, ...] = (
    # --- Image ---
    row("AuraFlowTransformer2DModel", returns("joint_transformer_blocks", E, H), _SINGLE_ONE),
    row("BriaFibo2Transformer2DModel", returns_one("layers", "x")),
    row("BriaFiboTransformer2DModel", _EH, _SINGLE_ONE, pipelines="BriaFiboPipeline BriaFiboEdit"),
    _joined("BriaTransformer2DModel", _EH, _SINGLE_EH, pipelines="BriaPipeline", controls=_CONTROLS),
    row("ChromaTransformer2DModel", _EH, _SINGLE_ONE, controls=_CONTROLS),
    row("CogView3PlusTransformer2DModel", _HE),
    row("CogView4Transformer2DModel", _HE),
    row("DiTTransformer2DModel", _ONE),
    row("DreamLiteTransformer2DModel", _ONE, pipelines=""),
    row("ErnieImageTransformer2DModel", returns_one("layers", "x")),
    # No bypass: the call that fills the KV cache is the first step of its run, and those are computed.
    row("Flux2Transformer2DModel", _EH, _SINGLE_ONE),
    # The text and the reference images have blocks of their own, but those read no noise: they would
    # say at every step that nothing has changed.
    row("Flux3Transformer2DModel", returns_one("mode_blocks.image"), _SINGLE_EH),
    _joined("FluxTransformer2DModel", _EH, _SINGLE_EH, pipelines="Flux VisualCloze", controls=_CONTROLS),
    row(
        "GlmImageTransformer2DModel",
        _HE,
        bypass=lambda given: given.get("kv_caches") is not None and given["kv_caches"][0].mode == "write",
    ),
    row(
        "HiDreamImageTransformer2DModel",
        returns("double_stream_blocks", H, E),
        returns_one("single_stream_blocks"),
        timestep="timesteps",
    ),
    row("HunyuanDiT2DModel", _BLOCKS, pipelines="HunyuanDiT", last_within_first=True, controls=_RESIDUALS),
    _joined("HunyuanImageTransformer2DModel", _HE, _SINGLE_HE),
    row("Ideogram4Transformer2DModel", _LAYERS),
    row("JoyImageEditPlusTransformer3DModel", returns("double_blocks", H, E)),
    row("JoyImageEditTransformer3DModel", returns("double_blocks", H, E), pipelines="JoyImageEditPipeline"),
    row("Krea2Transformer2DModel", _ONE),
    _joined("LongCatImageTransformer2DModel", _EH, _SINGLE_EH),
    row("Lumina2Transformer2DModel", _LAYERS),
    row("LuminaNextDiT2DModel", _LAYERS, pipelines="LuminaPipeline"),
    row("NucleusMoEImageTransformer2DModel", _ONE),
    row("OmniGenTransformer2DModel", _LAYERS),
    _joined("OvisImageTransformer2DModel", _EH, _SINGLE_EH),
    row("PRXTransformer2DModel", _BLOCKS),
    row("PixArtTransformer2DModel", _ONE),
    row(
        "PriorTransformer",
        _ONE,
        pipelines="KandinskyCombined KandinskyImg2ImgCombined KandinskyInpaintCombined KandinskyPrior "
        "KandinskyV22Combined KandinskyV22Img2ImgCombined KandinskyV22InpaintCombined KandinskyV22Prior "
        "ShapE StableUnCLIPPipeline UnCLIPPipeline",
    ),
    row("QwenImage21Transformer2DModel", _ONE),
    row("QwenImageTransformer2DModel", _EH, controls=_RESIDUALS),
    row(
        "SD3Transformer2DModel", _EH, pipelines="StableDiffusion3", controls="block_controlnet_hidden_states"
    ),
    row(
        "SanaTransformer2DModel",
        _ONE,
        pipelines="SanaControlNet SanaPAG SanaPipeline SanaSprint",
        controls=_RESIDUALS,
    ),
    row(
        "T5FilmDecoder",
        returns("decoders", H),
        pipelines="SpectrogramDiffusion",
        timestep="decoder_noise_time",
    ),
    row("Transformer2DModel", _ONE, pipelines="VQDiffusion"),
    row("UVit2DModel", returns_one("transformer_layers"), pipelines="Amused", timestep=None),
    row("ZImageTransformer2DModel", returns_one("layers", "x"), timestep="t", controls=_RESIDUALS),
    # --- Video ---
    row("AllegroTransformer3DModel", _ONE),
    row(
        "AnyFlowFARTransformer3DModel",
        _BLOCKS,
        bypass=lambda given: bool((given.get("kv_cache_flag") or {}).get("is_cache_step")),
    ),
    row("AnyFlowTransformer3DModel", _BLOCKS, pipelines="AnyFlowPipeline"),
    row("ChronoEditTransformer3DModel", _BLOCKS),
    row("CogVideoXTransformer3DModel", _HE),
    row("ConsisIDTransformer3DModel", _HE, muted="perceiver_cross_attention"),
    row(
        "Cosmos3OmniTransformer",
        returns("layers", "und_seq", "gen_seq", main="gen_seq"),
        timestep="vision_timesteps",
    ),
    row(
        "CosmosTransformer3DModel",
        _ONE,
        pipelines="CosmosTextToWorld CosmosVideoToWorld Cosmos2",
        controls="block_controlnet_hidden_states",
    ),
    row("EasyAnimateTransformer3DModel", _HE),
    row("HeliosTransformer3DModel", _BLOCKS),
    row("HunyuanVideo15Transformer3DModel", _HE),
    _joined("HunyuanVideoFramepackTransformer3DModel", _HE, _SINGLE_HE),
    _joined("HunyuanVideoTransformer3DModel", _HE, _SINGLE_HE, pipelines="HunyuanVideo HunyuanSkyreels"),
    row("Kandinsky5Transformer3DModel", returns_one("visual_transformer_blocks", "visual_embed")),
    row("Kandinsky6SRTransformer3DModel", returns_one("visual_transformer_blocks")),
    row(
        "Kandinsky6Transformer3DModel",
        returns("visual_transformer_blocks", "vis", "aud", main="vis"),
        pipelines="Kandinsky6TI2VA",
    ),
    row(
        "LTX2VideoTransformer3DModel",
        returns("transformer_blocks", H, "audio_hidden_states"),
        pipelines="LTX2 Echo",
    ),
    row("LTXVideoTransformer3DModel", _ONE, pipelines="LTX"),
    row("LatteTransformer3DModel", replace(_ONE, along="temporal_transformer_blocks")),
    row("MiniMaxH3Transformer3DModel", _ONE),
    row("MochiTransformer3DModel", _HE),
    # The decoder's second stream is the video that the encoder put out.
    row(
        "MotifVideoTransformer3DModel",
        _HE,
        replace(_SINGLE_HE, stop="-num_decoder_layers"),
        replace(_SINGLE_HE, start="-num_decoder_layers"),
    ),
    row("SanaVideoTransformer3DModel", _ONE, pipelines="SanaVideo SanaImageToVideo", controls=_RESIDUALS),
    row(
        "SanaWMLTX2RefinerTransformer3DModel",
        _ONE,
        bypass=lambda given: "capture" in (given.get("kv_cache_mode") or ""),
    ),
    row("SanaWMTransformer3DModel", returns_one("blocks", "x"), pipelines="SanaWMPipeline"),
    row("SkyReelsV2Transformer3DModel", _BLOCKS),
    row("TransformerTemporalModel", _ONE),
    row(
        "WanAnimate2Transformer3DModel", _BLOCKS, bypass=lambda given: given.get("kv_cache_mode") == "extract"
    ),
    row("WanAnimateTransformer3DModel", _BLOCKS, pipelines="WanAnimatePipeline", muted="face_adapter"),
    row("WanTransformer3DModel", _BLOCKS, pipelines="Wan LucyEdit"),
    row(
        "WanVACETransformer3DModel",
        returns("vace_blocks", None, "control_hidden_states", main="control_hidden_states"),
        _BLOCKS,
        pipelines="WanVACE Wan22Vace",
    ),
    # --- Audio ---
    row("AceStepTransformer1DModel", _LAYERS),
    row("LongCatAudioDiTTransformer", _BLOCKS),
    row("MiniMaxMusic3Transformer1DModel", _ONE),
    row("StableAudio3DiTModel", _ONE, pipelines="StableAudio3"),
    row("StableAudioDiTModel", _ONE, pipelines="StableAudioPipeline"),
    # --- ControlNets ---
    # The second output is the residual itself.
    _controlnet("CosmosControlNetModel", returns("control_blocks", H, None)),
    _controlnet("FluxControlNetModel", _each(_EH), _each(_SINGLE_EH)),
    _controlnet("HunyuanDiT2DControlNetModel", _each(_BLOCKS)),
    _controlnet("QwenImageControlNetModel", _each(_EH)),
    # The ControlNets of SD3.5 large read no text.
    _controlnet(
        "SD3ControlNetModel",
        _each(_EH, made_of="JointTransformerBlock"),
        _each(_ONE, made_of="SD3SingleTransformerBlock"),
    ),
    _controlnet("SanaControlNetModel", _each(_ONE)),
    _controlnet("ZImageControlNetModel", returns_one("control_layers", "c", stacks=True), timestep="t"),
)

_BY_NAME = {row.name: row for row in ROWS}


def row_of(kind: type) -> Row | None:
    """The row of a transformer class or of its nearest known base class."""
    return next((_BY_NAME[base.__name__] for base in kind.__mro__ if base.__name__ in _BY_NAME), None)
