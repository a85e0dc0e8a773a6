"""What the engine itself costs: one skipped block, a run that never skips, and realised against ideal speed.

python bench/engine.py            # about five minutes on a quiet machine
python bench/engine.py --write    # also writes bench/results/engine.md
"""

from __future__ import annotations

import argparse
import statistics
import timeit
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from common import environment, in_turn, write
from torch import Tensor, nn

import cache_dit
from cache_dit import DBCacheConfig, TaylorSeerCalibratorConfig
from cache_dit.demo import PROMPTS, load_pipeline

BLOCKS = 400


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


Forward = tuple[tuple[Any, ...], dict[str, Any]]


def recorded(pipe: Any, batch: int, steps: int) -> list[Forward]:
    """The arguments of every transformer forward of one uncached run."""
    forwards: list[Forward] = []
    handle = pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: forwards.append((args, kwargs)), with_kwargs=True
    )
    pipe(
        PROMPTS[0],
        height=64,
        width=64,
        max_sequence_length=10,
        num_inference_steps=steps,
        num_images_per_prompt=batch,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    )
    handle.remove()
    return forwards


def configurations(steps: int) -> dict[str, DBCacheConfig | None]:
    """What is compared with the uncached transformer; None: the uncached transformer again."""
    base: dict[str, Any] = {
        "Fn_compute_blocks": 1,
        "max_warmup_steps": 4,
        "enable_separate_cfg": False,
        "num_inference_steps": steps,  # so that every round is a run of its own
    }

    def masked(policy: str, **fields: Any) -> DBCacheConfig:
        mask = cache_dit.steps_mask(mask_policy=policy, total_steps=steps)
        return DBCacheConfig(**base, residual_diff_threshold=1.0, steps_computation_mask=mask, **fields)

    return {
        "uncached (control)": None,
        "never skips: threshold 0": DBCacheConfig(**base, residual_diff_threshold=0.0),
        "never skips: threshold 1e-6": DBCacheConfig(**base, residual_diff_threshold=1e-6),
        "threshold 0.12": DBCacheConfig(**base, residual_diff_threshold=0.12),
        "slow mask": masked("slow"),
        "fast mask": masked("fast"),
        "fast mask, static": masked("fast", steps_computation_policy="static"),
    }


def sharing_weights(model: nn.Module) -> nn.Module:
    """A copy with modules of its own and the same tensors, so that both find the processor's caches alike."""
    kept = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return deepcopy(model, kept)


def shortened(model: Any, blocks: int) -> Any:
    """A copy of a Flux transformer that has its first blocks only: a step whose other blocks cost nothing."""
    short = sharing_weights(model)
    short.transformer_blocks = short.transformer_blocks[:blocks]
    short.single_transformer_blocks = nn.ModuleList()
    return short


def demo_costs(pipe: Any, batch: int, rounds: int, steps: int) -> list[str]:
    """Table rows for one batch size: the transformer's forwards of a real run, replayed."""
    forwards = recorded(pipe, batch, steps)
    rows = []
    for name, config in configurations(steps).items():
        plain, other = sharing_weights(pipe.transformer), sharing_weights(pipe.transformer)
        skipped = [False] * steps
        first = 0
        if config is not None:
            cache_dit.enable_cache(other, config, TaylorSeerCalibratorConfig())
            first = 0 if config.steps_computation_policy == "static" else config.Fn_compute_blocks
        with torch.no_grad():
            for call in replay([other] * steps, forwards):
                call()
            saved = 0.0
            if config is not None:
                (stats,) = cache_dit.summary(other, logging=False)
                saved = stats.flops_saved or 0.0
                skipped = [step.verdict.skip for step in stats.steps]
            short = shortened(pipe.transformer, first)
            ideal = [short if skip else plain for skip in skipped]
            models = [plain] * steps, [other] * steps, ideal
            runs = [partial(replay, each, forwards) for each in models]
            (base, mine, bound), (_, ratios, _) = in_turn(runs, rounds)
        low, _, high = statistics.quantiles(ratios, n=4)
        rows.append(
            f"| {batch} | {name} | {base:.3f} | {mine:.3f} | {mine / base:.4f} | {low:.3f} to {high:.3f} | "
            f"{bound / base:.4f} | {bound / mine:.3f} | {1 - saved:.4f} | {(1 - saved) * base / mine:.3f} |"
        )
        print(rows[-1], flush=True)
    return rows


def replay(transformers: list[Any], forwards: list[Forward]) -> Iterator[Callable[[], Any]]:
    """The forwards of a run as calls, each of its transformer, in a request of their own."""
    with cache_dit.Request():
        for transformer, (args, kwargs) in zip(transformers, forwards, strict=True):
            yield partial(transformer, *args, **kwargs)


def main() -> None:
    """Run all and print markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=24, help="rounds at batch 1; a third of it at batch 4")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--write", action="store_true", help="write bench/results/engine.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    empty, skipped = skipped_block(given.rounds)
    pipe = load_pipeline()
    rows = demo_costs(pipe, 1, given.rounds, given.steps)
    rows += demo_costs(pipe, 4, max(given.rounds // 3, 2), given.steps)
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
            f"The demo model: the {given.steps} transformer forwards of a run, replayed, Taylor order 1, "
            "F1B0; whole runs in turn, uncached, cached and ideal, by copies that share the weights. Seconds "
            "are sums over the steps of their fastest rounds, quartiles those of the ratio in a round.",
            "",
            "*Ideal* is measured: the same steps computed in full and, for every skipped step, a transformer "
            "from which the skipped blocks were taken out. Its ratio is what a cache without any cost of its "
            "own would reach; FLOPs / ratio counts the model's work outside of its blocks as a loss too.",
            "",
            "| batch | setting | uncached, s | s | ratio | quartiles | ideal ratio | realised/ideal | "
            "FLOPs fraction | FLOPs / ratio |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
            *rows,
        )
    )
    print(text)
    if given.write:
        print(f"\nwritten: {write('engine.md', text)}")


if __name__ == "__main__":
    main()
