"""One pipeline, and one timed picture of it after the other."""

from __future__ import annotations

import inspect
import io
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from cache_dit.api import attachments_of
from cache_dit.bench.report import processor
from cache_dit.demo.model import SIZE, TOKENS, check_prompt, load_pipeline
from cache_dit.errors import CacheDiTError, ConfigError
from cache_dit.stats.flops import forward_flops
from cache_dit.stats.stats import stats_of

DEMO = "demo"
_PROMPT_BYTES = 2**20
_PROMPTS = Path(__file__).parent / "prompts"
# Enough to load kernels and to fill the allocator's pools.
_WARM_UP_STEPS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What all pictures of a benchmark share.

    Attributes:
        model: Folder or hub id of a pipeline, or "demo".
        prompts: What is drawn, a picture for each.
        steps: Denoising steps.
        height: In pixels; None: what the pipeline takes without.
        width: Likewise.
        cfg: Scale of guidance: `true_cfg_scale` where the pipeline has it, else `guidance_scale`; None: what
            the pipeline takes without.
        seed: Seed of the first picture; every next one has the next.
        dtype: Name of the type of the weights, such as "bfloat16"; the demo model has float32.
        device: Where it runs.
    """

    model: str
    prompts: tuple[str, ...]
    steps: int
    height: int | None = None
    width: int | None = None
    cfg: float | None = None
    seed: int = 0
    dtype: str = "float32"
    device: str = "cpu"

    def identity(self) -> dict[str, Any]:
        """What must be the same for pictures and times to stand in one table."""
        import diffusers

        from cache_dit._version import __version__

        return {
            "model": self.model,
            "files of the model": _files(self.model),
            "steps": self.steps,
            "height": self.height,
            "width": self.width,
            "cfg": self.cfg,
            "seed": self.seed,
            "dtype": self.dtype,
            "device": device_name(self.device),
            "number of prompts": len(self.prompts),
            "prompts": list(self.prompts),
            "cache_dit": __version__,
            "torch": str(torch.__version__),
            "diffusers": diffusers.__version__,
        }


def read_prompts(file: Path | None, model: str, limit: int | None = None) -> tuple[str, ...]:
    """The first prompts of a file.

    Args:
        file: Text in UTF-8 with a prompt on each line; empty lines do not count. None: prompts that come with
            the package, for the demo model or for any other.
        model: As in `Job`.
        limit: None: all.

    Raises:
        ConfigError: There is no such file, or no prompt in it.
    """
    path = file or _PROMPTS / ("demo.txt" if model == DEMO else "general.txt")
    if not path.is_file() or path.stat().st_size > _PROMPT_BYTES:
        raise ConfigError(f"{path} is no file of at most 1 MiB; give a text file with a prompt on each line.")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no text in UTF-8: {error}; save it as UTF-8.") from error
    prompts = tuple(line.strip() for line in lines if line.strip())[:limit]
    if not prompts:
        raise ConfigError(f"{path} has no prompt; write one on each line.")
    return prompts


def device_name(device: str) -> str:
    """The processor's or the accelerator's name."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else processor()


