"""The options that all metrics of files share."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, TypeVar

import torch

from cache_dit.errors import ConfigError, ConfigTypeError, nearest
from cache_dit.metrics.measured import Measured, write_scores

Item = TypeVar("Item")
# What an accelerator is given at once; a processor gains nothing from batches and pays memory for them.
_BATCH = 8


class NotGivenError(ConfigError):
    """What a metric needs beside the files is not given, or the files are of a kind that it does not take."""


class Options(TypedDict, total=False):
    """What every `compute_...` function takes beside its own arguments, by keyword.

    Attributes:
        per_item: CSV file for the value of every item. Default None: none; `scores` of the result has them.
        device: Where to compute, such as "cuda:1". Default None: the GPU if there is one, else the CPU.
        batch_size: Items computed at once, where they have one size. Default None: 8 on a GPU, 1 on a CPU.
        progress: Show a bar on stderr, if that is a terminal. Default True.
    """

    per_item: str | Path | None
    device: str | torch.device | None
    batch_size: int | None
    progress: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The options with all defaults filled in."""

    per_item: Path | None
    device: torch.device
    batch_size: int
    progress: bool

    @classmethod
    def of(cls, options: Options) -> Run:
        """Check the options.

        Raises:
            ConfigTypeError: An option is unknown.
            ConfigError: A device that is not there, or a batch size below 1.
        """
        for name in options.keys() - Options.__annotations__.keys():
            meant = nearest(name, Options.__annotations__)
            raise ConfigTypeError(
                f"{name} is no option of a metric; "
                f"{f'did you mean {meant}?' if meant else 'there are ' + ', '.join(Options.__annotations__)}"
            )
        device = _device(options.get("device"))
        batch_size = options.get("batch_size") or (1 if device.type == "cpu" else _BATCH)
        if options.get("batch_size") == 0 or batch_size < 1:
            raise ConfigError(f"batch_size is {options.get('batch_size')}; give 1 or more.")
        path = options.get("per_item")
        return cls(
            per_item=None if path is None else Path(path),
            device=device,
            batch_size=batch_size,
            progress=options.get("progress", True),
        )

    def track(self, batches: Iterable[list[Item]], total: int, title: str) -> Iterator[list[Item]]:
        """Yield the batches and show how many of all items are done."""
        from rich.console import Console
        from rich.progress import Progress

        hidden = not (self.progress and sys.stderr.isatty())
        with Progress(console=Console(stderr=True), transient=True, disable=hidden) as bar:
            task = bar.add_task(title, total=total)
            for batch in batches:
                yield batch
                bar.advance(task, len(batch))

    def done(self, name: str, scores: Mapping[str, float]) -> Measured:
        """The result; its CSV file is written if one is wanted."""
        measured = Measured.mean(scores)
        if self.per_item is not None:
            write_scores(self.per_item, {name: measured})
        return measured


def _device(name: str | torch.device | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        # float64 is what pictures are compared in, and not every device has it.
        return torch.empty(0, dtype=torch.float64, device=name).device
    except (RuntimeError, AssertionError, TypeError) as error:
        fact = str(error).splitlines()[0]
        raise ConfigError(f"device is {name!r}, which cannot be used here: {fact}") from error
