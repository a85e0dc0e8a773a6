"""Picture files: which belong together, and what is in them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cache_dit.errors import ConfigError

PathLike: TypeAlias = str | Path
Item = TypeVar("Item")

PICTURES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_PROMPT_BYTES = 8 * 2**20
_LISTED = 10


@dataclass(frozen=True, slots=True)
class Pair:
    """Two files of one name.

    Attributes:
        name: The name of the file.
        true: The reference.
        test: What is compared with it.
    """

    name: str
    true: Path
    test: Path


@dataclass(frozen=True, slots=True)
class Prompted:
    """A picture and what it should show."""

    prompt: str
    path: Path


def matched(true: PathLike, test: PathLike, find: Callable[[Path], dict[str, Path]]) -> list[Pair]:
    """Pair two files, or the files of two folders by their names.

    Args:
        true: A file or a folder.
        test: One of the same kind.
        find: The files of a folder that count, by name.

    Raises:
        ConfigError: One is missing or of the other kind, a folder is empty, or names are in one of them only.
    """
    first, second = existing(true), existing(test)
    if first.is_dir() != second.is_dir():
        raise ConfigError(f"{first} and {second} are a file and a folder; give two files or two folders.")
    if not first.is_dir():
        return [Pair(second.name, first, second)]
    ours, theirs = find(first), find(second)
    if alone := [f"{path} has no partner" for path in _unmatched(ours, theirs)]:
        raise ConfigError(f"the folders do not match: {listing(alone)}. Files are matched by their names.")
    return [Pair(name, ours[name], theirs[name]) for name in ours]


def existing(path: PathLike) -> Path:
    """The path, if there is something.

    Raises:
        ConfigError: There is nothing.
    """
    found = Path(path)
    if not found.exists():
        raise ConfigError(f"{found} does not exist; give a file or a folder.")
    return found


def pictures_in(folder: Path) -> dict[str, Path]:
    """The pictures of a folder by name, in the order of their names; sub-folders are not entered.

    Raises:
        ConfigError: There is none.
    """
    return files_in(folder, PICTURES, "pictures")


def files_in(folder: Path, endings: Collection[str], kind: str) -> dict[str, Path]:
    """The files of a folder with one of some endings, by name and in its order; hidden ones are left out.

    Raises:
        ConfigError: There is none.
    """
    files = sorted(
        path for path in folder.iterdir() if path.suffix.lower() in endings and not path.name.startswith(".")
    )
    if not files:
        raise ConfigError(f"{folder} has no {kind} ({', '.join(sorted(endings))}); give another folder.")
    return {path.name: path for path in files}


def picture_pairs(true: PathLike, test: PathLike) -> list[Pair]:
    """The pairs of two pictures or folders of pictures, of which both have one size.

    Raises:
        ConfigError: See `matched`; or a file is no picture, or the sizes of a pair differ.
    """
    pairs = matched(true, test, pictures_in)
    sizes = [(pair, size_of(pair.true), size_of(pair.test)) for pair in pairs]
    different = [
        f"{pair.true} has {_size(first)} pixels, {pair.test} {_size(second)}"
        for pair, first, second in sizes
        if first != second
    ]
    if different:
        raise ConfigError(f"sizes differ: {listing(different)}. Compare pictures of one size.")
    return pairs


def size_of(path: Path) -> tuple[int, int]:
    """Width and height, from the head of the file.

    Raises:
        ConfigError: The file is no picture.
    """
    with _reading(path), Image.open(path) as image:
        return image.size


def load(path: Path) -> Image.Image:
    """A picture as RGB, or as it is if it has 16 bits.

    Raises:
        ConfigError: The file is no picture, is cut off, has transparent pixels, or values of unknown range.
    """
    with _reading(path), Image.open(path) as image:
        image.load()
    if image.mode in ("I", "F"):
        raise ConfigError(
            f"{path} has values of mode {image.mode!r}, whose range is unknown; save 8 or 16 bits."
        )
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema()[0] != 255:
        raise ConfigError(f"{path} has transparent pixels; save it without them.")
    return image if image.mode.startswith("I;16") else image.convert("RGB")


def as_tensor(image: Image.Image) -> Tensor:
    """[3, height, width] in float64, from 0 to 1."""
    values = np.asarray(image)
    scaled = torch.from_numpy(values.astype(np.float64) / (255 if values.dtype == np.uint8 else 65535))
    return scaled.permute(2, 0, 1) if scaled.ndim == 3 else scaled.expand(3, -1, -1)


def load_batch(paths: Sequence[Path], device: torch.device) -> Tensor:
    """[n, 3, height, width] in float64, from 0 to 1, of pictures of one size."""
    return torch.stack([as_tensor(load(path)) for path in paths]).to(device)


def same_size(items: Iterable[Item], path: Callable[[Item], Path], most: int) -> Iterator[list[Item]]:
    """Neighbours whose pictures have one size, at most so many at once."""
    batch: list[Item] = []
    held = (0, 0)
    for item in items:
        size = size_of(path(item))
        if batch and (size != held or len(batch) == most):
            yield batch
            batch = []
        batch.append(item)
        held = size
    if batch:
        yield batch


def prompted(prompts: PathLike | Sequence[str], pictures: PathLike) -> list[Prompted]:
    """Every picture with its prompt.

    Args:
        prompts: A text file in UTF-8 with a prompt on each line (empty lines do not count), or the prompts.
        pictures: A folder of pictures with a number in each name (the last one counts), from 0 or from 1
            without a gap: the first belongs to the first prompt. For one prompt also a picture.

    Raises:
        ConfigError: A file is missing or no text, or numbers and prompts do not fit together.
    """
    texts = _prompts(prompts) if isinstance(prompts, str | Path) else list(prompts)
    if not texts:
        raise ConfigError("there are no prompts; give one for each picture.")
    place = existing(pictures)
    files = _numbered(place) if place.is_dir() else {0: place}
    first = 0 if 0 in files else 1
    wanted = range(first, first + len(texts))
    if wrong := [
        *(f"no picture has number {number}" for number in wanted if number not in files),
        *(f"{path.name} has no prompt" for number, path in files.items() if number not in wanted),
    ]:
        raise ConfigError(f"{len(texts)} prompts and {len(files)} pictures do not fit: {listing(wrong)}.")
    return [Prompted(text, files[number]) for text, number in zip(texts, wanted, strict=True)]


def listing(facts: Sequence[str]) -> str:
    """The first facts, and how many more there are."""
    rest = len(facts) - _LISTED
    return "; ".join([*facts[:_LISTED], *([f"and {rest} more"] if rest > 0 else [])])


def _unmatched(ours: dict[str, Path], theirs: dict[str, Path]) -> list[Path]:
    return [
        *(path for name, path in ours.items() if name not in theirs),
        *(path for name, path in theirs.items() if name not in ours),
    ]


def _prompts(path: PathLike) -> list[str]:
    file = existing(path)
    if file.is_dir() or file.stat().st_size > _PROMPT_BYTES:
        raise ConfigError(f"{file} is no text file of at most 8 MiB; give a file with a prompt on each line.")
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is no text in UTF-8: {error}; save it as UTF-8.") from error
    return [line.strip() for line in lines if line.strip()]


def _numbered(folder: Path) -> dict[int, Path]:
    files: dict[int, Path] = {}
    for name, path in pictures_in(folder).items():
        numbers = re.findall(r"\d+", path.stem)
        if not numbers:
            raise ConfigError(
                f"{path} has no number in its name; name pictures by the number of their prompt."
            )
        other = files.setdefault(int(numbers[-1]), path)
        if other is not path:
            raise ConfigError(f"{other} and {name} have the same number; keep one picture for each prompt.")
    return files


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    # What Pillow raises on broken files, by format; a file that claims a gigantic size is one of them.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ConfigError(f"{path} cannot be read as a picture: {error}; make it again.") from error


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
