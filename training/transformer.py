"""Trains the demo's Flux transformer and its text encoders by flow matching on the autoencoder's latents.

What the model sees is what FluxPipeline gives it: packed latents, sigma as the timestep (the pipeline
divides by 1000), zero text ids, the pipeline's image ids, no attention mask, no guidance embedding. The
noisy latents are (1 - sigma) x0 + sigma noise, the target is noise - x0, the velocity that
FlowMatchEulerDiscreteScheduler integrates.

    python -m training.transformer --steps 20000 --minutes 86 --compile

The run ends, decay included, at `--steps` or when `--minutes` of training are used up, whichever comes
first. It goes on from its checkpoint when called again; calling it again with a smaller limit starts the
decay early.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn
from tqdm import tqdm

from training.autoencoder import HELD_OUT, RUNS, batches
from training.muon import Muon
from training.parallel import agree, average, launch
from training.text import WIDTH, TextEncoders, token_table

CHANNELS, GRID = 32, 8  # a packed token is 2x2 latent positions of 8 channels; 8x8 tokens


@dataclass(frozen=True, slots=True)
class Recipe:
    """All numbers of the run."""

    steps: int
    minutes: float
    batch: int = 32
    muon_lr: float = 5e-3
    adam_lr: float = 2e-3
    warmup: int = 100
    decay: float = 0.4
    ema: float = 0.995
    drop_prompt: float = 0.1
    average_every: int = 12
    save_minutes: float = 4.0
    seed: int = 0

    def lr_factor(self, step: int, progress: float) -> float:
        """Warm-up, constant, then linear to zero over the last `decay` of the run."""
        return min(1.0, (step + 1) / self.warmup) * min(1.0, max(0.0, 1 - progress) / self.decay)


class Model(nn.Module):
    """Everything that is trained together, and the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.text = TextEncoders()
        self.transformer = FluxTransformer2DModel(
            in_channels=CHANNELS,
            num_layers=4,
            num_single_layers=12,
            attention_head_dim=32,
            num_attention_heads=3,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            guidance_embeds=False,
            axes_dims_rope=(8, 12, 12),
        )
        zero_modulation(self.transformer)
        ids = FluxPipeline._prepare_latent_image_ids(1, GRID, GRID, torch.device("cpu"), torch.float32)
        self.register_buffer("image_ids", ids, persistent=False)

    def forward(self, x0: Tensor, noise: Tensor, sigma: Tensor, ids: Tensor) -> Tensor:
        """Mean squared error of the velocity; x0, noise [B, 64, 32], sigma [B], ids [B, text length]."""
        pooled, states = self.text(ids)
        noisy = torch.lerp(x0, noise, sigma[:, None, None])
        velocity = self.transformer(
            hidden_states=noisy,
            timestep=sigma,
            pooled_projections=pooled,
            encoder_hidden_states=states,
            txt_ids=torch.zeros(ids.shape[1], 3),
            img_ids=self.image_ids,
            return_dict=False,
        )[0]
        return nn.functional.mse_loss(velocity, noise - x0)


def zero_modulation(transformer: FluxTransformer2DModel) -> None:
    """adaLN-zero (Peebles and Xie, 2023): every block starts as the identity; diffusers does not do it."""
    for name, module in transformer.named_modules():
        last = name == "proj_out" or name.startswith("norm_out")
        if isinstance(module, nn.Linear) and (last or ".norm" in name):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


def split_parameters(model: Model) -> tuple[list[Tensor], list[Tensor]]:
    """(matrices inside of the blocks, for Muon; everything else, for AdamW)."""
    muon, adam = [], []
    for name, parameter in model.named_parameters():
        (muon if "transformer_blocks." in name and parameter.ndim == 2 else adam).append(parameter)
    return muon, adam


