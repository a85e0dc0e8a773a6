"""Rows of ControlNet models.

They hand the output of every one of their blocks to the transformer that they control, so it is forecast for
every block; zero convolutions and scales behind the blocks are computed freshly.
"""

from __future__ import annotations

from cache_dit.caching.forward_pattern import ENCODER as E
from cache_dit.caching.forward_pattern import HIDDEN as H
from cache_dit.caching.models.row import Row, returns, returns_one

ROWS: tuple[Row, ...] = (
    Row(
        name="CosmosControlNetModel",
        # The second output is the residual itself.
        lists=(returns("control_blocks", H, None),),
        blocks=("CosmosTransformerBlock",),
        on_request=True,
    ),
    Row(
        name="FluxControlNetModel",
        lists=(
            returns("transformer_blocks", E, H, each_counts=True),
            returns("single_transformer_blocks", E, H, each_counts=True),
        ),
        blocks=("FluxTransformerBlock", "FluxSingleTransformerBlock"),
        on_request=True,
    ),
    Row(
        name="HunyuanDiT2DControlNetModel",
        lists=(returns_one("blocks", each_counts=True),),
        blocks=("HunyuanDiTBlock",),
        on_request=True,
    ),
    Row(
        name="QwenImageControlNetModel",
        lists=(returns("transformer_blocks", E, H, each_counts=True),),
        blocks=("QwenImageTransformerBlock",),
        on_request=True,
    ),
    Row(
        name="SD3ControlNetModel",
        # The ControlNets of SD3.5 large read no text.
        lists=(
            returns("transformer_blocks", E, H, each_counts=True, made_of="JointTransformerBlock"),
            returns_one("transformer_blocks", each_counts=True, made_of="SD3SingleTransformerBlock"),
        ),
        blocks=("JointTransformerBlock", "SD3SingleTransformerBlock"),
        on_request=True,
    ),
    Row(
        name="SanaControlNetModel",
        lists=(returns_one("transformer_blocks", each_counts=True),),
        blocks=("SanaTransformerBlock",),
        on_request=True,
    ),
    Row(
        name="ZImageControlNetModel",
        lists=(returns_one("control_layers", "c", stacks=True),),
        blocks=("ZImageControlTransformerBlock",),
        timestep="t",
        on_request=True,
    ),
)
