"""What a run leaves behind: a file whose name tells the configuration, and the same as plain data."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import re
import tempfile
from pathlib import Path
from typing import Any

from cache_dit.errors import CacheDiTError, ConfigError
from cache_dit.files import write_whole
from cache_dit.generate.run import Outcome
from cache_dit.generate.settings import Drawing, Stack
from cache_dit.stats import strify

MARK = "made by cache-dit generate"
"""What tells a file of this command from others."""

_LONGEST = 200
"""Characters of a tag: file systems take 255 bytes for a name."""


def suffix_of(drawing: Drawing, out: Path) -> str:
    """The ending of the file, and with it its format; for a folder that of the family.

    Args:
        drawing: What was drawn: a picture or a video.
        out: The file or folder.

    Returns:
        ".png", ".mp4" or ".gif".

    Raises:
        CacheDiTError: The format is unknown here, or its package is not installed.
    """
    known = (".mp4", ".gif") if drawing.family.video else (".png",)
    suffix = out.suffix.lower() if _is_file(out) else known[0]
    if suffix not in known:
        kind = "videos" if drawing.family.video else "pictures"
        raise ConfigError(f"out is {out}; {kind} are written as {' or '.join(known)}. Or give a folder.")
    if suffix == ".mp4" and importlib.util.find_spec("av") is None:
        raise CacheDiTError(
            "mp4 is written by PyAV, which is not installed; run `pip install 'cache-dit[video]'`, or give "
            "--out video.gif."
        )
    return suffix


def tag(stack: Stack, outcome: Outcome) -> str:
    """The configuration in short form: `C1_Q1_float8_per_row_DBCache_F1B0_..._S14_Ulysses2__flash_3`.

    Args:
        stack: What was put on the pipeline.
        outcome: The result, which knows the cached steps.

    Returns:
        Letters that a file name may have, cut off where they are many.
    """
    parts = stack.parallelism
    quantized = stack.quant_type
    # Equal for all transformers as a rule.
    cache = "+".join(dict.fromkeys(map(strify, outcome.stats))) or "NONE"
    words = [f"C{int(stack.compile is not None)}", f"Q{int(quantized is not None)}", quantized, cache]
    if parts is not None:
        sizes = {"Ring": parts.ring_size, "Ulysses": parts.ulysses_size, "TP": parts.tp_size}
        words += [f"{name}{size}" for name, size in sizes.items() if size not in (None, 1)]
        flags = ("ulysses_anything", "ulysses_float8", "ulysses_async")
        words += [name for name in flags if getattr(parts, name)]
    words += [stack.attention and stack.attention.strip("_"), stack.offload]
    text = re.sub(r"[^\w+.-]", "-", "_".join(str(word) for word in words if word))
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST - 9]}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return text


def path_of(drawing: Drawing, stack: Stack, outcome: Outcome, out: Path) -> Path:
    """Where the picture is written: the file that was given, or one in that folder.

    Args:
        drawing: What was drawn.
        stack: What was put on the pipeline.
        outcome: The result.
        out: The file or folder.

    Returns:
        The path of the file.
    """
    if _is_file(out):
        return out
    frames = f"x{drawing.frames}" if drawing.family.video else ""
    seed = f".seed{drawing.seed}" if drawing.seed else ""
    size = f"{drawing.width}x{drawing.height}{frames}"
    return out / f"{drawing.family.name}.{size}{seed}.{tag(stack, outcome)}{suffix_of(drawing, out)}"


def save(drawing: Drawing, outcome: Outcome, path: Path) -> None:
    """Write the picture or video, with prompt and seed inside of a picture.

    Args:
        drawing: What was drawn.
        outcome: The result.
        path: The file, by `path_of`.

    Raises:
        ConfigError: There is a file that this command has not written.
        OSError: The file cannot be written.
    """
    made = {".png": _png, ".gif": _gif, ".mp4": _mp4}[path.suffix.lower()](drawing, outcome)
    write_whole(path, made, mark=MARK)


def as_data(drawing: Drawing, stack: Stack, outcome: Outcome, path: Path) -> dict[str, Any]:
    """Everything that a program may want to know, for JSON.

    Args:
        drawing: What was drawn.
        stack: What was put on the pipeline.
        outcome: The result.
        path: Where it was written.

    Returns:
        Words, numbers, lists and mappings.
    """
    family = drawing.family
    return {
        "family": family.name,
        "model": stack.model or family.model or family.name,
        "prompt": drawing.prompt,
        "negative_prompt": drawing.negative_prompt,
        "seed": drawing.seed,
        "height": drawing.height,
        "width": drawing.width,
        "frames": drawing.frames,
        "steps": drawing.steps,
        "device": str(stack.device),
        "configuration": tag(stack, outcome),
        "seconds": list(outcome.seconds),
        "seconds_median": outcome.median,
        "peak_memory_bytes": outcome.peak_memory,
        "cache": [
            {
                "model": one.model,
                "config": one.config,
                "steps": one.total_steps,
                "cached_steps": one.cached_steps,
                "flops_saved": one.flops_saved,
            }
            for one in outcome.stats
        ],
        "file": str(path),
    }


def _is_file(out: Path) -> bool:
    return bool(out.suffix) and not out.is_dir()


def _png(drawing: Drawing, outcome: Outcome) -> bytes:
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("Software", MARK)
    text.add_itxt("prompt", drawing.prompt)
    text.add_text("seed", str(drawing.seed))
    made = io.BytesIO()
    outcome.frames[0].save(made, "PNG", pnginfo=text)
    return made.getvalue()


def _gif(drawing: Drawing, outcome: Outcome) -> bytes:
    made = io.BytesIO()
    first, *others = outcome.frames
    duration = round(1000 / drawing.family.fps)
    first.save(
        made, "GIF", save_all=True, append_images=others, duration=duration, loop=0, comment=MARK.encode()
    )
    return made.getvalue()


def _mp4(drawing: Drawing, outcome: Outcome) -> bytes:
    import av
    import numpy as np

    first = outcome.frames[0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "video.mp4")
        # The index in front, so that players can begin early; and with it the mark.
        with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
            container.metadata["comment"] = MARK
            stream: Any = container.add_stream("libx264", rate=drawing.family.fps)
            # H.264 has half the resolution for colours, so sizes are even; 18 looks lossless.
            stream.width, stream.height = first.width // 2 * 2, first.height // 2 * 2
            stream.pix_fmt, stream.options = "yuv420p", {"crf": "18"}
            for picture in outcome.frames:
                pixels = np.asarray(picture.convert("RGB"))[: stream.height, : stream.width]
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path.read_bytes()
