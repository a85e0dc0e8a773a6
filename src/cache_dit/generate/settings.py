"""What is drawn and what is put on the model, checked before anything is loaded."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch

from cache_dit.attention import checked_attn_backend
from cache_dit.caching.options import whole
from cache_dit.configs import load_sections
from cache_dit.configs.reading import parse, read_text
from cache_dit.errors import ConfigError, nearest
from cache_dit.generate.families import DEMO, Family
from cache_dit.parallelism import ParallelismConfig
from cache_dit.presets import Preset
from cache_dit.quantize.apply import checked_quant_type
from cache_dit.quantize.types import SCHEMES, QuantType
from cache_dit.shorthand import parse_config

PROMPT = "a red house on grass at day with mountains"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

_FILES = (".yaml", ".yml", ".json")
_CACHE = ("cache_config", "calibrator_config", "params_modifiers")
_SIZES = {"ulysses": "ulysses_size", "ring": "ring_size", "tp": "tp_size"}


class Offload(StrEnum):
    """Where weights wait while they are not needed.

    Attributes:
        MODEL: In main memory, a component of the pipeline at a time.
        SEQUENTIAL: In main memory, a layer at a time: the least memory, and slow.
        GROUP: In main memory, a block of the transformer at a time.
    """

    MODEL = "model"
    SEQUENTIAL = "sequential"
    GROUP = "group"


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One picture or video.

    Attributes:
        family: The model.
        prompt: What to draw. Default: a red house.
        negative_prompt: What not to draw; an error where it would do nothing. None (default): nothing.
        image: Picture to start from, where the family needs one. None (default): there is none.
        height: In pixels. None (default, as of the next four): as the family has it.
        width: In pixels. Default None.
        frames: Of a video. Default None.
        steps: Denoising steps. Default None.
        cfg: Scale of guidance. Default None.
        seed: Of the noise, which is drawn on the CPU, so that it is the same everywhere. Default 0.

    Raises:
        ConfigError: A value does not fit the family.
    """

    family: Family
    prompt: str = PROMPT
    negative_prompt: str | None = None
    image: Path | None = None
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    steps: int | None = None
    cfg: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        family = self.family
        for name in ("height", "width", "frames", "steps"):
            value = getattr(self, name)
            value = getattr(family, name) if value is None else value
            whole(1)(name, value)
            object.__setattr__(self, name, value)
        for name in ("height", "width"):
            value = getattr(self, name)
            if value % family.multiple:
                fitting = max(round(value / family.multiple), 1) * family.multiple
                raise ConfigError(
                    f"{name} is {value}; {family.name} needs a multiple of {family.multiple}, such as "
                    f"{fitting}."
                )
        if not family.video and self.frames != 1:
            raise ConfigError(f"frames is {self.frames}, but {family.name} makes pictures; leave it out.")
        if self.cfg is not None and family.cfg is None:
            raise ConfigError(f"cfg is {self.cfg:g}, but {family.pipeline} takes no scale; leave it out.")
        if self.negative_prompt is not None and not family.negative:
            raise ConfigError(
                f"negative_prompt is given, but {family.name} has guidance built in and would ignore it; "
                "leave it out."
            )
        if family.image != (self.image is not None):
            fact = "needs a picture to start from; give" if family.image else "starts from noise; leave out"
            raise ConfigError(f"{family.name} {fact} image.")

    def arguments(self) -> dict[str, Any]:
        """What the pipeline is called with."""
        family = self.family
        given: dict[str, Any] = {
            "prompt": self.prompt,
            "height": self.height,
            "width": self.width,
            "num_inference_steps": self.steps,
            **family.call,
        }
        if family.cfg is not None:
            given[family.cfg_name] = family.cfg if self.cfg is None else self.cfg
        if self.negative_prompt is not None or family.cfg_name == "true_cfg_scale":
            # These guide only where there is a negative prompt, be it a blank one.
            given["negative_prompt"] = " " if self.negative_prompt is None else self.negative_prompt
        if family.video:
            given[family.frames_name] = self.frames
        return given


