"""Rows of ControlNet models.

They hand the output of every one of their blocks to the transformer that they control, so it is forecast for
every block; zero convolutions and scales behind the blocks are computed freshly.
"""

from __future__ import annotations

from cache_dit.caching.forward_pattern import ENCODER as E
from cache_dit.caching.forward_pattern import HIDDEN as H
from cache_dit.caching.models.row import Row, returns, returns_one, row

ROWS: tuple[Row, ...] = (
    # The second output is the residual itself.
    row("CosmosControlNetModel", returns("control_blocks", H, None), on_request=True),
    row(
        "FluxControlNetModel",
        returns("transformer_blocks", E, H, each_counts=True),
        returns("single_transformer_blocks", E, H, each_counts=True),
        on_request=True,
    ),
    row("HunyuanDiT2DControlNetModel", returns_one("blocks", each_counts=True), on_request=True),
    row("QwenImageControlNetModel", returns("transformer_blocks", E, H, each_counts=True), on_request=True),
    # The ControlNets of SD3.5 large read no text.
    row(
        "SD3ControlNetModel",
        returns("transformer_blocks", E, H, each_counts=True, made_of="JointTransformerBlock"),
        returns_one("transformer_blocks", each_counts=True, made_of="SD3SingleTransformerBlock"),
        on_request=True,
    ),
    row("SanaControlNetModel", returns_one("transformer_blocks", each_counts=True), on_request=True),
    row(
        "ZImageControlNetModel",
        returns_one("control_layers", "c", stacks=True),
        timestep="t",
        on_request=True,
    ),
)
