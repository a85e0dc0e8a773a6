"""Draws what the exported model can do: a contact sheet of 16 prompts, the loss curve, some numbers.

python -m training.figures --weights src/cache_dit/demo/weights
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
from diffusers import FluxPipeline
from PIL import Image

from training.autoencoder import HELD_OUT, RUNS, psnr
from training.export import WEIGHTS

matplotlib.use("Agg")
RESULTS = Path("training/results")
# Every object four times, every colour, ground and time of day several times, half of them with mountains.
PROMPTS = (
    "a red house on grass at day with mountains",
    "a green tree on snow at day",
    "a blue balloon on sand at sunset with mountains",
    "a purple mushroom on grass at night",
    "a yellow house on snow at night with mountains",
    "a pink tree on sand at sunset",
    "a red balloon on grass at day with mountains",
    "a blue mushroom on sand at day",
    "a pink house on sand at day with mountains",
    "a purple tree on grass at night",
    "a yellow balloon on snow at night with mountains",
    "a red mushroom on snow at sunset",
    "a blue house on grass at sunset with mountains",
    "a yellow tree on grass at day",
    "a green balloon on snow at day with mountains",
    "a pink mushroom on grass at sunset",
)


def sample(pipeline: FluxPipeline, prompt: str, seed: int, steps: int, scale: float) -> Image.Image:
    """One picture; the sizes are spelt out because the pipeline's defaults are those of the large models."""
    return pipeline(
        prompt,
        negative_prompt="",
        true_cfg_scale=scale,
        height=64,
        width=64,
        max_sequence_length=10,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(seed),
    ).images[0]


def contact_sheet(pictures: list[Image.Image], captions: list[str], path: Path) -> None:
    from matplotlib import pyplot as plt

    rows = (len(pictures) + 3) // 4
    figure, axes = plt.subplots(rows, 4, figsize=(12, 3.3 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, picture, caption in zip(axes.flat, pictures, captions, strict=False):
        axis.imshow(picture)
        axis.set_title(caption.replace(" at ", "\nat "), fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def loss_curve(log: Path, path: Path) -> None:
    """Training loss over the samples seen; the log's rows are already means over many steps."""
    from matplotlib import pyplot as plt

    with log.open() as file:
        rows = list(csv.DictReader(file))
    samples, loss = ([float(row[k]) for row in rows] for k in ("samples", "loss"))
    figure, axis = plt.subplots(figsize=(7, 4))
    axis.plot(samples, loss, lw=1.2)
    axis.set(xlabel="samples seen", ylabel="flow-matching loss (mean of 24 steps)", yscale="log")
    axis.grid(True, which="both", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--runs", type=Path, default=RUNS)
    parser.add_argument("--to", type=Path, default=RESULTS)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--scale", type=float, default=2.0, help="true_cfg_scale; 1 is without guidance")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="one picture of two steps")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    args.to.mkdir(parents=True, exist_ok=True)
    pipeline = FluxPipeline.from_pretrained(args.weights, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    prompts, steps = (PROMPTS[:1], 2) if args.smoke else (PROMPTS, args.steps)
    started = time.monotonic()
    pictures = [sample(pipeline, prompt, args.seed, steps, args.scale) for prompt in prompts]
    print(f"{(time.monotonic() - started) / len(pictures):.2f} s a picture")
    contact_sheet(pictures, list(prompts), args.to / "contact_sheet.png")
    loss_curve(args.runs / "transformer.csv", args.to / "loss.png")
    held_out = np.load(args.runs / "data" / "pictures.npy", mmap_mode="r")[-HELD_OUT:]
    print(f"exported autoencoder: {psnr(pipeline.vae, held_out):.2f} dB on {len(held_out)} held-out pictures")


if __name__ == "__main__":
    main()