@dataclass(frozen=True, kw_only=True)
class Stack:
    """What is put on the pipeline, in whatever order it was given.

    Attributes:
        model: Folder or hub id. None (default): that of the family.
        device: Where it runs. Default: the CPU.
        dtype: Of the weights. None (default): bfloat16 on a GPU, else float32; the demo is always float32.
        cache: Arguments of `enable_cache`; empty: its defaults. None (default): no cache.
        parallelism: How processes share a sample. None (default): there is one process.
        attention: Name for `set_attn_backend`. None (default): as it is.
        quantize: Arguments of `quantize`. None (default): nothing is quantized.
        compile: Arguments of `set_compile_configs`. None (default): nothing is compiled.
        offload: Where weights wait. None (default): all stay on the device.
        vae_tiling: Let the VAE decode tiles: less memory, and a picture that is a little different. Default
            False.
    """

    model: str | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype | None = None
    cache: Mapping[str, Any] | None = None
    parallelism: ParallelismConfig | None = None
    attention: str | None = None
    quantize: Mapping[str, Any] | None = None
    compile: Mapping[str, Any] | None = None
    offload: Offload | None = None
    vae_tiling: bool = False

    @property
    def quant_type(self) -> QuantType | None:
        """The type of quantization, None if there is none."""
        return (
            None
            if self.quantize is None
            else QuantType(self.quantize.get("quant_type", QuantType.FLOAT8_PER_ROW))
        )


def stack_of(
    family: Family,
    *,
    model: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    cache: bool | None = None,
    config: str | None = None,
    preset: str | None = None,
    parallel: str | None = None,
    attn: str | None = None,
    quantize: str | None = None,
    compile_blocks: bool | None = None,
    offload: Offload | None = None,
    vae_tiling: bool = False,
    **parallel_options: Any,
) -> Stack:
    """Check what users have written, and read their configuration file.

    Args:
        family: The model.
        model: Folder or hub id in the place of that of the family.
        device: Name for torch. None: the accelerator of this process if there is one, else "cpu".
        dtype: A key of `DTYPES`.
        cache: Whether to cache. None: where there is a configuration.
        config: A file of docs/configs.md, by its ending, or a text for `cache_dit.parse_config`.
        preset: A preset, with arguments in parentheses or without.
        parallel: "ulysses", "ring", "tp", or several with sizes: "ulysses:2,ring:2".
        attn: Name of an attention kernel; this and the next two come before what the file says.
        quantize: A `QuantType`.
        compile_blocks: Whether to compile.
        offload: Where weights wait.
        vae_tiling: Let the VAE decode tiles.
        **parallel_options: More arguments of `ParallelismConfig`; False and empty ones count as absent.

    Returns:
        What is to be put on the pipeline.

    Raises:
        ConfigError: Something is unknown, does not fit together, or cannot be had on this machine.
        OSError: The configuration file cannot be read.
    """
    sections = _sections(config, preset)
    configured = {name: sections[name] for name in _CACHE if name in sections}
    attention = attn or sections.get("attention_backend")
    quantized = {"quant_type": quantize} if quantize else sections.get("quantize_config")
    wants_compile = "compile_config" in sections if compile_blocks is None else compile_blocks
    stack = Stack(
        model=_checked_model(family, model),
        device=_device(device),
        dtype=_dtype(family, dtype),
        cache=configured if (bool(configured) if cache is None else cache) else None,
        parallelism=_parallelism(parallel, sections.get("parallelism_config"), parallel_options),
        attention=None if attention is None else checked_attn_backend(attention),
        quantize=quantized,
        compile=sections.get("compile_config", {}) if wants_compile else None,
        offload=offload,
        vae_tiling=vae_tiling,
    )
    if quantized is not None:
        checked_quant_type(quantized.get("quant_type", QuantType.FLOAT8_PER_ROW))
    _check_movable(stack)
    return stack


def _check_movable(stack: Stack) -> None:
    """What weights are offloaded from must be another place, and they must be free to go."""
    if stack.offload is Offload.SEQUENTIAL and stack.device.type == "cpu":
        raise ConfigError(
            "offload is 'sequential', but the device is the CPU, where weights are in main memory anyway; "
            "leave it out."
        )
    kind, held = stack.quant_type, stack.offload is Offload.GROUP and stack.compile is not None
    if held and kind is not None and SCHEMES[kind].package == "torchao":
        raise ConfigError(
            f"quantize is {str(kind)!r}, compile is on and offload is 'group', but torch keeps hold of "
            "compiled weights of torchao, so they cannot be moved; leave one of them out, or give offload "
            "'model' or quantize 'bnb_nf4'."
        )


def processes() -> int:
    """How many processes torchrun has started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this one, from 0."""
    return int(os.environ.get("RANK", "0"))


def shows_progress() -> bool:
    """Whether somebody looks at the bars of this process."""
    return rank() == 0 and sys.stderr.isatty()