@dataclass(slots=True)
class Camera:
    """A loaded pipeline, and what is watched while it draws.

    Attributes:
        pipe: The pipeline.
        job: What is drawn.
        calls: Forwards of each uncached transformer since the last picture began.
        example: The arguments of its first forward, with shapes and no values.
    """

    pipe: Any
    job: Job
    calls: dict[nn.Module, int] = field(default_factory=dict)
    example: dict[nn.Module, tuple[Any, Any]] = field(default_factory=dict)

    def picture(self, number: int) -> tuple[bytes, float]:
        """Draw the picture of a prompt: a PNG file, and the seconds of its drawing."""
        # One thread draws the demo model: its own seconds are those of a machine with nothing else to do.
        clock = time.process_time if self.job.model == DEMO else time.perf_counter
        self.calls.clear()
        _wait(self.job.device)
        start = clock()
        image = self._draw(number, self.job.steps)
        _wait(self.job.device)
        seconds = clock() - start
        file = io.BytesIO()
        image.save(file, "PNG")
        return file.getvalue(), seconds

    def warm_up(self) -> None:
        """Draw some steps that do not count: the first run of a process is slow."""
        self._draw(0, min(_WARM_UP_STEPS, self.job.steps))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count the forwards of the transformers of a pipeline without cache."""
        models = [model for name, model in self.pipe.components.items() if name.startswith("transformer")]
        hooks = [
            model.register_forward_pre_hook(self._seen, with_kwargs=True)
            for model in models
            if isinstance(model, nn.Module)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def uncached_flops(self) -> float | None:
        """FLOPs of the transformers over the last picture; None where they cannot be counted."""
        total = 0.0
        for model, calls in self.calls.items():
            flops = forward_flops(model, *self.example[model])
            if flops is None:
                return None
            total += calls * flops[model]
        return total or None

    def _seen(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        self.calls[model] = self.calls.get(model, 0) + 1
        if model not in self.example:
            self.example[model] = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))

    def _draw(self, number: int, steps: int) -> Any:
        job = self.job
        generator = torch.Generator("cpu").manual_seed(job.seed + number)
        drawn = self.pipe(
            prompt=job.prompts[number],
            num_inference_steps=steps,
            generator=generator,
            **arguments_of(self.pipe, job),
        )
        images = getattr(drawn, "images", None)
        if not images or not hasattr(images[0], "save"):
            raise ConfigError(
                f"{type(self.pipe).__name__} gives no pictures; take a pipeline of text to image."
            )
        return images[0]


def load(job: Job) -> Camera:
    """Load the pipeline of a job.

    Raises:
        ConfigError: There is no such pipeline, or a prompt is not for the demo model.
    """
    if job.model == DEMO:
        pipe = load_pipeline()
        for prompt in job.prompts:
            check_prompt(pipe, prompt)
        return Camera(pipe, job)
    from diffusers import DiffusionPipeline

    try:
        with warnings.catch_warnings():
            # The name of this argument differs between releases of diffusers; all of them take this one.
            warnings.simplefilter("ignore", FutureWarning)
            pipe = DiffusionPipeline.from_pretrained(job.model, torch_dtype=getattr(torch, job.dtype))
    except (OSError, ValueError) as error:
        fact = str(error).splitlines()[0]
        raise CacheDiTError(f"{job.model} cannot be loaded as a pipeline: {fact}") from error
    pipe.set_progress_bar_config(disable=True)
    return Camera(pipe.to(job.device), job)


def cached_account(pipe: Any) -> tuple[float | None, tuple[int, ...], tuple[int, ...]]:
    """FLOPs of the last run of a pipeline with cache, and steps and skipped steps of each branch."""
    total: float | None = 0.0
    steps, cached = [], []
    for attached in attachments_of(pipe):
        stats = stats_of(attached)
        for entry in stats:
            steps += [len({one.step for one in entry.of(place)}) for place in range(len(entry.branches))]
            cached += [len(entry.skipped(place)) for place in range(len(entry.branches))]
        forwards = len({(one.branch, one.step) for entry in stats for one in entry.steps})
        saved = [entry.flops_saved for entry in stats]
        if stats and (stats[0].flops is None or total is None):
            total = None
        elif stats and total is not None:
            whole = forwards * (stats[0].flops or 0)
            total += whole * (1 - sum(share or 0.0 for share in saved))
    return total or None, tuple(steps), tuple(cached)


def arguments_of(pipe: Any, job: Job) -> Mapping[str, Any]:
    """What this pipeline's call takes of the job's options.

    Raises:
        ConfigError: It does not know one of them.
    """
    takes = inspect.signature(pipe.__call__).parameters
    demo = {"height": SIZE, "width": SIZE, "max_sequence_length": TOKENS} if job.model == DEMO else {}
    sizes = {"height": job.height, "width": job.width}
    given: dict[str, Any] = demo | {name: value for name, value in sizes.items() if value is not None}
    if job.cfg is not None and "true_cfg_scale" in takes:
        given |= {"true_cfg_scale": job.cfg, "negative_prompt": ""}
    elif job.cfg is not None:
        given["guidance_scale"] = job.cfg
    for name in given:
        if name not in takes:
            raise ConfigError(f"{type(pipe).__name__} takes no {name}; leave that option out.")
    return given


def _files(model: str) -> dict[str, int] | None:
    """Names and sizes of the files of a local folder, by which a changed model shows."""
    folder = Path(model)
    if not folder.is_dir():
        return None
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*.*"))}


def _wait(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize(torch.device(device))
