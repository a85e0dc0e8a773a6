"""All tensor-parallel plans. To add one, add a row; the tests divide every row over two ranks."""

from __future__ import annotations

from cache_dit.parallelism.tensor.plan import Blocks, Joined, Part, TensorPlan, attention, feed_forward

_ATTN = attention("attn")
_FF = feed_forward("ff")
_BOTH_FF = (_FF, feed_forward("ff_context"))
_TEXT_AND_IMAGE = (feed_forward("img_mlp"), feed_forward("txt_mlp"))

# Blocks of two streams, as FLUX has, and of one, where the attention and the MLP share the last Linear.
_DOUBLE = Blocks("transformer_blocks", (_ATTN, *_BOTH_FF))
_PROJ_OUT = Part(
    path="", columns=("proj_mlp",), rows=(Joined("proj_out", "attn"),), channels=("mlp_hidden_dim",)
)
_SINGLE = Blocks("single_transformer_blocks", (_ATTN, _PROJ_OUT))
# One stream with self-attention, often cross-attention, and an MLP.
_PLAIN = Blocks("transformer_blocks", (attention("attn1"), attention("attn2"), _FF))
_WAN = Blocks("blocks", (attention("attn1"), attention("attn2"), feed_forward("ffn")))
# What LLaMA has: a gate and a value, multiplied.
_W123 = (attention("attention"), feed_forward("feed_forward", "w1 w3", "w2"))
_GATE_UP = "gate_proj up_proj"


def _plan(name: str, *blocks: Blocks) -> TensorPlan:
    return TensorPlan(name, blocks)


def _same(paths: str, *parts: Part) -> tuple[Blocks, ...]:
    return tuple(Blocks(path, parts) for path in paths.split())


_FLUX_2_SINGLE = Part(
    path="attn",
    columns=(Joined("to_qkv_mlp_proj", "", times=3, rest=2),),
    rows=(Joined("to_out", ""),),
    heads="heads",
    counts=("heads", "inner_dim"),
    channels=("mlp_hidden_dim",),
)
_FLUX_2_FF = tuple(feed_forward(path, "linear_in", "linear_out") for path in ("ff", "ff_context"))
_FLUX_3 = (_ATTN, _FLUX_2_FF[0])


def _kandinsky(path: str) -> Part:
    norms = (("query_norm", "to_query"), ("key_norm", "to_key"))
    return attention(path, "to_query to_key to_value", "out_layer", norms, heads="num_heads", keys="to_key")


def _kandinsky_5(*attentions: str) -> tuple[Part, ...]:
    return (*map(_kandinsky, attentions), feed_forward("feed_forward", "in_layer", "out_layer"))


def _swiglu(path: str) -> Part:
    return feed_forward(path, "w1 w3", "w2")


_HIDREAM = (
    attention(
        "block.attn1",
        "to_q_t to_k_t to_v_t",
        "to_out_t",
        (
            ("q_rms_norm", "to_q"),
            ("k_rms_norm", "to_k"),
            ("q_rms_norm_t", "to_q_t"),
            ("k_rms_norm_t", "to_k_t"),
        ),
    ),
    *map(_swiglu, ("block.ff_i", "block.ff_i.shared_experts", "block.ff_i.experts.*", "block.ff_t")),
)
_AURA_FF = tuple(feed_forward(path, "linear_1 linear_2", "out_projection") for path in ("ff", "ff_context"))
_LUMINA_2 = (_ATTN, feed_forward("feed_forward", "linear_1 linear_3", "linear_2"))
_JOY = (
    attention("attn", "img_attn_qkv txt_attn_qkv", "img_attn_proj txt_attn_proj"),
    *_TEXT_AND_IMAGE,
)
_COSMOS = (attention("attn1"), attention("attn2", "q_img k_img v_img", counts="out_dim"), _FF)
_LTX = (*(attention(path, rotary="image_rotary_emb") for path in ("attn1", "attn2")), _FF)
_LTX_2 = tuple(
    attention(path, rotary="query_rotary_emb key_rotary_emb")
    for path in ("attn1", "attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn")
)
_LTX_2_BLOCKS = Blocks("transformer_blocks", (*_LTX_2, _FF, feed_forward("audio_ff")))
_QWEN = Blocks("transformer_blocks", (_ATTN, *_TEXT_AND_IMAGE))
_REFINER = Blocks("context_embedder.token_refiner.refiner_blocks", (_ATTN, _FF))

