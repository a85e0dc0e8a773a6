"""What the engine itself costs: one skipped block, a run that never skips, and realised against ideal speed.

python bench/engine.py            # about five minutes on a quiet machine
python bench/engine.py --write    # also writes bench/results/engine.md
"""

from __future__ import annotations

import argparse
import statistics
import timeit
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from common import Setting, environment, interleaved, ratios, write
from torch import Tensor, nn

import cache_dit
from cache_dit import DBCacheConfig, TaylorSeerCalibratorConfig
from cache_dit.demo import PROMPTS, load_pipeline

BLOCKS = 400
BASE = "uncached"


class EmptyBlock(nn.Module):
    """A block with the signature of Flux's that computes nothing."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Any = None,
        image_rotary_emb: Any = None,
        joint_attention_kwargs: Any = None,
    ) -> tuple[Tensor, Tensor]:
        return encoder_hidden_states, hidden_states


class EmptyModel(nn.Module):
    """A loop over empty blocks; with none, the loop alone."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(EmptyBlock() for _ in range(count))

    def forward(self, hidden: Tensor, encoder: Tensor) -> Tensor:
        for block in self.blocks:
            encoder, hidden = block(
                hidden_states=hidden,
                encoder_hidden_states=encoder,
                temb=None,
                image_rotary_emb=None,
                joint_attention_kwargs=None,
            )
        return hidden


def skipped_block(rounds: int) -> tuple[float, float]:
    """Microseconds of one empty block call, and of the same call when the block is skipped (best of all)."""
    inputs = torch.zeros(1, 1), torch.zeros(1, 1)
    plain, cached = EmptyModel(BLOCKS), EmptyModel(BLOCKS)
    adapter = cache_dit.BlockAdapter(
        transformer=cached, blocks=cached.blocks, forward_pattern=cache_dit.ForwardPattern.Pattern_1
    )
    config = DBCacheConfig(
        max_warmup_steps=1, Fn_compute_blocks=1, residual_diff_threshold=1.0, enable_separate_cfg=False
    )
    cache_dit.enable_cache(adapter, config)
    request = cache_dit.Request()
    with torch.no_grad(), request:
        cached(*inputs)  # the computed step
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(rounds):
            for model, taken in zip((plain, cached), times, strict=True):
                taken.append(timeit.timeit(lambda model=model: model(*inputs), number=5))
    empty, skipped = (min(taken) / 5 / BLOCKS * 1e6 for taken in times)
    return empty, skipped


def demo_costs(pipe: Any, batch: int, rounds: int, steps: int) -> list[str]:
    """Table rows for one batch size: latents of the demo model, one branch a step."""
    base = {"Fn_compute_blocks": 1, "max_warmup_steps": 4}
    mask = cache_dit.steps_mask(mask_policy="fast", total_steps=steps)
    configs: dict[str, DBCacheConfig | None] = {
        BASE: None,
        "uncached again (control)": None,
        "never skips: threshold 0": DBCacheConfig(**base, residual_diff_threshold=0.0),
        "never skips: threshold 1e-6": DBCacheConfig(**base, residual_diff_threshold=1e-6),
        "threshold 0.12": DBCacheConfig(**base, residual_diff_threshold=0.12),
        "fast mask, dynamic": DBCacheConfig(**base, residual_diff_threshold=1.0, steps_computation_mask=mask),
        "fast mask, static": DBCacheConfig(
            **base, steps_computation_mask=mask, steps_computation_policy="static"
        ),
    }
    fractions: dict[str, float] = {}

    def setting(name: str, config: DBCacheConfig | None) -> Setting:
        @contextmanager
        def put_on() -> Iterator[None]:
            if config is None:
                yield
                return
            cache_dit.enable_cache(pipe, config, TaylorSeerCalibratorConfig())
            try:
                yield
                if name not in fractions:
                    saved = cache_dit.summary(pipe, logging=False)[0].flops_saved
                    fractions[name] = 1.0 if saved is None else 1.0 - saved
            finally:
                cache_dit.disable_cache(pipe)

        return put_on

    seconds = interleaved(
        lambda: latents(pipe, batch, steps),
        {name: setting(name, config) for name, config in configs.items()},
        rounds,
    )
    rows = []
    for name in configs:
        middle, low, high = ratios(seconds, name, BASE)
        fraction = fractions.get(name, 1.0)
        rows.append(
            f"| {batch} | {name} | {statistics.median(seconds[name]):.3f} | {middle:.4f} | "
            f"{low:.4f} to {high:.4f} | {fraction:.4f} | {fraction / middle:.3f} |"
        )
    return rows


def latents(pipe: Any, batch: int, steps: int) -> Tensor:
    """One run of the pipeline without the decoder."""
    result: Tensor = pipe(
        PROMPTS[0],
        height=64,
        width=64,
        max_sequence_length=10,
        num_inference_steps=steps,
        num_images_per_prompt=batch,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).images
    return result


def main() -> None:
    """Run all and print markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=30, help="rounds at batch 1; a third of it at batch 4")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--write", action="store_true", help="write bench/results/engine.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    empty, skipped = skipped_block(given.rounds)
    pipe = load_pipeline()
    latents(pipe, 1, given.steps)  # first use of every kernel
    rows = demo_costs(pipe, 1, given.rounds, given.steps)
    rows += demo_costs(pipe, 4, max(given.rounds // 3, 4), given.steps)
    text = "\n".join(
        (
            "# Cost of the engine",
            "",
            environment(),
            "",
            f"One block of {BLOCKS}, best of {given.rounds} rounds, all costs of the forward included: an "
            f"empty `nn.Module` call takes {empty:.2f} us, a skipped block {skipped:.2f} us: "
            f"**{skipped / empty:.2f}x**.",
            "",
            f"The demo model, {given.steps} steps, Taylor order 1, F1B0, interleaved; ratio to the uncached "
            "run of the same round. Realised/ideal is the FLOPs fraction over that ratio.",
            "",
            "| batch | setting | seconds | ratio (median) | quartiles | FLOPs fraction | realised/ideal |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *rows,
        )
    )
    print(text)
    if given.write:
        print(f"\nwritten: {write('engine.md', text)}")


if __name__ == "__main__":
    main()
