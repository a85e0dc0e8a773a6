"""One run of `bench/soak.py`: everything about it is drawn from its number."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from tiny.base import Draw
from tiny.image_models import FLUX
from tiny.pipelines import FLUX_PIPELINE
from torch import Tensor

import cache_dit
from cache_dit import Preset, Request

CONFIGS = (
    "F1B0_W2M0MC2_R0.5_T1O1",
    "F1B1_W1M0MC0_R1_T0O1",
    "F2B0_W3M4MC1_R0.3_T1O2",
    "DBPrune_F1B0_W2M0MC0_P0.4",
    "F1B0_W2_SCM1101001_R0.5",
    "F1B0_W2R0.9_FoCa",
    "taylorseer(interval=2, order=1)",
    "easycache(threshold=0.5)",
    "seacache",
    "toca",
    "tolerance",
)
CALIBRATORS = ("T0O1", "T1O1", "T1O2", "T1O3", "FoCa", "HiCacheO2S0.5")


class Aborted(RuntimeError):
    """Raised on purpose."""


class Interrupted(KeyboardInterrupt):
    """As Ctrl-C, and told from a real one."""


DYING = "dying"


class Ending(Enum):
    """What becomes of a run."""

    DONE = "to its end"
    ABORTED = "aborted by a callback between two steps"
    BROKEN = "an exception inside of a block"
    INTERRUPTED = "a KeyboardInterrupt inside of a block"
    NO_MEMORY = "an out-of-memory error inside of a block"
    THREADS = "two requests in two threads, the transformer alone"
    THREAD_DIES = "the same, and one thread dies in the middle of a forward"


RAISED: dict[Ending, type[BaseException]] = {
    Ending.BROKEN: Aborted,
    Ending.INTERRUPTED: Interrupted,
    Ending.NO_MEMORY: torch.OutOfMemoryError,
}


@dataclass(frozen=True)
class Setup:
    """One run, drawn from its number alone.

    Attributes:
        number: Of the run.
        config: As a string for `parse_config`.
        steps: Of the run.
        size: Height and width in pixels.
        images: In a batch, each of a prompt of its own.
        guided: Two branches of guidance.
        ending: What becomes of it.
        at: Call of the block that fails, from 1.
        lora: An adapter is on the transformer.
        by_file: The configuration is written to a file and read back.
        weights: The weights are written to a file and read back, with the cache on.
        disabled: Caching is switched off afterwards, not just replaced by the next.
    """

    number: int
    config: str
    steps: int
    size: tuple[int, int]
    images: int
    guided: bool
    ending: Ending
    at: int
    lora: bool
    by_file: bool
    weights: bool
    disabled: bool

    @classmethod
    def drawn(cls, number: int) -> Setup:
        chance = random.Random(number)
        return cls(
            number,
            chance.choice((*CONFIGS, *[_any_config(chance)] * len(CONFIGS))),
            chance.randint(3, 7),
            (chance.choice((32, 48, 64)), chance.choice((32, 64))),
            chance.choice((1, 1, 2)),
            chance.random() < 0.25,
            chance.choices(tuple(Ending), (65, 7, 7, 5, 5, 6, 5))[0],
            chance.randint(1, 3),
            *(chance.random() < share for share in (0.2, 0.2, 0.1, 0.3)),
        )


def _any_config(chance: random.Random) -> str:
    blocks = f"F{chance.randint(1, 2)}B{chance.randint(0, 1)}"
    limits = f"W{chance.randint(1, 3)}M{chance.choice((0, 3))}MC{chance.randint(0, 2)}"
    return f"{blocks}_{limits}_R{chance.uniform(0.05, 1.0):.2f}_{chance.choice(CALIBRATORS)}"


def pipeline() -> Any:
    """The tiny Flux pipeline with 3 and 2 blocks."""
    pipe: Any = FLUX_PIPELINE.build()
    pipe.transformer.transformer_blocks = pipe.transformer.transformer_blocks[:3]
    pipe.transformer.single_transformer_blocks = pipe.transformer.single_transformer_blocks[:2]
    return pipe


def configured(setup: Setup, folder: Path) -> Any:
    """What `enable_cache` is given beside the pipeline."""
    made: Preset = cache_dit.parse_config(setup.config)
    cache = made.cache_config
    if cache.steps_computation_mask is not None:
        cache = dataclasses.replace(cache, steps_computation_mask=cache.steps_computation_mask[: setup.steps])
    given: dict[str, Any] = {"cache_config": cache, "calibrator_config": made.calibrator_config}
    if setup.by_file:
        cache_dit.save_configs(folder / "configs.yaml", **given)
        given = cache_dit.load_configs(folder / "configs.yaml")
    return given


@contextlib.contextmanager
def adapter(pipe: Any, setup: Setup) -> Iterator[None]:
    """A LoRA with weights of its own, where there is one; taken off behind the run."""
    if not setup.lora:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setup.number)
        pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    try:
        yield
    finally:
        pipe.transformer.unload_lora()


def take(pipe: Any, setup: Setup, folder: Path) -> list[Tensor]:
    """One run; its latents, or none where it was broken off."""
    cache_dit.enable_cache(pipe, **configured(setup, folder))
    try:
        if setup.weights:
            save_file(pipe.transformer.state_dict(), folder / "weights.safetensors")
            pipe.transformer.load_state_dict(load_file(folder / "weights.safetensors"))
        with adapter(pipe, setup):
            if setup.ending in (Ending.THREADS, Ending.THREAD_DIES):
                return in_threads(pipe.transformer, setup)
            with contextlib.suppress(Aborted, *RAISED.values()):
                return [drawn(pipe, setup)]
            return []
    finally:
        if setup.disabled:
            cache_dit.disable_cache(pipe)


def drawn(pipe: Any, setup: Setup) -> Tensor:
    """The latents of one call of the pipeline; raises `Aborted` where the set-up says so."""
    draw, middle = Draw(setup.number), setup.steps // 2

    def stop(_pipe: Any, step: int, _time: Any, values: Any) -> Any:
        if setup.ending is Ending.ABORTED and step == middle:
            raise Aborted
        return values

    texts = {"prompt_embeds": draw(setup.images, 5, 24), "pooled_prompt_embeds": draw(setup.images, 20)}
    if setup.guided:
        texts |= {f"negative_{name}": draw(*value.shape) for name, value in texts.items()}
    with failing(pipe.transformer, setup):
        latents: Tensor = pipe(
            height=setup.size[0],
            width=setup.size[1],
            num_inference_steps=setup.steps,
            generator=torch.Generator().manual_seed(setup.number),
            output_type="latent",
            return_dict=False,
            callback_on_step_end=stop,
            true_cfg_scale=2.0 if setup.guided else 1.0,
            **texts,
        )[0]
    return latents


@contextlib.contextmanager
def failing(model: Any, setup: Setup) -> Iterator[None]:
    """The first block fails in one of its calls, where the set-up says so."""
    calls = 0

    def fail(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if threading.current_thread().name == DYING:
            raise Aborted
        if setup.ending in RAISED and calls == setup.at:
            raise RAISED[setup.ending]("on purpose")

    # Behind the block: its output has been handed on, and what follows has not.
    handle = model.transformer_blocks[0].register_forward_hook(fail)
    try:
        yield
    finally:
        handle.remove()


def in_threads(model: Any, setup: Setup) -> list[Tensor]:
    """Two requests at a time, each in a thread of its own, with an Euler step between forwards."""
    found: dict[int, Tensor] = {}

    def loop(which: int) -> None:
        inputs = FLUX.inputs(setup.number % 1000 + which)
        latents, request = inputs["hidden_states"], Request(setup.steps)
        for step in range(setup.steps):
            if which and setup.ending is Ending.THREAD_DIES and step == setup.at - 1:
                threading.current_thread().name = DYING
            timestep = torch.full((len(latents),), 1.0 - step / setup.steps)
            given = inputs | {"hidden_states": latents, "timestep": timestep}
            with torch.no_grad(), request:
                latents = latents - model(**given, return_dict=False)[0] / setup.steps
        found[which] = latents

    def lived(which: int) -> None:
        with contextlib.suppress(Aborted):
            loop(which)

    with failing(model, setup):
        threads = [threading.Thread(target=lived, args=(which,)) for which in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return [found[which] for which in sorted(found)]
