"""Fewer bits, compiled blocks and a cache on one pipeline, in the order in which they go together."""

from flux_model import load, seeded

import cache_dit
from cache_dit.compile import compile_repeated_blocks

pipe, size = load(__doc__)

cache_dit.quantize(pipe, "int8_weight_only")  # before blocks are compiled
cache_dit.enable_cache(pipe)  # anywhere
cache_dit.set_compile_configs()
compile_repeated_blocks(pipe)  # last; the first picture takes longer

for number in range(2):
    image = pipe("a red balloon on snow at night", generator=seeded(number), **size).images[0]
    image.save(f"quantize_compile_cache_{number}.png")
cache_dit.summary(pipe)
