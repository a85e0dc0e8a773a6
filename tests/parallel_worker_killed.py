"""One of two ranks that exchange and decide together, of which one is killed."""

from __future__ import annotations

import datetime
import sys
import time

import torch
import torch.distributed as dist

from cache_dit.parallelism import ParallelismConfig
from cache_dit.parallelism.context.exchange import sent_to_heads
from cache_dit.parallelism.decisions import reduce_over
from cache_dit.parallelism.mesh import share


def main(store: str, rank: int, timeout: int) -> None:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=timeout),
    )
    sharing = share(ParallelismConfig(ulysses_size=2))
    reduce, part = reduce_over(sharing.group), torch.ones(1, 2, 2, 4)
    sent_to_heads(part, sharing.part("ulysses"), [2, 2])()
    reduce(torch.ones(2))
    print("ready", flush=True)
    begun = time.monotonic()
    try:
        while True:
            sent_to_heads(part, sharing.part("ulysses"), [2, 2])()
            reduce(torch.ones(2))
            time.sleep(0.01)
            begun = time.monotonic()
    except RuntimeError as error:
        print(f"{time.monotonic() - begun:.1f} {type(error).__name__}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
