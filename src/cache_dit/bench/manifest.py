"""What a benchmark has drawn so far: one folder for each setting, with its pictures and a line for each.

A picture is written first, then the manifest with its line; both appear whole or not at all. So whatever
ends a run costs at most the picture that was being drawn.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cache_dit.errors import ConfigError
from cache_dit.files import write_whole

RUN = "run.json"
MANIFEST = "manifest.jsonl"
_MARK = "cache-dit bench"
_LARGEST = 64 * 2**20
_SHOWN = 80


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """One picture that is done: a line of a manifest.

    Attributes:
        number: Place of its prompt among the prompts of the run, from 0.
        file: Name of the picture in the folder of the manifest.
        sha256: Of that file.
        prompt: What was asked for.
        seed: Seed of the initial noise.
        seconds: Time of the whole picture, text encoders and decoder included: on the clock on the wall, for
            the demo model those that its one thread was at work.
        flops: FLOPs of the transformers over the run; None where they cannot be counted.
        steps: Forwards of each branch that were decided over, by transformer and branch; empty without cache.
        cached: Those of them that were skipped, in the same order.
    """

    number: int
    file: str
    sha256: str
    prompt: str
    seed: int
    seconds: float
    flops: float | None
    steps: tuple[int, ...]
    cached: tuple[int, ...]

    @classmethod
    def of(cls, line: str) -> Drawn:
        """Read one line.

        Raises:
            ValueError: It is no such line.
        """
        found = json.loads(line)
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(found, dict) or found.keys() != names:
            raise ValueError(f"its keys are not {', '.join(sorted(names))}")
        numbers = (found["number"], found["seed"], *found["steps"], *found["cached"])
        texts = (found["file"], found["sha256"], found["prompt"])
        reals = (found["seconds"], 0.0 if found["flops"] is None else found["flops"])
        if not (
            all(type(value) is int for value in numbers)
            and all(type(value) is str for value in texts)
            and all(type(value) in (int, float) and 0 <= value < float("inf") for value in reals)
            and found["file"] == Path(found["file"]).name
        ):
            raise ValueError("a value has the wrong type")
        return cls(**found | {"steps": tuple(found["steps"]), "cached": tuple(found["cached"])})


def claim(out: Path, identity: Mapping[str, Any]) -> None:
    """Make a folder that of one run, or check that it is.

    Args:
        out: The folder; it is made where there is none.
        identity: What must be the same for pictures and times to stand in one table.

    Raises:
        ConfigError: The folder holds another run, or something else.
    """
    file = out / RUN
    wanted = {"made by": _MARK, **identity}
    if not file.exists():
        # A run that was killed at its very start may have left a part of the file behind.
        if out.exists() and (not out.is_dir() or any(path.suffix != ".part" for path in out.iterdir())):
            raise ConfigError(f"{out} exists and holds no benchmark; give another folder.")
        write_whole(file, json.dumps(wanted, indent=1, ensure_ascii=False) + "\n")
        return
    found = _run_of(file)
    for name in dict.fromkeys((*wanted, *found)):
        if found.get(name) != wanted.get(name):
            raise ConfigError(
                f"{out} holds another run: its {name} is {_short(found.get(name))}, that of this one is "
                f"{_short(wanted.get(name))}; give another folder, or remove that one."
            )


def read_drawn(folder: Path) -> dict[int, Drawn]:
    """The pictures of a folder that are done, by number; without those whose file is not as it was written.

    Raises:
        ConfigError: The manifest is none.
    """
    path = folder / MANIFEST
    if not path.exists():
        return {}
    done = {}
    for place, line in enumerate(_text(path).splitlines(), start=1):
        try:
            drawn = Drawn.of(line)
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"{path}, line {place} is no picture of a benchmark ({error}); remove the line."
            ) from error
        picture = folder / drawn.file
        if picture.is_file() and hashlib.sha256(picture.read_bytes()).hexdigest() == drawn.sha256:
            done[drawn.number] = drawn
    return done


def keep(folder: Path, done: dict[int, Drawn], drawn: Drawn, picture: bytes) -> None:
    """Write a picture and its line.

    Args:
        folder: That of its setting.
        done: What is in the manifest so far; the new line is added to it.
        drawn: The new line.
        picture: Content of the file.
    """
    write_whole(folder / drawn.file, picture)
    done[drawn.number] = drawn
    lines = (json.dumps(dataclasses.asdict(done[number]), ensure_ascii=False) for number in sorted(done))
    write_whole(folder / MANIFEST, "".join(f"{line}\n" for line in lines))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _run_of(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(_text(file))
    except ValueError as error:
        raise ConfigError(f"{file} is no JSON ({error}); give another folder.") from error
    if not isinstance(found, dict) or found.get("made by") != _MARK:
        raise ConfigError(f"{file} was not written by this command; give another folder.")
    return found


def _text(path: Path) -> str:
    if path.stat().st_size > _LARGEST:
        raise ConfigError(f"{path} has {path.stat().st_size:,} bytes; a manifest has at most {_LARGEST:,}.")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no text ({error}); remove it or give another folder.") from error
