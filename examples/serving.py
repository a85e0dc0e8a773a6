"""Many requests on one transformer, a step of each in turn; they differ in length and never mix."""

from collections import deque

import torch
from flux_model import inputs_of, load, picture_of, scheduler_of

import cache_dit
from cache_dit import DBCacheConfig, Request

pipe, size = load(__doc__)
steps = size["num_inference_steps"]
cache_dit.enable_cache(
    pipe.transformer, DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=4, residual_diff_threshold=0.12)
)


class Job:
    """One picture in the making."""

    def __init__(self, number, prompt, request):
        self.number, self.request = number, request
        self.latents, self.inputs = inputs_of(pipe, prompt, size, seed=number)
        self.scheduler = scheduler_of(pipe, request.num_inference_steps)
        self.times = deque(self.scheduler.timesteps)

    @torch.no_grad()
    def advance(self):
        """Take one step, in whatever thread; tell whether it was the last."""
        time = self.times.popleft()
        with self.request:  # what is cached belongs to this request
            velocity = pipe.transformer(self.latents, timestep=time.expand(1) / 1000, **self.inputs)[0]
        self.latents = self.scheduler.step(velocity, time, self.latents, return_dict=False)[0]
        return not self.times


waiting = deque(
    [
        Job(0, "a red house on grass at day", Request(num_inference_steps=steps)),
        Job(1, "a pink house on sand at sunset", Request(num_inference_steps=steps // 2)),
        # Only this field is another one; a request may also have a whole configuration of its own.
        Job(2, "a blue mushroom on sand at day", Request(steps, DBCacheConfig().reset(max_cached_steps=2))),
    ]
)
running = deque()
while waiting or running:
    while waiting and len(running) < 2:  # as many as memory allows
        running.append(waiting.popleft())
    job = running.popleft()
    if job.advance():
        picture_of(pipe, job.latents, size).save(f"serving_{job.number}.png")
        print(f"request {job.number}: done after {job.request.num_inference_steps} steps")
    else:
        running.append(job)
