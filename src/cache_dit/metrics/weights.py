"""Weights of networks from files that somebody else made: they are data, and checked before they are used."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from cache_dit.errors import ConfigError

# Endings of files that hold a state dict. TorchScript files end in .pt too, so for FID that is no weights.
WEIGHTS = (".safetensors", ".pth", ".pt")


def read_state(file: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, or of one that `torch.save` wrote, by name.

    Raises:
        ConfigError: The file is broken, or holds something else than a dictionary of tensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        # weights_only: a file from elsewhere must not run code.
        state = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        raise ConfigError(f"{file} holds no weights that can be read: {error}") from error
    if not isinstance(state, Mapping) or not all(isinstance(values, Tensor) for values in state.values()):
        raise ConfigError(f"{file} is no dictionary of tensors; save the state dict of the network.")
    return dict(state)


def misfits(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Which weights are missing or have another shape, one sentence each."""
    return [
        f"{name} should be {list(shape)} and is {list(state[name].shape) if name in state else 'missing'}"
        for name, shape in shapes.items()
        if name not in state or tuple(state[name].shape) != shape
    ]
