"""Pictures of a system beside the uncached ones: FLOPs, time, PSNR and SSIM, one score for each picture."""

from __future__ import annotations

import math
import time
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from cache_dit.bench.pictures import Cell, Picture, draw
from cache_dit.bench.system import Kind, System
from cache_dit.metrics import psnr, ssim
from cache_dit.stats.flops import SDPA_MAPPING

# Batches are faster for each picture up to about this size.
_BATCH = 8
# Counting FLOPs takes two to three times as long as drawing: of systems that decide by what they see, the
# mean over so many pictures is kept.
_COUNTED = 4
_UNCACHED = System(name="uncached", strength="", kind=Kind.CONTROL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One picture of a system.

    Attributes:
        seed: Seed of the picture, which names it: no two pictures have the same.
        flops: FLOPs of the transformer as a fraction of those of the uncached run, `nan` where not counted.
        time: Seconds as a fraction of those of an uncached run right before or after, `nan` where not timed.
        psnr: Decibels to the uncached picture, `inf` where equal.
        ssim: Structural similarity to the uncached picture.
    """

    seed: int
    flops: float
    time: float
    psnr: float
    ssim: float


class FlopCount(TorchDispatchMode):
    """FLOPs by the formulas of torch's `FlopCounterMode`, without its account by module: twice as fast.

    Attributes:
        total: FLOPs so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self._formulas = FlopCounterMode(display=False, custom_mapping=SDPA_MAPPING).flop_registry

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = self._formulas.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


@contextmanager
def counting(model: nn.Module) -> Iterator[FlopCount]:
    """Count the FLOPs of every call of a model, and nothing that runs between the calls."""
    count = FlopCount()

    def begin(*_: Any) -> None:
        count.__enter__()

    def end(*_: Any) -> None:
        count.__exit__(None, None, None)

    handles = [model.register_forward_pre_hook(begin), model.register_forward_hook(end, always_call=True)]
    try:
        yield count
    finally:
        for handle in handles:
            handle.remove()


class Bench:
    """One cell: scores of systems against uncached pictures, which are drawn once and kept.

    Args:
        pipe: The result of `cache_dit.demo.load_pipeline`, with no cache on it.
        cell: Steps and guidance.
    """

    def __init__(self, pipe: Any, cell: Cell) -> None:
        self.pipe, self.cell = pipe, cell
        self._uncached: dict[Picture, Tensor] = {}
        self._flops = 0.0  # of one uncached picture

    def scores(
        self, system: System, pictures: Sequence[Picture], timed: Container[Picture]
    ) -> Iterator[Score]:
        """Draw pictures with a system and compare them.

        Args:
            system: It is put on for every batch anew.
            pictures: They are drawn in this order.
            timed: Those of them that are also run in turn with uncached ones, one by one.

        Yields:
            A score for each picture, in order.
        """
        size = _BATCH if system.fixed else 1
        self._draw_uncached(pictures)
        fraction = math.nan
        for start in range(0, len(pictures), size):
            batch = pictures[start : start + size]
            counted = start == 0 if system.fixed else start < _COUNTED
            drawn, flops = self._draw(system, batch, counted)
            fraction = flops / self._flops if counted else fraction if system.fixed else math.nan
            for picture, image in zip(batch, drawn, strict=True):
                yield Score(
                    seed=picture.seed,
                    flops=fraction,
                    time=self._time(system, picture) if picture in timed else math.nan,
                    psnr=psnr(image, self._uncached[picture], data_range=1.0),
                    ssim=ssim(image, self._uncached[picture], data_range=1.0),
                )

    def _draw_uncached(self, pictures: Sequence[Picture]) -> None:
        missing = [picture for picture in pictures if picture not in self._uncached]
        for start in range(0, len(missing), _BATCH):
            batch = missing[start : start + _BATCH]
            counted = not self._uncached
            drawn, flops = self._draw(_UNCACHED, batch, counted)
            self._flops = flops if counted else self._flops
            self._uncached.update(zip(batch, drawn, strict=True))

    def _draw(self, system: System, pictures: Sequence[Picture], counted: bool) -> tuple[Tensor, float]:
        """Pictures and, if wanted, the FLOPs of each."""
        with self._put_on(system) as cell:
            if not counted:
                return draw(self.pipe, pictures, cell), math.nan
            with counting(self.pipe.transformer) as count:
                drawn = draw(self.pipe, pictures, cell)
        return drawn, count.total / len(pictures)

    @contextmanager
    def _put_on(self, system: System) -> Iterator[Cell]:
        """The pipeline with a system, and the steps that it takes."""
        with system.applied(self.pipe, self.cell):
            yield Cell(system.steps(self.cell.steps), self.cell.cfg)

    def _time(self, system: System, picture: Picture) -> float:
        """Ratio of seconds to an uncached run right before or after, which of the two by the seed.

        Seconds of the process, not of the clock on the wall: with one thread both are the same on a machine
        that does nothing else, and on one that does only this ratio holds. Putting the system on is not
        counted, as it is done once for many pictures.
        """
        seconds = [0.0, 0.0]
        for place in (0, 1) if picture.seed % 2 else (1, 0):
            timed = system if place else _UNCACHED
            with self._put_on(timed) as cell:
                start = time.process_time()
                draw(self.pipe, [picture], cell)
                seconds[place] = time.process_time() - start
        return seconds[1] / seconds[0]
