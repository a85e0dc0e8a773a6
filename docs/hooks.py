"""What the site takes from the rest of the repository: the readme, results, and the measured table."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
TAKEN = (
    "examples/README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "training/README.md",
    "training/results/*.png",
    "bench/results/**/*",
)
LINK = re.compile(r"(!?)\[([^\[\]]*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add files from outside of docs at their paths in the repository; the readme is the first page."""
    taken = [path for pattern in TAKEN for path in sorted(ROOT.glob(pattern)) if path.is_file()]
    for path in taken:
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    files.append(File.generated(config, "index.md", abs_src_path=str(ROOT / "README.md")))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Put the tables in, and lead links to where their targets are on the site."""
    source = Path(page.file.abs_src_path).relative_to(ROOT).as_posix()
    here = posixpath.dirname(page.file.src_uri) or "."

    def led(found: re.Match[str]) -> str:
        image, text, path, anchor = found.groups(default="")
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        uri = "index.md" if target == "README.md" else target.removeprefix("docs/")
        if files.get_file_from_path(uri) is None and (ROOT / target).exists():
            # Code and folders are no pages, and where the repository can be read is not known here.
            return text
        return f"{image}[{text}]({posixpath.relpath(uri, here)}{anchor})"

    # In the page, not beside it: so a diagram has the colours of the palette that the reader has chosen.
    markdown = re.sub(
        r"^!\[.*?\]\((assets/\w+\.svg)\)$", lambda found: diagram(found[1]), markdown, flags=re.MULTILINE
    )
    markdown = re.sub(r"<!-- measured: (.+?) -->", lambda found: measured(found[1]), markdown)
    return "".join(
        part if part.startswith("```") else LINK.sub(led, part)
        for part in re.split(r"(^```.*?^```)", markdown, flags=re.DOTALL | re.MULTILINE)
    )


def measured(heading: str) -> str:
    """The best setting of each system, below this heading of the comparison; the weakest ones folded."""
    text = (ROOT / "bench" / "results" / "compare.md").read_text(encoding="utf-8")
    best = text.split("\n## Best mean PSNR at a budget\n")[1].split("\n## ")[0]
    (part,) = [part for part in best.split("\n### ") if part.startswith(f"{heading}\n")]
    table = [line for line in part.splitlines() if line.startswith("|")]
    ends = next(place for place, line in enumerate(table) if line.startswith("| fewer steps |")) + 1
    shown = "\n".join(table[:ends])
    if not table[ends:]:
        return shown
    summary = f"Below fewer steps at half of the FLOPs: {len(table[ends:])} more"
    folded = "\n".join(f"    {line}" for line in table[:2] + table[ends:])
    return f'{shown}\n\n??? note "{summary}"\n\n{folded}'


def diagram(path: str) -> str:
    """The drawing of a file, without the style sheet that it needs where it is shown as a picture."""
    drawing = (ROOT / "docs" / path).read_text(encoding="utf-8")
    return f'<figure class="diagram">{re.sub("<style>.*?</style>", "", drawing)}</figure>'
