"""Find out once which steps of a model matter, keep that in a file, and use it from then on."""

from flux_model import load, seeded

import cache_dit
from cache_dit import Schedule
from cache_dit.tune import observe

PROMPTS = [
    "a red house on grass at day",
    "a yellow tree on snow at night",
    "a pink mushroom on sand at sunset",
]

pipe, size = load(__doc__)
steps = size.pop("num_inference_steps")

# Each prompt costs an uncached run. What was seen gives a schedule for any number of computed steps.
seen = observe(pipe, PROMPTS, num_inference_steps=steps, **size)
seen.schedule(computed_steps=steps // 2).save("schedule.json")

# Any time later, and in any process.
cache_dit.enable_cache(pipe, cache_dit.presets.dpcache(Schedule.load("schedule.json")))
image = pipe("a blue balloon on sand at day", num_inference_steps=steps, generator=seeded(), **size).images[0]
image.save("calibrate_schedule.png")
(stats,) = cache_dit.summary(pipe, logging=False)
print(f"skipped {stats.cached_steps} of {stats.total_steps} steps")