def _sections(config: str | None, preset: str | None) -> dict[str, Any]:
    if config is not None and preset is not None:
        raise ConfigError("config and preset are both given; give one of them.")
    if preset is not None and not preset[:1].islower():
        raise ConfigError(f"preset is {preset!r}; give a name such as taylorseer, or this as config.")
    text = config or preset
    if text is None:
        return {}
    if preset is None and Path(text).suffix.lower() in _FILES:
        return load_sections(Path(text))
    made: Preset = parse_config(text)
    # Whole, so that it is still known for which model it was made.
    return {"cache_config": made}


def _checked_model(family: Family, model: str | None) -> str | None:
    if model is None:
        return None
    path = Path(model).expanduser()
    if not path.exists():
        # Hub ids have one slash and no dot in front.
        if model.count("/") != 1 or model.startswith((".", "/", "~")):
            raise ConfigError(f"model is {model!r}, and there is no such folder; give one, or a hub id.")
        return model
    index = path / "model_index.json"
    if not index.is_file():
        raise ConfigError(
            f"{path} has no model_index.json; give a folder that save_pretrained of a pipeline has written."
        )
    found = parse(str(index), read_text(index))
    check_class(family, found.get("_class_name") if isinstance(found, dict) else None, str(path))
    return str(path)


def check_class(family: Family, found: object, where: str) -> None:
    """Raise `ConfigError` where a model is of another pipeline than the family's."""
    if found != family.pipeline:
        raise ConfigError(f"{where} is a {found}, but {family.name} is a {family.pipeline}; give its family.")


def _dtype(family: Family, name: str | None) -> torch.dtype | None:
    if name is None:
        return torch.float32 if family is DEMO else None
    if name not in DTYPES:
        hint = nearest(name, DTYPES)
        meant = f" Did you mean {hint!r}?" if hint else ""
        raise ConfigError(f"dtype is {name!r}; allowed are {', '.join(DTYPES)}.{meant}")
    return DTYPES[name]


def _device(name: str | None) -> torch.device:
    # torch 2.6 raises where there is none.
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name is None and accelerator is None:
        return torch.device("cpu")
    try:
        device = torch.device(name or str(accelerator))
    except RuntimeError as error:
        raise ConfigError(f"device is {name!r}, which torch does not know; give cuda or cpu.") from error
    if device.type in ("cpu", "meta"):
        return torch.device("cpu")
    if accelerator is None or accelerator.type != device.type:
        has = "none" if accelerator is None else str(accelerator)
        raise ConfigError(f"device is {name!r}, but the accelerator of this machine is {has}; give cpu.")
    if device.index is None:
        device = torch.device(device.type, int(os.environ.get("LOCAL_RANK", "0")))
    count = torch.accelerator.device_count()
    if device.index >= count:
        raise ConfigError(
            f"process {device.index} of this machine has no device: there are {count}; start at most {count} "
            "processes, or give --device cpu."
        )
    return device


def _parallelism(
    text: str | None, of_file: ParallelismConfig | None, options: Mapping[str, Any]
) -> ParallelismConfig | None:
    given = {name: value for name, value in options.items() if value}
    made = of_file
    if text is not None:
        made = ParallelismConfig(**_sizes(text), **given)
    elif given:
        raise ConfigError(f"{', '.join(given)} given, but not parallel; give it too, such as ulysses.")
    count = processes()
    if made is None:
        if count > 1:
            raise ConfigError(
                f"there are {count} processes, and each would draw the same; give parallel, such as ulysses."
            )
        return None
    if "WORLD_SIZE" not in os.environ:
        raise ConfigError(
            "parallel needs several processes; start them: torchrun --nproc_per_node=2 --no-python cache-dit "
            "generate ..."
        )
    fixed = made.resolved(count)
    together = int(fixed.ring_size or 1) * int(fixed.ulysses_size or 1) * int(fixed.tp_size or 1)
    if together != count:
        raise ConfigError(
            f"parallel takes {together} processes but there are {count}, so others would draw the same; "
            f"start {together}, or leave a size out."
        )
    return fixed


def _sizes(text: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in text.split(","):
        name, colon, size = part.strip().partition(":")
        if name not in _SIZES or _SIZES[name] in found or (colon and not size.isdecimal()):
            raise ConfigError(
                f"parallel is {text!r}; give ulysses, ring or tp, or several with their sizes, as in "
                "ulysses:2,ring:2."
            )
        found[_SIZES[name]] = int(size) if colon else "auto"
    return found
