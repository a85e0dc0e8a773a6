"""Draw a picture with and without a cache, and make a page of it: every step, and what it saved."""

import time

from flux_model import load, seeded

import cache_dit

pipe, size = load(__doc__)
prompt = "a red house on grass at day with mountains"


def timed():
    began = time.perf_counter()
    image = pipe(prompt, generator=seeded(), **size).images[0]
    return image, time.perf_counter() - began


timed()  # whatever the first run prepares is not to be counted
reference, reference_seconds = timed()
cache_dit.enable_cache(pipe)
picture, seconds = timed()
path = cache_dit.report(
    pipe,
    "run.html",
    picture=picture,
    reference=reference,
    prompt=prompt,
    seconds=seconds,
    reference_seconds=reference_seconds,
)
print(f"open {path} in a browser")
