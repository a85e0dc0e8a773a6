"""Which pipelines and models are known, for users who ask before they load one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from cache_dit.caching.models.row import Row
from cache_dit.caching.models.rows import ROWS

_HEAD = ("| Model | Pipelines | Block lists | CFG |", f"|{' --- |' * 4}")
_UNKNOWN = "?"
_CLASS = re.compile(r"^class (\w+)\(", re.MULTILINE)
_NAMED = re.compile(r"cache_context\(\s*(?!\s*[\"']cond_uncond)")
_DOUBLED = re.compile(r"cat\(\[latents\] \* 2")
_CALL = re.compile(r"(?:self\.(?:\w*transformer|prior)|current_model)\(")
_GUIDED = re.compile(
    r"do_(?:\w+_)?cfg|do_classifier_free_guidance|uncond(?!itioned)|neg_noise|guidance_scale >"
)


def supported_pipelines() -> tuple[int, list[str]]:
    """The families of diffusers pipelines that `enable_cache` knows.

    Returns:
        Their number, and the beginnings of their class names with a star: `(94, ["AuraFlow*", ...])`.
    """
    names = [name for row in ROWS for name in _families(row)]
    return len(names), names


def supported_matrix() -> str:
    """A markdown table of all known transformer classes, with what is known of each.

    The column on guidance (CFG) is read from the installed diffusers: how the pipelines call the model; "?"
    where no pipeline tells. `cache-dit models` shows besides which classes can be spread over processes.

    Returns:
        The table, one line a model.
    """
    try:
        import diffusers
    except ImportError:
        sources = {}
    else:
        files = sorted((Path(diffusers.__file__).parent / "pipelines").rglob("*.py"))
        texts = [file.read_text(encoding="utf-8") for file in files]
        # The text of the file that each pipeline class is defined in.
        sources = {name: text for text in texts for name in _CLASS.findall(text)}
    return "\n".join([*_HEAD, *(_line(row, sources) for row in ROWS)])


def family_of(pipeline: str) -> Row | None:
    """The row whose pipelines a class name belongs to: the longest beginning decides."""
    starts = {start: row for row in ROWS for start in row.pipelines if pipeline.startswith(start)}
    return starts[max(starts, key=len)] if starts else None


def guidance_of(source: str) -> str | None:
    """How the source of a pipeline calls its transformer for guidance; None where it calls none."""
    calls = len(_CALL.findall(source))
    if not calls:
        return None
    if _NAMED.search(source):
        return "named calls"
    if not _GUIDED.search(source):
        return "none"
    return "separate calls" if calls > 1 and not _DOUBLED.search(source) else "one batch"


def _families(row: Row) -> list[str]:
    return [f"{start.removesuffix('Pipeline')}*" for start in row.pipelines]


def _line(row: Row, sources: Mapping[str, str]) -> str:
    kinds = {guidance_of(text) for name, text in sources.items() if family_of(name) is row} - {None}
    cells = (
        row.name,
        ", ".join(_families(row)),
        ", ".join(f"`{flow.label}`" for flow in row.lists),
        ", ".join(sorted(filter(None, kinds))) or _UNKNOWN,
    )
    return f"| {' | '.join(cells)} |"
