"""The types of quantization: what each needs of a Linear and of the hardware, and how it converts one."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

import torch
from torch import nn

# Amounts smaller than this are as good as zero in bfloat16 sums, but keep a scale from being zero.
_SMALLEST = 1e-12
_BF16 = (torch.bfloat16,)
_FLOATS = (torch.bfloat16, torch.float16, torch.float32)


class QuantType(StrEnum):
    """How weights are stored, and in what the products are computed.

    `per_row`, `per_tensor` and `blockwise` quantize the activations too, at every call, and multiply in
    that type. `weight_only` and the types of bitsandbytes restore the weights before they multiply.

    Attributes:
        FLOAT8_PER_ROW: float8 (e4m3) with a scale for every row of the weight and every token.
        FLOAT8_PER_TENSOR: float8 with one scale for the weight and one for the activation.
        FLOAT8_BLOCKWISE: float8 with a scale for 128 x 128 weights and for 1 x 128 activations.
        FLOAT8_WEIGHT_ONLY: float8 weights, a scale for every row.
        INT8_PER_ROW: int8 with a scale for every row of the weight and every token.
        INT8_PER_TENSOR: int8 with one scale for the weight and one for the activation.
        INT8_WEIGHT_ONLY: int8 weights, a scale for every row.
        INT4_WEIGHT_ONLY: int4 weights with a scale and a zero for 128 of them.
        BNB_NF4: bitsandbytes' 4-bit NormalFloat (QLoRA, arXiv 2305.14314).
        BNB_FP4: bitsandbytes' 4-bit float.
        BNB_INT8: bitsandbytes' LLM.int8 (arXiv 2208.07339); features over 6.0 stay in half precision.
    """

    FLOAT8_PER_ROW = "float8_per_row"
    FLOAT8_PER_TENSOR = "float8_per_tensor"
    FLOAT8_BLOCKWISE = "float8_blockwise"
    FLOAT8_WEIGHT_ONLY = "float8_weight_only"
    INT8_PER_ROW = "int8_per_row"
    INT8_PER_TENSOR = "int8_per_tensor"
    INT8_WEIGHT_ONLY = "int8_weight_only"
    INT4_WEIGHT_ONLY = "int4_weight_only"
    BNB_NF4 = "bnb_nf4"
    BNB_FP4 = "bnb_fp4"
    BNB_INT8 = "bnb_int8"

    @classmethod
    def _missing_(cls, value: object) -> QuantType | None:
        return _OLDER_NAMES.get(value)


_OLDER_NAMES: dict[object, QuantType] = {
    "float8": QuantType.FLOAT8_PER_ROW,
    "fp8_w8a8_dq": QuantType.FLOAT8_PER_ROW,
    "fp8_w8a16_wo": QuantType.FLOAT8_WEIGHT_ONLY,
    "int8": QuantType.INT8_PER_ROW,
    "int8_w8a8_dq": QuantType.INT8_PER_ROW,
    "int8_w8a16_wo": QuantType.INT8_WEIGHT_ONLY,
    "int4_w4a16_wo": QuantType.INT4_WEIGHT_ONLY,
    "bitsandbytes_4bit": QuantType.BNB_NF4,
}


@dataclass(frozen=True, slots=True)
class Scheme:
    """What belongs to one type.

    Attributes:
        package: What must be installed.
        convert: Quantizes a Linear, in place or by returning what takes its place.
        multiple: Both sizes of a Linear must be multiples of it.
        dtypes: Of the weight.
        swaps: Another module takes the place of the Linear.
        square_128: Whether torchao tells a weight of 128 x 128 from one block.
        hardware: What this machine lacks, None if nothing.
    """

    package: str
    convert: Callable[[nn.Linear], nn.Module]
    multiple: int = 1
    dtypes: tuple[torch.dtype, ...] = _FLOATS
    swaps: bool = False
    square_128: bool = True
    hardware: Callable[[], str | None] = lambda: None

    def objection(self, linear: nn.Linear) -> str | None:
        """Why a Linear must stay as it is, None if it need not."""
        rows, columns = linear.out_features, linear.in_features
        if type(linear.weight) is not nn.Parameter:
            return (
                f"has a weight of type {type(linear.weight).__name__}, so it is quantized or sharded already"
            )
        if linear.weight.dtype not in self.dtypes:
            return f"has {linear.weight.dtype}; needed is {' or '.join(map(str, self.dtypes))}"
        if linear.weight.is_meta:
            return "has no weights yet (meta device)"
        if rows % self.multiple or columns % self.multiple:
            return f"is no multiple of {self.multiple} in both sizes"
        if rows == columns == 128 and not self.square_128:
            return "is 128 x 128, which torchao takes for one block"
        if self.swaps and type(linear) is not nn.Linear:
            return f"is of a class of its own, {type(linear).__name__}, which cannot be replaced"
        return None


def float8_products() -> str | None:
    """What this machine lacks to multiply in float8."""
    if torch.xpu.is_available():
        return None
    if not torch.cuda.is_available():
        return "no GPU is there"
    major, minor = torch.cuda.get_device_capability()
    return None if (major, minor) >= (8, 9) else f"this GPU has compute capability {major}.{minor}, under 8.9"


def _blockwise_products() -> str | None:
    return float8_products() or (None if importlib.util.find_spec("triton") else "triton is not installed")


def _int4_products() -> str | None:
    if not torch.cuda.is_available():
        return "no GPU is there"
    major, minor = torch.cuda.get_device_capability()
    return None if major >= 8 else f"this GPU has compute capability {major}.{minor}, under 8.0"


def _torchao(make: Callable[[], Any], linear: nn.Linear) -> nn.Module:
    from torchao.quantization import quantize_

    quantize_(linear, make(), filter_fn=lambda module, _: module is linear)
    _mend_zero_scales(linear.weight)
    return linear


def _mend_zero_scales(weight: Any) -> None:
    """A block of zeros has scale 0, and 0 / 0 is NaN; with scale 1 it is zeros again."""
    scale, data = getattr(weight, "scale", None), getattr(weight, "qdata", None)
    if scale is not None and data is not None and data.is_floating_point() and bool((scale == 0).any()):
        scale.masked_fill_(scale == 0, 1)
        data.copy_(data.float().nan_to_num_(0.0))


def _float8(*granularity: str) -> Any:
    """Activations and weights in float8.

    The bound keeps the scale of an all-zero token from being 0, which would make its whole output NaN.
    """
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, PerTensor
    from torchao.quantization.granularity import PerBlock

    kinds = {"row": PerRow(), "tensor": PerTensor(), "1x128": PerBlock([1, 128]), "128": PerBlock([128, 128])}
    return Float8DynamicActivationFloat8WeightConfig(
        granularity=[kinds[name] for name in granularity],
        activation_value_lb=_SMALLEST,
        set_inductor_config=False,
    )


def _float8_weights() -> Any:
    from torchao.quantization import Float8WeightOnlyConfig

    return Float8WeightOnlyConfig(set_inductor_config=False)


def _int8(granularity: str) -> Any:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, PerRow, PerTensor

    return Int8DynamicActivationInt8WeightConfig(
        granularity=PerRow() if granularity == "row" else PerTensor(), set_inductor_config=False
    )


def _int8_weights() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return Int8WeightOnlyConfig(set_inductor_config=False)


def _int4_weights() -> Any:
    from torchao.quantization import Int4WeightOnlyConfig
    from torchao.quantization.quantize_.workflows import Int4PackingFormat

    # This layout is read by a kernel of torch itself.
    return Int4WeightOnlyConfig(
        group_size=128, int4_packing_format=Int4PackingFormat.TILE_PACKED_TO_4D, set_inductor_config=False
    )


def _bnb_4bit(kind: str, linear: nn.Linear) -> nn.Module:
    import bitsandbytes as bnb

    made = bnb.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=linear.weight.dtype,
        quant_type=kind,
        device="meta",
    )
    made.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type=kind, module=made)
    return _replacement(made, linear)


def _bnb_int8(linear: nn.Linear) -> nn.Module:
    import bitsandbytes as bnb

    made = bnb.nn.Linear8bitLt(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        has_fp16_weights=False,
        threshold=6.0,
        device="meta",
    )
    # From the host: moved from one GPU to where it is, it would not be quantized before the first product.
    made.weight = bnb.nn.Int8Params(linear.weight.data.cpu(), requires_grad=False, has_fp16_weights=False)
    return _replacement(made, linear)


def _replacement(made: nn.Module, linear: nn.Linear) -> nn.Module:
    made.bias = linear.bias
    # bitsandbytes quantizes when a weight is moved.
    return made.to(linear.weight.device).train(linear.training)


def _ao(make: Callable[..., Any], *details: str, **needs: Any) -> Scheme:
    return Scheme("torchao", partial(_torchao, partial(make, *details)), **needs)


SCHEMES: dict[QuantType, Scheme] = {
    QuantType.FLOAT8_PER_ROW: _ao(_float8, "row", "row", multiple=16, dtypes=_BF16, hardware=float8_products),
    QuantType.FLOAT8_PER_TENSOR: _ao(
        _float8, "tensor", "tensor", multiple=16, square_128=False, hardware=float8_products
    ),
    QuantType.FLOAT8_BLOCKWISE: _ao(
        # Its product is bfloat16 whatever goes in.
        _float8,
        "1x128",
        "128",
        multiple=128,
        dtypes=_BF16,
        square_128=False,
        hardware=_blockwise_products,
    ),
    QuantType.FLOAT8_WEIGHT_ONLY: _ao(_float8_weights),
    # On a GPU torchao moves other sizes to the host and back at every call.
    QuantType.INT8_PER_ROW: _ao(_int8, "row", multiple=8),
    QuantType.INT8_PER_TENSOR: _ao(_int8, "tensor", multiple=8),
    QuantType.INT8_WEIGHT_ONLY: _ao(_int8_weights),
    QuantType.INT4_WEIGHT_ONLY: _ao(_int4_weights, multiple=128, dtypes=_BF16, hardware=_int4_products),
    QuantType.BNB_NF4: Scheme("bitsandbytes", partial(_bnb_4bit, "nf4"), swaps=True),
    QuantType.BNB_FP4: Scheme("bitsandbytes", partial(_bnb_4bit, "fp4"), swaps=True),
    QuantType.BNB_INT8: Scheme("bitsandbytes", _bnb_int8, swaps=True),
}
