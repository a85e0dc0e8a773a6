"""The demo model: where it lies, how it is loaded, and one picture of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cache_dit.errors import CacheDiTError, ConfigError, nearest

# Every object twice, every colour, ground and time of day, half of them with mountains.
PROMPTS = (
    "a red house on grass at day with mountains",
    "a yellow tree on snow at day",
    "a blue balloon on sand at sunset with mountains",
    "a purple mushroom on grass at night",
    "a pink house on sand at sunset",
    "a green tree on grass at sunset with mountains",
    "a red balloon on snow at night with mountains",
    "a blue mushroom on sand at day",
)

SIZE = 64
TOKENS = 10  # what the model was trained with: nine words and an end mark


def weights_path() -> Path:
    """The folder with the demo model, in the layout that diffusers saves."""
    return Path(__file__).parent / "weights"


def load_pipeline() -> Any:
    """Load the demo model into diffusers' own `FluxPipeline`, in float32 on the CPU, without any network.

    Raises:
        CacheDiTError: A package of the extra "demo" or the folder of the model is missing.
    """
    folder = weights_path()
    if not (folder / "model_index.json").is_file():
        raise CacheDiTError(f"the demo model is missing: {folder} has no model_index.json; install again.")
    with _quiet_libraries():
        from diffusers import FluxPipeline

        # Not by an argument of from_pretrained: its name differs between releases of diffusers.
        pipe = FluxPipeline.from_pretrained(folder, local_files_only=True).to(torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def check_prompt(pipe: Any, prompt: str) -> None:
    """Raise `ConfigError` for a word that the demo model was not taught, or for too many words."""
    known = pipe.tokenizer.get_vocab()
    words = prompt.split()
    if len(words) >= TOKENS:
        raise ConfigError(f"the prompt {prompt!r} has {len(words)} words; give {TOKENS - 1} at most.")
    for word in words:
        if word not in known:
            hint = nearest(word, known)
            meant = f" Did you mean {hint!r}?" if hint else ""
            taught = ", ".join(sorted(entry for entry in known if entry.isalpha()))
            raise ConfigError(
                f"the prompt {prompt!r} has the word {word!r}, which the demo model was not taught.{meant} "
                f"It knows: {taught}."
            )


def generate(pipe: Any, prompt: str, *, seed: int = 0, steps: int = 28, cfg: float = 2.0) -> Tensor:
    """Make one picture; whether it is cached is up to what was enabled on the pipeline.

    Args:
        pipe: The result of `load_pipeline`.
        prompt: "a {red|yellow|green|blue|purple|pink} {house|tree|balloon|mushroom} on {grass|sand|snow} at
            {day|sunset|night}", with or without " with mountains" at the end.
        seed: Seed of the initial noise.
        steps: Denoising steps.
        cfg: Scale of classifier-free guidance (`true_cfg_scale`); 1 turns it off, which halves the work.

    Returns:
        float32 [3, 64, 64] on the CPU, values from 0 to 1.
    """
    made = pipe(
        prompt,
        negative_prompt="",
        true_cfg_scale=cfg,
        height=SIZE,
        width=SIZE,
        max_sequence_length=TOKENS,
        num_inference_steps=steps,
        generator=torch.Generator("cpu").manual_seed(seed),
        output_type="pt",
    )
    picture: Tensor = made.images[0].float().cpu()
    return picture


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """No progress bars of loading, and no advice that is of no use here: torchvision, the kind of the VAE."""
    try:
        from diffusers.utils import logging as of_diffusers
        from transformers.utils import logging as of_transformers
    except ImportError as error:
        raise CacheDiTError(
            f"{error}; install what the demo needs: pip install 'cache-dit[demo]'."
        ) from error
    libraries = (of_diffusers, of_transformers)
    before = [library.get_verbosity() for library in libraries]
    bars = [library.is_progress_bar_enabled() for library in libraries]
    for library in libraries:
        library.set_verbosity(library.CRITICAL)
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, verbosity, bar in zip(libraries, before, bars, strict=True):
            library.set_verbosity(verbosity)
            if bar:
                library.enable_progress_bar()
