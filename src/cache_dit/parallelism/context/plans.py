"""All context plans. To add a class that has a row, add its plan; the tests run over the table."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from cache_dit.parallelism.context.plan import ENCODER as E
from cache_dit.parallelism.context.plan import HIDDEN as H
from cache_dit.parallelism.context.plan import Along, ContextPlan, Cut, Front, Mask

_ROTARY = "image_rotary_emb"
_CONTROLS = ("controlnet_block_samples", "controlnet_single_block_samples")
_CONTROL, _AUDIO = "control_hidden_states", "audio_hidden_states"


def _plan(
    name: str, cuts: Mapping[str, Cut | tuple[Cut, ...]] | None = None, local: str = "", **details: object
) -> ContextPlan:
    # The details are fields of several types, which one annotation of `**details` cannot tell.
    # mypy takes the other fields of a plan for values of one type.
    return ContextPlan(name=name, cuts=cuts or {}, local=tuple(local.split()), **details)  # type: ignore[arg-type]


_controlnet = functools.partial(_plan, controls=True)

_PLANS = (
    # --- Image ---
    _plan("BriaTransformer2DModel", {_ROTARY: Along(0, (E, H))}, residuals=_CONTROLS, ends="norm_out"),
    _plan(
        "ChromaTransformer2DModel",
        {_ROTARY: Along(0, (E, H)), "attention_mask": Mask((E, H))},
        refused=dict.fromkeys(_CONTROLS, "they are added to some of its tokens, told by their number"),
    ),
    _plan("CogView3PlusTransformer2DModel"),
    _plan(
        "CogView4Transformer2DModel",
        {_ROTARY: Along(0, (H,)), "attention_mask": Along(1, (E,))},
        products=True,
    ),
    _plan("DiTTransformer2DModel"),
    _plan("Flux2Transformer2DModel", {_ROTARY: Along(0, (E, H))}),
    _plan("FluxTransformer2DModel", {_ROTARY: Along(0, (E, H))}, residuals=_CONTROLS, ends="norm_out"),
    _plan(
        "GlmImageTransformer2DModel",
        {_ROTARY: Along(0, (H,)), "attention_mask": Along(1, (E,))},
        products=True,
    ),
    _plan("HunyuanDiT2DModel", {_ROTARY: Along(0, (H,))}, "attn2", residuals=_CONTROLS),
    _plan("HunyuanImageTransformer2DModel", {_ROTARY: Along(0, (H,)), "attention_mask": Mask((H, E))}),
    _plan("Krea2Transformer2DModel", {_ROTARY: Along(0, (H,)), "attention_mask": Mask((H,))}),
    _plan("LongCatImageTransformer2DModel", {_ROTARY: Along(0, (E, H))}),
    _plan("Lumina2Transformer2DModel", {_ROTARY: Along(1, (H,)), "attention_mask": Mask((H,))}),
    _plan("OvisImageTransformer2DModel", {_ROTARY: Along(0, (E, H))}),
    _plan("PixArtTransformer2DModel", {}, "attn2"),
    _plan(
        "QwenImageTransformer2DModel",
        {
            _ROTARY: (Along(0, (H,)), Along(0, (E,))),
            "encoder_hidden_states_mask": Along(1, (E,)),
            "modulate_index": Along(1, (H,)),
        },
        residuals=_CONTROLS,
        ends="norm_out",
    ),
    _plan(
        "SD3Transformer2DModel",
        looks_at={"attn2": (H,)},
        residuals=("block_controlnet_hidden_states",),
        refused={"skip_layers": "the blocks that are left out may be those where its sequence is cut"},
    ),
    _plan(
        "ZImageTransformer2DModel",
        {"freqs_cis": Along(1, ("x",)), "attn_mask": Mask(("x",)), "noise_mask": Along(1, ("x",))},
        residuals=_CONTROLS,
        ends="all_final_layer",
    ),
    # --- Video ---
    _plan("AllegroTransformer3DModel", {"attention_mask": Along(-1, (H,))}, "attn2"),
    _plan("ChronoEditTransformer3DModel", {"rotary_emb": Along(1, (H,))}, "attn2"),
    _plan("CogVideoXTransformer3DModel", {_ROTARY: Along(0, (H,))}),
    _plan("ConsisIDTransformer3DModel", {_ROTARY: Along(0, (H,))}),
    _plan(
        "CosmosTransformer3DModel",
        {
            _ROTARY: Along(0, (H,)),
            "extra_pos_emb": Along(1, (H,)),
            "embedded_timestep": Along(1, (H,), ndim=3),
            "temb": Along(1, (H,), ndim=3),
        },
        "attn2",
        residuals=("block_controlnet_hidden_states",),
    ),
    _plan("EasyAnimateTransformer3DModel", {_ROTARY: Along(0, (H,))}),
    _plan(
        "HeliosTransformer3DModel",
        {"rotary_emb": Along(1, (H,)), "temb": Along(1, (H,))},
        "attn2",
        fronts={"original_context_length": Front(H, rest=True)},
    ),
    _plan(
        "HunyuanVideo15Transformer3DModel",
        {"freqs_cis": Along(0, (H,)), "attention_mask": Along(1, (E,))},
        products=True,
    ),
    _plan(
        "HunyuanVideoFramepackTransformer3DModel",
        {"freqs_cis": Along(0, (H,)), _ROTARY: Along(0, (H,)), "attention_mask": Mask((H, E))},
    ),
    _plan(
        "HunyuanVideoTransformer3DModel",
        {"freqs_cis": Along(0, (H,)), _ROTARY: Along(0, (H,)), "attention_mask": Mask((H, E))},
        fronts={"num_tokens": Front(H)},
    ),
    _plan("Kandinsky5Transformer3DModel", {"rope": Along(1, ("visual_embed",))}, "cross_attention"),
    _plan(
        "LTX2VideoTransformer3DModel",
        {
            **{name: Along(1, (H,)) for name in ("temb", "temb_ca_scale_shift", "temb_ca_gate")},
            **{
                name: Along(1, (_AUDIO,))
                for name in ("temb_audio", "temb_ca_audio_scale_shift", "temb_ca_audio_gate")
            },
            # (B, s, C), or (B, H, s, D).
            **{name: Along(-2, (H,)) for name in ("video_rotary_emb", "ca_video_rotary_emb")},
            **{name: Along(-2, (_AUDIO,)) for name in ("audio_rotary_emb", "ca_audio_rotary_emb")},
        },
        "attn2 audio_attn2",
        looks_at={
            "attn1": (H,),
            "audio_attn1": (_AUDIO,),
            "audio_to_video_attn": (_AUDIO,),
            "video_to_audio_attn": (H,),
        },
        asks={"audio_to_video_attn": (H,), "video_to_audio_attn": (_AUDIO,)},
        refused={"video_self_attention_mask": "its attention changes that mask by the number of its tokens"},
    ),
    _plan("LTXVideoTransformer3DModel", {_ROTARY: Along(1, (H,)), "temb": Along(1, (H,))}, "attn2"),
    _plan("MiniMaxH3Transformer3DModel", {"rotary_emb": Along(0, (H,)), "adaln_indices": Along(0, (H,))}),
    _plan(
        "SkyReelsV2Transformer3DModel",
        {"rotary_emb": Along(1, (H,)), "temb": Along(2, (H,), ndim=4), "attention_mask": Mask((H,))},
        "attn2",
    ),
    _plan("WanTransformer3DModel", {"rotary_emb": Along(1, (H,)), "temb": Along(1, (H,), ndim=4)}, "attn2"),
    _plan(
        "WanVACETransformer3DModel",
        {
            "rotary_emb": Along(1, (_CONTROL, H)),
            "temb": Along(1, (_CONTROL, H), ndim=4),
            H: Along(1, (_CONTROL,)),
        },
        "attn2",
        ends="norm_out",
    ),
    # --- Audio ---
    _plan("StableAudioDiTModel", {"rotary_embedding": Along(0, (H,))}, "attn2"),
    _plan("MiniMaxMusic3Transformer1DModel", {"rotary_emb": Along(0, (H,))}),
    # --- ControlNets ---
    _controlnet(
        "CosmosControlNetModel",
        {
            _ROTARY: Along(0, (H,)),
            "extra_pos_emb": Along(1, (H,)),
            "latents": Along(1, (H,)),
            "embedded_timestep": Along(1, (H,), ndim=3),
            "temb": Along(1, (H,), ndim=3),
        },
        "attn2",
    ),
    _controlnet("FluxControlNetModel", {_ROTARY: Along(0, (E, H))}),
    _controlnet("HunyuanDiT2DControlNetModel", {_ROTARY: Along(0, (H,))}, "attn2"),
    _controlnet(
        "QwenImageControlNetModel",
        {_ROTARY: (Along(0, (H,)), Along(0, (E,))), "encoder_hidden_states_mask": Along(1, (E,))},
    ),
    _controlnet("SD3ControlNetModel"),
    _controlnet(
        "ZImageControlNetModel",
        {"freqs_cis": Along(1, ("c",)), "attn_mask": Mask(("c",)), "x": Along(1, ("c",))},
        # Their blocks refine the noise too, which is whole on every rank.
        runs_twice=lambda model: model.add_control_noise_refiner == "control_layers",
    ),
)

CONTEXT_PLANS = {plan.name: plan for plan in _PLANS}
"""By class name in diffusers."""
