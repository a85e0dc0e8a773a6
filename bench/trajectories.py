"""Calibrate the demo model for `cache-dit bench compare`: one trajectory for each of its cells.

python bench/trajectories.py    # about two minutes; writes src/cache_dit/bench/trajectories/*.json

The pictures are runs of the training prompts, two seeds each; none of them is reported.
"""

from __future__ import annotations

from pathlib import Path

import torch

from cache_dit.bench import Cell, Purpose
from cache_dit.bench.systems import trajectory_file
from cache_dit.demo import load_pipeline
from cache_dit.demo.model import SIZE, TOKENS
from cache_dit.tune import calibrate


def main() -> None:
    """Run all cells."""
    torch.set_num_threads(1)
    pipe = load_pipeline()
    prompts = [picture.prompt for picture in Purpose.TRAINING.pictures]
    for steps in (28, 50):
        for cfg in (1.0, 2.0):
            guidance = {} if cfg == 1.0 else {"negative_prompt": "", "true_cfg_scale": cfg}
            path: Path = trajectory_file(Cell(steps, cfg))
            path.parent.mkdir(exist_ok=True)
            calibrate(
                pipe,
                prompts * 2,
                num_inference_steps=steps,
                seed=500,
                height=SIZE,
                width=SIZE,
                max_sequence_length=TOKENS,
                **guidance,
            ).save(path)
            print(path, flush=True)


if __name__ == "__main__":
    main()
