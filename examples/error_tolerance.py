"""Say how far a skipped step may be off, and let each picture take the steps that this needs."""

from flux_model import load, seeded

import cache_dit
from cache_dit.metrics import psnr

pipe, size = load(__doc__)


def draw():
    prompt = "a green tree on grass at sunset with mountains"
    return pipe(prompt, generator=seeded(), output_type="pt", **size).images[0].float()


uncached = draw()
for tolerance in (0.02, 0.05, 0.1):  # relative L1 error of the transformer's output
    cache_dit.enable_cache(pipe, cache_dit.presets.tolerance(tolerance))
    near = psnr(draw(), uncached, data_range=1.0)
    (stats,) = cache_dit.summary(pipe, logging=False)
    skipped = f"{len(stats.cached_steps)} of {stats.total_steps} steps skipped"
    print(f"tolerance {tolerance}: {skipped}, {near:.1f} dB")
