"""What every rank does in the tests of text encoders, VAEs and ControlNets; started by `parallel_harness`."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
import torch.distributed as dist
import transformers
from tiny.models import output_of, tiny_model
from torch import Tensor, nn

import cache_dit
from cache_dit.parallelism import ParallelismConfig
from cache_dit.parallelism.mesh import share
from cache_dit.parallelism.modules import shard_layers, share_tiles, spread

Case = Callable[[], Any]

_PLAIN: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "latent_channels": 4,
    "sample_size": 16,
}
_CAUSAL: dict[str, Any] = {
    "base_dim": 4,
    "z_dim": 4,
    "dim_mult": [1, 1, 1, 1],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True, True],
    "latents_mean": [0.0] * 4,
    "latents_std": [1.0] * 4,
}
_FOUR: dict[str, Any] = {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "layers_per_block": 1}
# Class, configuration, shape of the picture or video, size of a tile, its stride where it has one.
VAES: dict[str, tuple[dict[str, Any], tuple[int, ...], int, int]] = {
    "AutoencoderKL": (_PLAIN, (1, 3, 40, 28), 16, 12),
    "AutoencoderKLFlux2": (_PLAIN, (1, 3, 40, 28), 16, 12),
    "AutoencoderKLWan": (_CAUSAL, (1, 3, 5, 40, 24), 24, 16),
    "AutoencoderKLQwenImage": (_CAUSAL, (1, 3, 1, 40, 24), 24, 16),
    "AutoencoderKLHunyuanVideo": (
        {**_FOUR, "latent_channels": 4},
        (1, 3, 5, 40, 24),
        24,
        16,
    ),
    "AutoencoderKLLTXVideo": (
        {
            "latent_channels": 8,
            "block_out_channels": (8, 8, 8, 8),
            "decoder_block_out_channels": (8, 8, 8, 8),
            "layers_per_block": (1,) * 5,
            "decoder_layers_per_block": (1,) * 5,
            "spatio_temporal_scaling": (True, True, False, False),
            "decoder_spatio_temporal_scaling": (True, True, False, False),
            "decoder_inject_noise": (False,) * 5,
            "upsample_residual": (False,) * 4,
            "upsample_factor": (1,) * 4,
            "patch_size": 1,
            "patch_size_t": 1,
        },
        (1, 3, 9, 40, 24),
        16,
        12,
    ),
    "AutoencoderDC": (
        {
            "in_channels": 3,
            "latent_channels": 4,
            "encoder_block_types": "ResBlock",
            "decoder_block_types": "ResBlock",
            "encoder_block_out_channels": (4, 8),
            "decoder_block_out_channels": (4, 8),
            "encoder_layers_per_block": (1, 1),
            "decoder_layers_per_block": (1, 1),
            "encoder_qkv_multiscales": ((), ()),
            "decoder_qkv_multiscales": ((), ()),
            "upsample_block_type": "interpolate",
            "downsample_block_type": "stride_conv",
            "decoder_norm_types": "rms_norm",
            "decoder_act_fns": "silu",
        },
        (1, 3, 40, 28),
        16,
        12,
    ),
}


def tiled(name: str) -> tuple[Any, Tensor]:
    """A VAE that makes several small tiles, and its input."""
    config, shape, tile, stride = VAES[name]
    torch.manual_seed(0)
    vae: Any = getattr(diffusers, name)(**config).eval()
    vae.enable_tiling()
    for attribute in ("tile_sample_min_size", "tile_sample_min_height", "tile_sample_min_width"):
        if hasattr(vae, attribute):
            setattr(vae, attribute, tile)
    for attribute in ("tile_sample_stride_height", "tile_sample_stride_width"):
        if hasattr(vae, attribute):
            setattr(vae, attribute, stride)
    for attribute in ("tile_latent_min_size", "tile_latent_min_height", "tile_latent_min_width"):
        if hasattr(vae, attribute):
            setattr(vae, attribute, tile // 2)
    return vae, torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def round_trip(vae: Any, picture: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        encoded = vae.encode(picture)
        latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
        return latents, vae.decode(latents).sample


def tiles(name: str) -> Any:
    """Differences to one process, and how many calls of encoder and decoder each rank made."""
    vae, picture = tiled(name)
    calls = {"encoder": 0, "decoder": 0}

    def count(which: str, *_: Any) -> None:
        calls[which] += 1

    forwards = {which: getattr(vae, which).forward for which in calls}
    for which, forward in forwards.items():

        def counted(*args: Any, which: str = which, forward: Any = forward, **kwargs: Any) -> Any:
            count(which)
            return forward(*args, **kwargs)

        getattr(vae, which).forward = counted
    expected = round_trip(vae, picture)
    alone = dict(calls)
    calls.update(dict.fromkeys(calls, 0))
    undo = share_tiles(vae, dist.group.WORLD)
    found = round_trip(vae, picture)
    shared = dict(calls)
    undo()
    calls.update(dict.fromkeys(calls, 0))
    again = round_trip(vae, picture)
    return {
        "equal": all(torch.equal(a, b) for a, b in zip(expected, found, strict=True)),
        "alone": alone,
        "shared": shared,
        "undone": calls == alone and torch.equal(again[1], expected[1]) and "decode" not in vars(vae),
    }


_TEXT = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
_TEXT |= {"num_attention_heads": 4, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "T5": lambda: transformers.T5EncoderModel(
        transformers.T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=64, num_layers=3, num_heads=4)
    ),
    "Qwen3": lambda: transformers.Qwen3Model(
        transformers.Qwen3Config(**_TEXT, num_key_value_heads=2, head_dim=8)
    ),
    "CLIP": lambda: transformers.CLIPTextModel(transformers.CLIPTextConfig(**_TEXT)),
}


def encoder(name: str) -> Any:
    """Outputs before, while and after the layers are spread, twice; and the share of the weights."""
    torch.manual_seed(0)
    model: Any = ENCODERS[name]().eval()
    tokens = torch.arange(3, 15)[None]
    before = {key: (id(value), value.detach().clone()) for key, value in model.named_parameters()}
    whole = sum(parameter.numel() for parameter in model.parameters())
    outputs, shares = [], []
    with torch.no_grad():
        outputs.append(model(tokens)[0])
        for _ in range(2):
            undo = shard_layers(model, dist.group.WORLD)
            outputs.append(model(tokens)[0])
            local = [
                getattr(parameter, "to_local", lambda own=parameter: own)()
                for parameter in model.parameters()
            ]
            shares.append(sum(parameter.numel() for parameter in local) / whole)
            undo()
            outputs.append(model(tokens)[0])
    return {
        "equal": all(torch.equal(outputs[0], output) for output in outputs),
        "shares": shares,
        "restored": all(
            id(value) == before[key][0] and torch.equal(value, before[key][1])
            for key, value in model.named_parameters()
        )
        and len(before) == len(list(model.parameters())),
    }


def pipeline() -> Any:
    """A transformer with tensor parallelism, and with it a text encoder, a VAE and a ControlNet, by name."""
    torch.manual_seed(0)
    vae, picture = tiled("AutoencoderKL")
    pipe = SimpleNamespace(
        text_encoder=ENCODERS["T5"]().eval(),
        vae=vae,
        controlnet=tiny_model("FluxControlNetModel").build(),
        tokenizer="words",
    )
    inputs = tiny_model("FluxControlNetModel").inputs(0)
    tokens = torch.arange(3, 15)[None]

    def outputs() -> list[Tensor]:
        with torch.no_grad():
            return [
                *output_of(pipe.controlnet, inputs),
                pipe.text_encoder(tokens)[0],
                *round_trip(vae, picture),
            ]

    expected, size = outputs(), dist.get_world_size()
    weights = sum(parameter.numel() for parameter in pipe.controlnet.parameters())
    names = ["text_encoder", "vae", pipe.controlnet]
    with contextlib.ExitStack() as undo:
        sharing = share(ParallelismConfig(tp_size=size, extra_parallel_modules=names))
        spread(sharing.config.extra_parallel_modules, pipe, sharing, undo)
        found, fewer = outputs(), sum(parameter.numel() for parameter in pipe.controlnet.parameters())
    again = outputs()
    return {
        "error": max(float((a - b).abs().max()) for a, b in zip(expected, found, strict=True)),
        "divided": fewer < weights,
        "undone": all(torch.equal(a, b) for a, b in zip(expected, again, strict=True)),
    }


def refused() -> dict[str, str]:
    """What each misuse is answered with."""
    pipe = SimpleNamespace(vae=tiled("AutoencoderKL")[0], text_encoder=nn.Linear(2, 2))
    pipe.controlnet = tiny_model("FluxControlNetModel").build()
    off = tiled("AutoencoderKL")[0]
    off.disable_tiling()
    mochi = SimpleNamespace(decoder=1, decode=1, use_tiling=True)
    found = {}

    def ask(name: str, entry: Any, **sizes: Any) -> None:
        try:
            with contextlib.ExitStack() as undo:
                sharing = share(
                    ParallelismConfig(**(sizes or {"tp_size": 2}), extra_parallel_modules=[entry])
                )
                spread([entry], pipe, sharing, undo)
            found[name] = "no error"
        except cache_dit.CacheDiTError as error:
            found[name] = str(error)

    ask("no such component", "vea")
    ask("no layers", "text_encoder")
    ask("tiling off", off)
    ask("controlnet without a size", "controlnet", process_group=dist.group.WORLD)
    try:
        share_tiles(mochi, dist.group.WORLD)
    except cache_dit.CacheDiTError as error:
        found["unknown vae"] = str(error)
    return found


def cases(size: int) -> dict[str, Case]:
    found: dict[str, Case] = {f"vae/{name}": functools.partial(tiles, name) for name in VAES}
    if size == 2:
        found |= {f"encoder/{name}": functools.partial(encoder, name) for name in ENCODERS}
        found |= {"pipeline": pipeline, "refused": refused}
    return {name: case for name, case in found.items() if size == 2 or name.endswith(("KL", "Wan"))}
