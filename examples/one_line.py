"""Cache a pipeline with one line, and see what that did."""

from flux_model import load, seeded

import cache_dit

pipe, size = load(__doc__)

cache_dit.enable_cache(pipe)

image = pipe("a red house on grass at day with mountains", generator=seeded(), **size).images[0]
image.save("one_line.png")
cache_dit.summary(pipe)
cache_dit.disable_cache(pipe)  # the pipeline is as it was
