"""A cache and several processes on one picture; started by torchrun, which says who is who."""

import os

import torch
import torch.distributed as dist
from flux_model import load, seeded

import cache_dit
from cache_dit import DBCacheConfig, ParallelismConfig

if torch.cuda.is_available():
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")

pipe, size = load(__doc__)
cache_dit.enable_cache(
    pipe,
    cache_config=DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=4, residual_diff_threshold=0.12),
    # Sizes multiply: with 4 processes ulysses_size=2, ring_size=2 or ulysses_size=2, tp_size=2 go too.
    parallelism_config=ParallelismConfig(ulysses_size="auto"),
)

image = pipe("a red house on grass at day", generator=seeded(), **size).images[0]  # the same on every rank
(stats,) = cache_dit.summary(pipe, logging=False)
if dist.get_rank() == 0:
    image.save("hybrid_parallel.png")
    print(
        f"{dist.get_world_size()} processes: {len(stats.cached_steps)} of {stats.total_steps} steps skipped"
    )
cache_dit.disable_cache(pipe)  # on every rank too
dist.destroy_process_group()