TENSOR_PLANS: tuple[TensorPlan, ...] = (
    # --- Image ---
    _plan(
        "AuraFlowTransformer2DModel",
        Blocks("joint_transformer_blocks", (_ATTN, *_AURA_FF)),
        Blocks("single_transformer_blocks", (_ATTN, *_AURA_FF)),
    ),
    _plan("BriaFibo2Transformer2DModel", Blocks("layers", _W123)),
    _plan("BriaFiboTransformer2DModel", _DOUBLE, _SINGLE),
    _plan("BriaTransformer2DModel", _DOUBLE, _SINGLE),
    _plan("ChromaTransformer2DModel", _DOUBLE, _SINGLE),
    _plan("CogView3PlusTransformer2DModel", _PLAIN),
    _plan("CogView4Transformer2DModel", _PLAIN),
    _plan("DiTTransformer2DModel", _PLAIN),
    _plan("DreamLiteTransformer2DModel", _PLAIN),
    _plan(
        "ErnieImageTransformer2DModel",
        Blocks("layers", (attention("self_attention"), feed_forward("mlp", _GATE_UP, "linear_fc2"))),
    ),
    _plan(
        "Flux2Transformer2DModel",
        Blocks("transformer_blocks", (_ATTN, *_FLUX_2_FF)),
        Blocks("single_transformer_blocks", (_FLUX_2_SINGLE,)),
    ),
    _plan("Flux3Transformer2DModel", *_same("mode_blocks.image single_transformer_blocks", *_FLUX_3)),
    _plan("FluxTransformer2DModel", _DOUBLE, _SINGLE),
    _plan("GlmImageTransformer2DModel", _PLAIN),
    _plan("HiDreamImageTransformer2DModel", *_same("double_stream_blocks single_stream_blocks", *_HIDREAM)),
    _plan("HunyuanDiT2DModel", Blocks("blocks", _PLAIN.parts)),
    _plan("HunyuanImageTransformer2DModel", _DOUBLE, _SINGLE),
    _plan(
        "Ideogram4Transformer2DModel", Blocks("layers", (attention("attention", heads="num_heads"), _W123[1]))
    ),
    _plan("JoyImageEditPlusTransformer3DModel", Blocks("double_blocks", _JOY)),
    _plan("JoyImageEditTransformer3DModel", Blocks("double_blocks", _JOY)),
    _plan(
        "Krea2Transformer2DModel",
        Blocks(
            "transformer_blocks",
            (attention("attn", heads="num_heads"), feed_forward("ff", "gate up", "down")),
        ),
    ),
    _plan("LongCatImageTransformer2DModel", _DOUBLE, _SINGLE),
    _plan("Lumina2Transformer2DModel", *_same("layers noise_refiner context_refiner", *_LUMINA_2)),
    _plan(
        "NucleusMoEImageTransformer2DModel",
        Blocks("transformer_blocks", (_ATTN, feed_forward("img_mlp"))),
    ),
    _plan(
        "OmniGenTransformer2DModel",
        Blocks(
            "layers",
            (attention("self_attn", counts="out_dim"), feed_forward("mlp", "gate_up_proj", "down_proj")),
        ),
    ),
    _plan("OvisImageTransformer2DModel", _DOUBLE, _SINGLE),
    _plan(
        "PRXTransformer2DModel",
        Blocks(
            "blocks",
            (attention("attention", "img_qkv_proj txt_kv_proj"), feed_forward("", _GATE_UP, "down_proj")),
        ),
    ),
    _plan("PixArtTransformer2DModel", _PLAIN),
    _plan("PriorTransformer", _PLAIN),
    _plan(
        "QwenImage21Transformer2DModel",
        Blocks("transformer_blocks", (_ATTN, feed_forward("img_mlp", "proj gate_layer", "out"))),
    ),
    _plan("QwenImageTransformer2DModel", _QWEN),
    _plan("SD3Transformer2DModel", Blocks("transformer_blocks", (_ATTN, attention("attn2"), *_BOTH_FF))),
    # The MLP of Sana is convolutions, which stay whole.
    _plan("SanaTransformer2DModel", _PLAIN),
    _plan(
        "T5FilmDecoder",
        Blocks(
            "decoders",
            (
                attention("layer.0.attention"),
                attention("layer.1.attention"),
                feed_forward("layer.2.DenseReluDense", "wi_0 wi_1", "wo"),
            ),
        ),
    ),
    _plan("Transformer2DModel", _PLAIN),
    _plan("UVit2DModel", Blocks("transformer_layers", _PLAIN.parts)),
    _plan("ZImageTransformer2DModel", *_same("layers noise_refiner context_refiner", *_W123)),
    # --- Video ---
    _plan("AllegroTransformer3DModel", _PLAIN),
    _plan("AnyFlowTransformer3DModel", _WAN),
    _plan("ChronoEditTransformer3DModel", _WAN),
    _plan("CogVideoXTransformer3DModel", _PLAIN),
    _plan("ConsisIDTransformer3DModel", _PLAIN),
    _plan(
        "Cosmos3OmniTransformer",
        Blocks(
            "layers",
            (
                attention(
                    "self_attn",
                    heads="num_attention_heads",
                    counts="num_key_value_heads",
                ),
                *(feed_forward(path, _GATE_UP, "down_proj") for path in ("mlp", "mlp_moe_gen")),
            ),
        ),
    ),
    _plan("CosmosTransformer3DModel", Blocks("transformer_blocks", _COSMOS)),
    _plan("HeliosTransformer3DModel", _WAN),
    _plan("HunyuanVideo15Transformer3DModel", _DOUBLE, _REFINER),
    _plan("HunyuanVideoFramepackTransformer3DModel", _DOUBLE, _SINGLE, _REFINER),
    _plan("HunyuanVideoTransformer3DModel", _DOUBLE, _SINGLE, _REFINER),
    _plan(
        "Kandinsky5Transformer3DModel",
        Blocks("visual_transformer_blocks", _kandinsky_5("self_attention", "cross_attention")),
        Blocks("text_transformer_blocks", _kandinsky_5("self_attention")),
    ),
    _plan(
        "Kandinsky6SRTransformer3DModel",
        Blocks("visual_transformer_blocks", (_kandinsky("self_attention"), feed_forward("feed_forward"))),
    ),
    _plan(
        "Kandinsky6Transformer3DModel",
        Blocks(
            "visual_transformer_blocks",
            (
                *(
                    part
                    for block in ("video_dec_block", "audio_dec_block")
                    for part in (
                        _kandinsky(f"{block}.self_attention"),
                        _kandinsky(f"{block}.cross_attention"),
                        feed_forward(f"{block}.feed_forward"),
                    )
                ),
                _kandinsky("va_cross_attention"),
                _kandinsky("av_cross_attention"),
            ),
        ),
    ),
    _plan("LTX2VideoTransformer3DModel", _LTX_2_BLOCKS),
    _plan("LTXVideoTransformer3DModel", Blocks("transformer_blocks", _LTX)),
    _plan("LatteTransformer3DModel", *_same("transformer_blocks temporal_transformer_blocks", *_PLAIN.parts)),
    _plan("MiniMaxH3Transformer3DModel", Blocks("transformer_blocks", (_ATTN, _FF))),
    _plan(
        "MochiTransformer3DModel",
        Blocks("transformer_blocks", (attention("attn1", rotary="image_rotary_emb"), *_BOTH_FF)),
    ),
    # The cross-attention of its single blocks reads all heads of the self-attention, so that one stays whole.
    _plan(
        "MotifVideoTransformer3DModel",
        Blocks("transformer_blocks", (_ATTN, attention("cross_attn"), *_BOTH_FF)),
        Blocks("single_transformer_blocks", (attention("cross_attn"),)),
    ),
    _plan("SanaVideoTransformer3DModel", _PLAIN),
    _plan("SanaWMLTX2RefinerTransformer3DModel", _LTX_2_BLOCKS),
    _plan("SkyReelsV2Transformer3DModel", _WAN),
    _plan("TransformerTemporalModel", _PLAIN),
    _plan(
        "WanAnimate2Transformer3DModel",
        Blocks("blocks", (attention("self_attn"), attention("cross_attn"), feed_forward("ffn", "0", "2"))),
    ),
    _plan("WanAnimateTransformer3DModel", _WAN),
    _plan("WanTransformer3DModel", _WAN),
    _plan("WanVACETransformer3DModel", _WAN, Blocks("vace_blocks", _WAN.parts)),
    # --- Audio ---
    _plan(
        "AceStepTransformer1DModel",
        Blocks(
            "layers",
            (attention("self_attn"), attention("cross_attn"), feed_forward("mlp", _GATE_UP, "down_proj")),
        ),
    ),
    _plan(
        "LongCatAudioDiTTransformer",
        Blocks("blocks", (attention("self_attn"), attention("cross_attn"), feed_forward("ffn.ff", "0", "3"))),
    ),
    _plan(
        "MiniMaxMusic3Transformer1DModel",
        Blocks("transformer_blocks", (_ATTN, feed_forward("", "ff_in", "ff_out"))),
    ),
    _plan(
        "StableAudio3DiTModel",
        Blocks(
            "transformer_blocks",
            (
                attention("self_attn", "to_qkv"),
                attention("cross_attn", "to_kv"),
                feed_forward("ff", "proj_in", "proj_out"),
            ),
        ),
    ),
    _plan("StableAudioDiTModel", _PLAIN),
    # --- ControlNets ---
    _plan("CosmosControlNetModel", Blocks("control_blocks", _COSMOS)),
    _plan("FluxControlNetModel", _DOUBLE, _SINGLE),
    _plan("HunyuanDiT2DControlNetModel", Blocks("blocks", _PLAIN.parts)),
    _plan("QwenImageControlNetModel", _QWEN),
    _plan("SD3ControlNetModel", Blocks("transformer_blocks", (_ATTN, attention("attn2"), *_BOTH_FF))),
    _plan("SanaControlNetModel", _PLAIN),
    _plan(
        "ZImageControlNetModel",
        *_same("control_layers control_noise_refiner noise_refiner context_refiner", *_W123),
    ),
)
