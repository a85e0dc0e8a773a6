"""FID: how far two sets of pictures are apart, as two Gaussians of features.

M. Heusel, H. Ramsauer, T. Unterthiner, B. Nessler and S. Hochreiter, GANs Trained by a Two Time-Scale Update
Rule Converge to a Local Nash Equilibrium, NeurIPS 2017, arXiv 1706.08500, eq. 6. The distance is that of
D. Dowson and B. Landau, J. Multivariate Analysis 12(3), 1982.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias, Unpack

import torch
from torch import Tensor

from cache_dit.errors import ConfigError
from cache_dit.metrics.inception import Inception
from cache_dit.metrics.measured import Measured
from cache_dit.metrics.options import NotGivenError, Options, Run
from cache_dit.metrics.pictures import PathLike, existing, load_batch, pictures_in, same_size
from cache_dit.metrics.weights import read_state

FID_MODEL = "FID_MODEL_PATH"
# [n, 3, height, width] in uint8 -> [n, features].
Extractor: TypeAlias = Callable[[Tensor], Tensor]


def compute_fid(
    true: PathLike, test: PathLike, features: PathLike | Extractor | None = None, **options: Unpack[Options]
) -> Measured:
    """Fréchet distance of two sets of pictures (Heusel et al. 2017, arXiv 1706.08500, eq. 6).

    The distance is computed in float64. It is biased: few pictures give larger values, so compare only
    figures of one number of pictures; thousands are usual.

    Args:
        true: Folder of the reference pictures.
        test: Folder of the others. Names and numbers of the pictures need not agree.
        features: What sees the pictures: the path of the weights of FID's InceptionV3 (`.pth` or
            `.safetensors`, such as `pt_inception-2015-12-05-6726825d.pth`); or a function that gets pictures
            as uint8 [n, 3, height, width] on the device and gives features [n, any]; or the path of a
            TorchScript file (`.pt`) of such a function, which gets `return_features=True` if it has that
            argument. Default None: the file that FID_MODEL_PATH names.
        options: See `Options`. There is no value of an item, so `per_item` is refused.

    Returns:
        The distance, 0 for equal sets, and the number of pictures in `test`.

    Raises:
        ConfigError: There is nothing to see with or it gives no features [n, any], a path is no folder of
            pictures, a folder has less than 2, or `per_item` is given.
        ConfigTypeError: An option is unknown.
    """
    run = Run.of(options)
    if run.per_item is not None:
        raise ConfigError(f"per_item is {run.per_item}, but FID is one value for a whole set; leave it out.")
    folders = [existing(path) for path in (true, test)]
    if files := [str(folder) for folder in folders if not folder.is_dir()]:
        raise NotGivenError(f"{files[0]} is a file, and FID compares sets of pictures; give folders.")
    extract = features if callable(features) else _read(features, run.device)
    first, second = (_features(folder, extract, run) for folder in folders)
    return Measured.whole(frechet_distance(*_moments(first), *_moments(second)), len(second))


def frechet_distance(mean_1: Tensor, cov_1: Tensor, mean_2: Tensor, cov_2: Tensor) -> float:
    """Squared Fréchet distance of two Gaussians: |m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½), in float64.

    (C1 C2)^½ has the trace of (C1^½ C2 C1^½)^½, which is symmetric and has real eigenvalues.

    Args:
        mean_1: [d].
        cov_1: [d, d], symmetric and positive semi-definite; it need not have full rank.
        mean_2: [d].
        cov_2: [d, d].

    Returns:
        The distance, 0 or above.
    """
    mean_1, cov_1, mean_2, cov_2 = (values.double() for values in (mean_1, cov_1, mean_2, cov_2))
    values, vectors = torch.linalg.eigh(cov_1)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    shared = torch.linalg.eigvalsh(root @ cov_2 @ root).clamp(min=0).sqrt().sum()
    distance = (mean_1 - mean_2).square().sum() + cov_1.trace() + cov_2.trace() - 2 * shared
    return max(0.0, distance.item())


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sample covariance: [n, d] -> [d], [d, d]."""
    mean = features.mean(dim=0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


def _features(folder: Path, extract: Extractor, run: Run) -> Tensor:
    paths = list(pictures_in(folder).values())
    if len(paths) < 2:
        raise ConfigError(f"{folder} has {len(paths)} picture, and a covariance needs 2; give more.")
    found = []
    with torch.inference_mode():
        for batch in run.track(same_size(paths, lambda path: path, run.batch_size), len(paths), "fid"):
            pictures = (255 * load_batch(batch, run.device)).round().to(torch.uint8)
            got = extract(pictures)
            if got.ndim != 2 or len(got) != len(batch):
                raise ConfigError(
                    f"features gave {list(got.shape)} for {len(batch)} pictures; give [n, features]."
                )
            found.append(got.double())
    return torch.cat(found)


def _read(path: PathLike | None, device: torch.device) -> Extractor:
    place = path if path is not None else os.environ.get(FID_MODEL)
    if place is None:
        raise NotGivenError(
            "features of FID are not given; give features=, a function or the path of InceptionV3's weights, "
            f"or set {FID_MODEL} to that path."
        )
    file = existing(place)
    scripted = file.suffix not in (".pth", ".safetensors")
    return _scripted(file, device) if scripted else Inception(read_state(file), device)


def _scripted(file: Path, device: torch.device) -> Extractor:
    try:
        with warnings.catch_warnings():
            # torch prefers torch.export now, but the extractors that are in use are TorchScript.
            warnings.simplefilter("ignore", DeprecationWarning)
            model = torch.jit.load(str(file), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        fact = str(error).splitlines()[0]
        raise ConfigError(f"{file} cannot be read as TorchScript: {fact}") from error
    if any(argument.name == "return_features" for argument in model.forward.schema.arguments):
        return lambda pictures: model(pictures, return_features=True)
    return model
