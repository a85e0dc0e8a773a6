"""FLUX has two lists of blocks: let each decide for itself, with a threshold of its own."""

from flux_model import load, seeded

import cache_dit
from cache_dit import DBCacheConfig, ParamsModifier, TaylorSeerCalibratorConfig

pipe, size = load(__doc__)

cache_dit.enable_cache(
    pipe,
    cache_config=DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=4),
    calibrator_config=TaylorSeerCalibratorConfig(taylorseer_order=1),
    # One for each list, in the order of the forward. reset changes what it names, the rest is as above.
    params_modifiers=[
        ParamsModifier(cache_config=DBCacheConfig().reset(residual_diff_threshold=0.08)),
        ParamsModifier(cache_config=DBCacheConfig().reset(residual_diff_threshold=0.16)),
    ],
)

image = pipe("a blue balloon on sand at sunset", generator=seeded(), **size).images[0]
image.save("flux_thresholds.png")
for stats in cache_dit.summary(pipe, logging=False):
    print(f"{' + '.join(stats.lists)}: {stats.total_steps} steps, skipped {stats.cached_steps}")
