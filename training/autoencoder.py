"""The demo model's `AutoencoderTiny`: factor 4, eight latent channels, trained on the landscapes alone.

Two phases, so that the transformer need not wait for sharp pictures. `joint` trains encoder and decoder
for a few minutes, then normalises the latents (zero mean and unit deviation per channel, folded into the
encoder's last and the decoder's first convolution, so scaling_factor is 1 and shift_factor 0) and writes
the latents of the data set. `decoder` goes on with the encoder frozen, which leaves the latents valid.

    python -m training.autoencoder joint --minutes 9
    python -m training.autoencoder decoder --minutes 20 --world 1
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import nn
from tqdm import tqdm

from training.parallel import agree, average, launch

RUNS = Path("training/runs")
# Noise on the latents in training, in units of their deviation: the decoder must forgive the transformer.
LATENT_NOISE = 0.05
HELD_OUT = 256
AVERAGE_EVERY = 8


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast one phase trains; the rate warms up, then falls to zero along a cosine."""

    minutes: float
    max_steps: int
    batch: int
    lr: float
    seed: int
    world: int

    def lr_at(self, progress: float) -> float:
        return self.lr * min(1.0, progress / 0.03) * 0.5 * (1 + np.cos(np.pi * min(progress, 1.0)))


def build() -> AutoencoderTiny:
    """No blocks at full resolution, where a convolution costs sixteen times as much as in the latents."""
    return AutoencoderTiny(
        encoder_block_out_channels=(24, 24, 24),
        decoder_block_out_channels=(24, 24, 24),
        num_encoder_blocks=(0, 1, 2),
        num_decoder_blocks=(3, 3, 0),
        latent_channels=8,
    )


def to_unit(pictures: np.ndarray) -> torch.Tensor:
    """uint8 [N, 3, H, W] to float in [-1, 1]; a copy, because the pictures lie in a read-only mapping."""
    return torch.from_numpy(np.array(pictures)).float() / 127.5 - 1


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Squared error for PSNR plus a little absolute error of the edges, which otherwise stay soft."""
    edges = sum((output.diff(dim=d) - target.diff(dim=d)).abs().mean() for d in (2, 3))
    return nn.functional.mse_loss(output, target) + 0.02 * edges


def psnr(vae: AutoencoderTiny, pictures: np.ndarray) -> float:
    """Mean PSNR in dB of the 8-bit reconstruction, picture by picture."""
    with torch.inference_mode():
        output = vae.decode(vae.encode(to_unit(pictures)).latents).sample
    output = ((output.clamp(-1, 1) + 1) * 127.5).round()
    error = (output - torch.from_numpy(np.array(pictures)).float()).square().mean((1, 2, 3))
    return float((10 * torch.log10(255.0**2 / error.clamp_min(1e-6))).mean())


def batches(count: int, size: int, seed: int) -> Iterator[np.ndarray]:
    """Endless shuffled epochs of indices, sorted within a batch because the pictures are read from disk."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(count)
        for start in range(0, count - size + 1, size):
            yield np.sort(order[start : start + size])


def step_loss(vae: AutoencoderTiny, x: torch.Tensor, latents: torch.Tensor | None) -> torch.Tensor:
    """The loss of one batch; with given latents the encoder is left out."""
    z = vae.encode(x).latents if latents is None else latents
    noisy = z + LATENT_NOISE * z.detach().std() * torch.randn_like(z)
    loss = reconstruction_loss(vae.decode(noisy).sample, x)
    if latents is None:  # keeps the latents in the linear range of the decoder's tanh clamp
        loss = loss + 1e-3 * (z.square().mean() - 1).square()
    return loss


