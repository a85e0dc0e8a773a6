"""Ask for a quality or a speed, and get the method and the strength that reach it."""

from flux_model import load

import cache_dit
from cache_dit import presets
from cache_dit.tune import Bisection, Family, Measure, Profile, tune

PROMPTS = [  # 4 are the least; 16 or more give figures with a narrower interval
    "a red house on grass at day",
    "a yellow tree on snow at night",
    "a pink mushroom on sand at sunset",
    "a blue balloon on grass at day",
]

pipe, size = load(__doc__)
found = tune(
    pipe,
    PROMPTS,
    "psnr>=35",  # or "2x", "ssim>=0.98", "flops<=0.4", ...
    # Two methods, three trials each, to be short. Without space and search: seven methods and 24 trials.
    space=[
        Family(name="trajectory", make=presets.trajectory, mild=0.9, strong=0.2),
        Family(name="FORA", make=presets.fora, mild=2, strong=6, whole=True),
    ],
    search=Bisection(trials=6),
    told=print,
    **size,
)
found.profile.save("profile.json")

profile = Profile.load("profile.json")
cache_dit.enable_cache(pipe, profile)
flops, quality = (profile.measured[measure].mean for measure in (Measure.FLOPS, Measure.PSNR))
print(f"{profile.method}: {flops:.0%} of the FLOPs at {quality:.1f} dB; target met: {profile.met}")