class Stream:
    """Endless training batches from the precomputed latents; some prompts are replaced by the empty one."""

    def __init__(self, data: Path, latents: Path, recipe: Recipe, seed: int) -> None:
        stored = torch.from_numpy(np.load(latents))
        count = len(stored) - HELD_OUT if len(stored) > 2 * HELD_OUT else len(stored)
        self.latents = FluxPipeline._pack_latents(stored, len(stored), 8, 2 * GRID, 2 * GRID)
        self.captions = torch.from_numpy(np.load(data / "captions.npy"))
        self.tokens = token_table()
        self.recipe = recipe
        self.index = batches(count, recipe.batch, seed)
        self.rng = torch.Generator().manual_seed(seed)

    def draw(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows = torch.from_numpy(next(self.index))
        caption = self.captions[rows]
        drop = torch.rand(len(rows), generator=self.rng) < self.recipe.drop_prompt
        caption = torch.where(drop, len(self.tokens) - 1, caption)
        noise = torch.randn(len(rows), GRID * GRID, CHANNELS, generator=self.rng)
        return self.latents[rows], noise, draw_sigmas(len(rows), self.rng), self.tokens[caption]


def draw_sigmas(count: int, rng: torch.Generator) -> Tensor:
    """sigmoid(N(0, 1)), stratified over the batch so that the loss of a small batch is less noisy."""
    u = (torch.randperm(count, generator=rng) + torch.rand(count, generator=rng)) / count
    return torch.special.ndtri(u.clamp(1e-4, 1 - 1e-4)).sigmoid()


class Run:
    """Model, averaged weights, optimisers and counters of one process, with its checkpoint file."""

    def __init__(self, out: Path, recipe: Recipe, rank: int) -> None:
        torch.manual_seed(recipe.seed)
        self.model = Model()
        muon, adam = split_parameters(self.model)
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(muon, lr=recipe.muon_lr),
            torch.optim.AdamW(adam, lr=recipe.adam_lr, betas=(0.9, 0.99), weight_decay=0.0),
        ]
        self.rates = [recipe.muon_lr, recipe.adam_lr]
        self.ema = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.step, self.seconds = 0, 0.0
        self.path = out / f"transformer_rank{rank}.pt"
        if self.path.exists():
            self._load()

    def _load(self) -> None:
        state = torch.load(self.path)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.ema, self.step, self.seconds = state["ema"], state["step"], state["seconds"]

    def save(self) -> None:
        """Written beside and renamed, so that an interrupted write leaves the old checkpoint whole."""
        state = {
            "model": self.model.state_dict(), "ema": self.ema, "step": self.step, "seconds": self.seconds,
            "optimizers": [o.state_dict() for o in self.optimizers],
        }  # fmt: skip
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.path)

    def update(self, loss: Tensor, factor: float, ema: float) -> None:
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            optimizer.zero_grad(set_to_none=True)
            optimizer.param_groups[0]["lr"] = rate * factor
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        keep = min(ema, (1 + self.step) / (10 + self.step))
        weights = self.model.state_dict()
        torch._foreach_lerp_([self.ema[k] for k in self.ema], [weights[k] for k in self.ema], 1 - keep)
        self.step += 1


def worker(rank: int, world: int, data: Path, out: Path, recipe: Recipe, compile_model: bool) -> None:
    run = Run(out, recipe, rank)
    stream = Stream(data, out / "latents.npy", recipe, recipe.seed + 1000 * run.step + rank)
    run.step = int(agree(run.step, world))
    loss_of = torch.compile(run.model) if compile_model else run.model
    started, saved, progress = time.monotonic() - run.seconds, time.monotonic(), 0.0
    bar = tqdm(total=recipe.steps, initial=run.step, desc="transformer", mininterval=10, disable=rank > 0)
    recent: list[float] = []
    while True:
        run.seconds = time.monotonic() - started
        if run.step % recipe.average_every == 0:
            average(run.model.parameters(), world)
            progress = agree(max(run.step / recipe.steps, run.seconds / (60 * recipe.minutes)), world)
            if progress >= 1:
                break
            if time.monotonic() - saved > 60 * recipe.save_minutes:
                run.save()
                saved = time.monotonic()
        loss = loss_of(*stream.draw())
        factor = recipe.lr_factor(run.step, progress)
        run.update(loss, factor, recipe.ema)
        recent.append(loss.item())
        bar.update()
        if run.step % (2 * recipe.average_every) == 0:
            mean = sum(recent) / len(recent)
            bar.set_postfix(loss=f"{mean:.4f}", refresh=False)
            recent.clear()
            if rank == 0:
                log_row(out / "transformer.csv", run, world * recipe.batch, mean, factor)
    average((run.ema[k] for k in run.ema), world)
    run.save()


def log_row(path: Path, run: Run, batch: int, loss: float, factor: float) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(("step", "samples", "loss", "lr_factor", "seconds"))
        writer.writerow((run.step, run.step * batch, f"{loss:.5f}", f"{factor:.4f}", f"{run.seconds:.0f}"))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=RUNS / "data")
    parser.add_argument("--out", type=Path, default=RUNS, help="latents, checkpoints, log")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--minutes", type=float, default=1e9, help="training time, summed over resumed runs")
    parser.add_argument("--batch", type=int, default=32, help="per process")
    parser.add_argument("--muon-lr", type=float, default=5e-3)
    parser.add_argument("--adam-lr", type=float, default=2e-3)
    parser.add_argument("--world", type=int, default=2, help="one-thread processes")
    parser.add_argument("--port", type=int, default=29_512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="torch.compile the training step")
    parser.add_argument("--smoke", action="store_true", help="two steps of four latents")
    args = parser.parse_args(argv)
    steps, batch, world = (2, 4, 1) if args.smoke else (args.steps, args.batch, args.world)
    recipe = Recipe(steps, args.minutes, batch, args.muon_lr, args.adam_lr,
                    average_every=1 if args.smoke else 12, seed=args.seed)  # fmt: skip
    launch(worker, world, args.port, args.data, args.out, recipe, args.compile)


if __name__ == "__main__":
    main()