def train(
    vae: AutoencoderTiny,
    pictures: np.ndarray,
    latents: np.ndarray | None,
    schedule: Schedule,
    log: Path,
    rank: int,
) -> None:
    """One phase; time decides when it ends, so that it fits whatever the machine gives."""
    vae.train().to(memory_format=torch.channels_last)
    parameters = list(vae.parameters() if latents is None else vae.decoder.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=schedule.lr, betas=(0.9, 0.99), weight_decay=0.0)
    torch.manual_seed(schedule.seed + rank)
    count = len(pictures) - HELD_OUT if len(pictures) > 2 * HELD_OUT else len(pictures)
    stream = batches(count, schedule.batch, schedule.seed + rank)
    start, progress, rows = time.monotonic(), 0.0, []
    for step in (bar := tqdm(range(schedule.max_steps), desc="autoencoder", mininterval=5, disable=rank > 0)):
        seconds = time.monotonic() - start
        if step % AVERAGE_EVERY == 0:
            average(parameters, schedule.world)
            used = max(seconds / (60 * schedule.minutes), step / schedule.max_steps)
            progress = agree(used, schedule.world)
        if progress >= 1:
            break
        optimizer.param_groups[0]["lr"] = schedule.lr_at(progress)
        index = next(stream)
        x = to_unit(pictures[index]).to(memory_format=torch.channels_last)
        loss = step_loss(vae, x, None if latents is None else torch.from_numpy(latents[index]))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 50 == 0:
            rows.append((step, f"{loss.item():.6f}", f"{seconds:.1f}"))
            bar.set_postfix(loss=f"{loss.item():.4f}")
    average(parameters, schedule.world)
    vae.eval()
    if rank == 0:
        write_log(log, rows)


def write_log(path: Path, rows: list[tuple[object, ...]]) -> None:
    """Appends, because the decoder phase may be called several times; each call starts again at step 0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = [] if path.exists() else [("step", "loss", "seconds")]
    with path.open("a", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([*header, *rows])


@torch.inference_mode()
def encode_all(vae: AutoencoderTiny, pictures: np.ndarray) -> torch.Tensor:
    """Latents of all pictures, [N, 8, 16, 16]."""
    vae = vae.to(memory_format=torch.contiguous_format)
    parts = [vae.encode(to_unit(pictures[i : i + 500])).latents for i in range(0, len(pictures), 500)]
    return torch.cat(parts).contiguous()


@torch.no_grad()
def normalise_latents(vae: AutoencoderTiny, latents: torch.Tensor) -> torch.Tensor:
    """Folds mean and deviation per channel into the convolutions next to the latents; returns the latents.

    The fold into the decoder is not exact (its clamp lies between); the decoder phase makes up for it.
    """
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    last, first = vae.encoder.layers[-1], vae.decoder.layers[0]
    last.weight.div_(std[:, None, None, None])
    last.bias.sub_(mean).div_(std)
    first.bias.add_((first.weight.sum((2, 3)) * mean).sum(1))
    first.weight.mul_(std[None, :, None, None])
    return (latents - mean[:, None, None]) / std[:, None, None]


def run_joint(rank: int, world: int, data: Path, out: Path, schedule: Schedule) -> None:
    pictures = np.load(data / "pictures.npy", mmap_mode="r")
    torch.manual_seed(schedule.seed)
    vae = build()
    train(vae, pictures, None, schedule, out / "autoencoder_joint.csv", rank)
    if rank > 0:
        return
    before = psnr(vae, pictures[-HELD_OUT:])
    latents = normalise_latents(vae, encode_all(vae, pictures))
    vae.save_pretrained(out / "vae_joint")
    np.save(out / "latents.npy", latents.numpy())
    print(f"joint: held-out PSNR {before:.2f} dB, after normalising {psnr(vae, pictures[-HELD_OUT:]):.2f} dB")


def run_decoder(rank: int, world: int, data: Path, out: Path, schedule: Schedule) -> None:
    """Starts from the latest decoder there is, so that it can be called again."""
    pictures = np.load(data / "pictures.npy", mmap_mode="r")
    latents = np.load(out / "latents.npy")
    source = out / "vae" if (out / "vae").exists() else out / "vae_joint"
    vae = AutoencoderTiny.from_pretrained(source)
    train(vae, pictures, latents, schedule, out / "autoencoder_decoder.csv", rank)
    if rank == 0:
        vae.save_pretrained(out / "vae")
        print(f"decoder: held-out PSNR {psnr(vae, pictures[-HELD_OUT:]):.2f} dB")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("phase", choices=("joint", "decoder"))
    parser.add_argument("--data", type=Path, default=RUNS / "data")
    parser.add_argument("--out", type=Path, default=RUNS)
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--max-steps", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--world", type=int, default=2, help="one-thread processes")
    parser.add_argument("--port", type=int, default=29_511)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="four steps of eight pictures")
    args = parser.parse_args(argv)
    steps, batch, world = (4, 8, 1) if args.smoke else (args.max_steps, args.batch, args.world)
    schedule = Schedule(args.minutes, steps, batch, args.lr, args.seed, world)
    args.out.mkdir(parents=True, exist_ok=True)
    run = run_joint if args.phase == "joint" else run_decoder
    launch(run, world, args.port, args.data, args.out, schedule)


if __name__ == "__main__":
    main()
