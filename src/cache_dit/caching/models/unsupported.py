"""Transformer and ControlNet classes of diffusers that have no row, each with the reason."""

from __future__ import annotations

_UNET = "it belongs to a U-Net, whose blocks change the resolution and read each other's outputs"
_SEVERAL = "it only holds several ControlNets; cache its members"

UNSUPPORTED: dict[str, str] = {
    "ControlNetModel": _UNET,
    "ControlNetUnionModel": _UNET,
    "ControlNetXSAdapter": _UNET,
    "MultiControlNetUnionModel": _UNET,
    "SparseControlNetModel": _UNET,
    "UNetControlNetXSModel": _UNET,
    "FluxMultiControlNetModel": _SEVERAL,
    "HunyuanDiT2DMultiControlNetModel": _SEVERAL,
    "MultiControlNetModel": _SEVERAL,
    "QwenImageMultiControlNetModel": _SEVERAL,
    "SD3MultiControlNetModel": _SEVERAL,
    "MiniMaxMusic3RVQDepthDecoder": "it writes the codebooks of a frame one after the other, without steps",
    "RFD4ProteinaTransformer": "it runs its layers several times a forward and rewrites the pairs between, "
    "which no output of a layer carries",
}
