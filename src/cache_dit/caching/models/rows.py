"""The rows. To add a model, add its row here and a tiny model to the tests; nothing else.

E is short for encoder hidden states and H for hidden states, as in `ForwardPattern`.
"""

from __future__ import annotations

from cache_dit.caching.forward_pattern import ENCODER as E
from cache_dit.caching.forward_pattern import HIDDEN as H
from cache_dit.caching.models.row import Row, returns, returns_one

ROWS: tuple[Row, ...] = (
    Row(
        name="ChromaTransformer2DModel",
        lists=(returns("transformer_blocks", E, H), returns_one("single_transformer_blocks")),
        blocks=("ChromaTransformerBlock", "ChromaSingleTransformerBlock"),
    ),
    Row(
        name="CogVideoXTransformer3DModel",
        lists=(returns("transformer_blocks", H, E),),
        blocks=("CogVideoXBlock",),
    ),
    Row(
        name="DiTTransformer2DModel",
        lists=(returns_one("transformer_blocks"),),
        blocks=("BasicTransformerBlock",),
    ),
    Row(
        name="FluxTransformer2DModel",
        lists=(returns("transformer_blocks", E, H), returns("single_transformer_blocks", E, H)),
        blocks=("FluxTransformerBlock", "FluxSingleTransformerBlock"),
        joined=True,
    ),
    Row(
        name="HunyuanVideoTransformer3DModel",
        lists=(returns("transformer_blocks", H, E), returns("single_transformer_blocks", H, E)),
        blocks=(
            "HunyuanVideoTransformerBlock",
            "HunyuanVideoSingleTransformerBlock",
            "HunyuanVideoTokenReplaceTransformerBlock",
            "HunyuanVideoTokenReplaceSingleTransformerBlock",
        ),
        joined=True,
    ),
    Row(
        name="LTXVideoTransformer3DModel",
        lists=(returns_one("transformer_blocks"),),
        blocks=("LTXVideoTransformerBlock",),
    ),
    Row(
        name="PixArtTransformer2DModel",
        lists=(returns_one("transformer_blocks"),),
        blocks=("BasicTransformerBlock",),
    ),
    Row(
        name="QwenImageTransformer2DModel",
        lists=(returns("transformer_blocks", E, H),),
        blocks=("QwenImageTransformerBlock",),
    ),
    Row(
        name="SD3Transformer2DModel",
        lists=(returns("transformer_blocks", E, H),),
        blocks=("JointTransformerBlock",),
    ),
    Row(
        name="WanTransformer3DModel",
        lists=(returns_one("blocks"),),
        blocks=("WanTransformerBlock",),
    ),
)

_BY_NAME = {row.name: row for row in ROWS}


def row_of(kind: type) -> Row | None:
    """The row of a transformer class or of its nearest known base class."""
    return next((_BY_NAME[base.__name__] for base in kind.__mro__ if base.__name__ in _BY_NAME), None)


def known_names() -> tuple[str, ...]:
    """Names of the classes that have a row."""
    return tuple(_BY_NAME)
