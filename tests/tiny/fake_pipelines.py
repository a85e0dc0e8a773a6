"""Pipelines that have the name, components and call pattern of those of diffusers, read from their source.

Most real pipelines need text encoders, processors or packages that are not there. What caching sees of a
pipeline is less: its components, its scheduler, and in which order it calls which transformer under which
name. That is what these do.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import functools
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from cache_dit.caching.models.rows import row_of

from .base import TinyModel, output_of
from .models import TINY_MODELS

ROOT = Path(diffusers.__file__).parent
_MODEL = re.compile(r"^class (\w+)\([^)]*ModelMixin", re.MULTILINE)
_MODULAR = re.compile(r"^class (\w+ModularPipeline)\(", re.MULTILINE)
_MENTION = re.compile(r"^\s+\w+: .*(Transformer|DiT|UVit|Decoder)", re.MULTILINE)

# Call sites of which only one runs in a step (other inputs, another guidance, or once before the loop).
_ONE_CALL = frozenset(
    {
        "Flux2KleinKVPipeline",
        "LTX2DFRPipeline",
        "LTX2DFRTemporalRefinePipeline",
        "SanaWMLTX2Refiner",
        "StableDiffusion3Pipeline",
    }
)
_TWO_CALLS = frozenset({"AceStepPipeline", "GlmImagePipeline"})
_WITHOUT_INDEX = frozenset(
    {"CogVideoXDDIMScheduler", "CogVideoXDPMScheduler", "DDPMScheduler", "KarrasDiffusionSchedulers"}
)
# Modular guiders hand over the names one by one.
_GUIDER = ("pred_cond", "pred_uncond")


@dataclass(frozen=True, eq=False)
class PipelineClass:
    """A pipeline class of diffusers as its source says."""

    name: str
    components: Mapping[str, frozenset[str]]
    """Name of a component -> names in its annotation."""
    optional: frozenset[str]
    """Components with a default."""
    may_be_none: tuple[str, ...]
    """Those of them that count as components nevertheless."""
    denoisers: tuple[str, ...]
    """Components that are diffusion transformers, in the order of the signature."""
    branches: tuple[str | None, ...]
    """Name given to `cache_context`, call by call of one step; None where nothing is named."""
    together: bool
    """All denoisers are called in every step; otherwise they take turns."""
    chunks: int
    """How often the timesteps are gone through in one call."""
    text: str
    """The file that it is defined in."""
    own_scheduler: bool
    """The pipeline's own scheduler is stepped, and not copies of it."""

    @property
    def transformer(self) -> str:
        """Class name of its first denoiser."""
        return next(iter(self.components[self.denoisers[0]] & diffusion_transformers()))


@functools.cache
def diffusion_transformers() -> frozenset[str]:
    """Names of the transformer classes of diffusers, wherever they are defined; ControlNets are elsewhere."""
    places = (
        ("models/transformers", "*.py"),
        ("models/unets", "uvit*.py"),
        ("pipelines", "**/*transformer*.py"),
    )
    sources = [source for folder, pattern in places for source in (ROOT / folder).glob(pattern)]
    return frozenset(
        name for source in sources for name in _MODEL.findall(source.read_text(encoding="utf-8"))
    )


@functools.cache
def pipeline_classes() -> tuple[PipelineClass, ...]:
    """All pipeline classes of the installed diffusers with a diffusion transformer, by name."""
    found: dict[str, PipelineClass] = {}
    for source in (ROOT / "pipelines").rglob("*.py"):
        text = source.read_text(encoding="utf-8")
        if _MENTION.search(text):
            for node in ast.parse(text).body:
                if isinstance(node, ast.ClassDef) and _is_pipeline(node):
                    made = _read(node, text)
                    if made.denoisers:
                        found[made.name] = made
    return tuple(found[name] for name in sorted(found))


def modular_pipelines() -> set[str]:
    """Names of the modular pipeline classes of the installed diffusers."""
    sources = (ROOT / "modular_pipelines").rglob("modular_pipeline*.py")
    return {name for source in sources for name in _MODULAR.findall(source.read_text(encoding="utf-8"))}


def _is_pipeline(node: ast.ClassDef) -> bool:
    return any(isinstance(base, ast.Name) and base.id == "DiffusionPipeline" for base in node.bases)


def _read(node: ast.ClassDef, text: str) -> PipelineClass:
    inits = [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"]
    arguments = inits[0].args if inits else ast.arguments([], [], None, [], [], None, [])
    plain, keyword = arguments.args[1:], arguments.kwonlyargs
    components = {argument.arg: _names(argument.annotation) for argument in (*plain, *keyword)}
    optional = {argument.arg for argument in plain[len(plain) - len(arguments.defaults) :]}
    optional |= {
        argument.arg
        for argument, default in zip(keyword, arguments.kw_defaults, strict=True)
        if default is not None
    }
    denoisers = tuple(name for name, names in components.items() if names & diffusion_transformers())
    calls = list(_calls(node, denoisers, None, 0))
    names = {name for name, _, _ in calls}
    steps = [loops for name, _, loops in calls if name.endswith(".step")]
    forwards = [(name, branch) for name, branch, loops in calls if loops and not name.endswith(".step")]
    branches = tuple(dict.fromkeys(branch for _, branch in forwards))
    if "context_name" in branches:
        branches = _GUIDER
    elif branches == (None,) and len({name for name, _ in forwards}) == 1:
        branches = (None,) * _unnamed(node.name, len(forwards))
    return PipelineClass(
        name=node.name,
        text=text,
        components=components,
        optional=frozenset(optional),
        may_be_none=tuple(name for part in node.body for name in _optional_components(part)),
        denoisers=denoisers,
        branches=branches or (None,),
        together=len({name for name, _ in forwards} & {f"self.{name}" for name in denoisers}) > 1,
        chunks=2 if steps and min(steps) > 1 else 1,
        own_scheduler=not steps or "self.scheduler.step" in names,
    )


def _optional_components(part: ast.stmt) -> list[str]:
    if isinstance(part, ast.Assign) and ast.unparse(part.targets[0]) == "_optional_components":
        return list(ast.literal_eval(part.value))
    return []


def _unnamed(name: str, sites: int) -> int:
    return 1 if name in _ONE_CALL else 2 if name in _TWO_CALLS else sites


def _names(annotation: ast.expr | None) -> frozenset[str]:
    nodes = () if annotation is None else ast.walk(annotation)
    return frozenset(node.id for node in nodes if isinstance(node, ast.Name))


def _calls(
    node: ast.AST, denoisers: tuple[str, ...], branch: str | None, loops: int
) -> Iterator[tuple[str, str | None, int]]:
    """Calls of denoisers and scheduler steps: of what, under which branch name, within how many loops."""
    loops += isinstance(node, ast.For | ast.While)
    if isinstance(node, ast.With):
        for item in node.items:
            call = item.context_expr
            if isinstance(call, ast.Call) and _dotted(call.func).endswith(".cache_context"):
                given = call.args[0]
                branch = str(given.value) if isinstance(given, ast.Constant) else _dotted(given)
    if isinstance(node, ast.Call):
        function = _dotted(node.func)
        if function in {"current_model", *(f"self.{name}" for name in denoisers)}:
            yield function, branch, loops
        elif function.endswith(".step") and "scheduler" in function:
            yield function, None, loops
    for child in ast.iter_child_nodes(node):
        yield from _calls(child, denoisers, branch, loops)


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Subscript):
        return _dotted(node.value)
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


# --- the pipelines ---


@functools.cache
def _models(name: str) -> tuple[nn.Module, ...]:
    """Tiny models of a transformer class; a second one for pipelines with two."""
    tiny = tiny_of(name)
    return (tiny.build(), tiny.build())


def tiny_of(name: str) -> TinyModel:
    """The first tiny model of a transformer class."""
    return next(tiny for tiny in TINY_MODELS if tiny.name == name)


def fake_pipeline(kind: PipelineClass) -> Any:
    """A pipeline with the name and components of the class: transformers, ControlNets and a scheduler."""
    plain = [name for name in kind.components if name not in kind.optional]
    signature = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    for name in (*plain, *sorted(kind.optional)):
        default = None if name in kind.optional else inspect.Parameter.empty
        signature.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default))

    def __init__(self: Any, **components: Any) -> None:
        super(made, self).__init__()
        self.register_modules(**components)

    __init__.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
    members = {"__init__": __init__, "__call__": _run, "source": kind}
    members["_optional_components"] = list(kind.may_be_none)
    made: Any = type(kind.name, (DiffusionPipeline,), members)
    return made(**{name: _part(kind, name) for name in kind.components})


def _part(kind: PipelineClass, name: str) -> Any:
    annotated = kind.components[name]
    known = [tiny.name for tiny in TINY_MODELS if tiny.name in annotated]
    if known:
        return _models(known[0])[name in kind.denoisers[1:]]
    return _scheduler(annotated) if name.endswith("scheduler") else None


def _scheduler(annotated: frozenset[str]) -> Any:
    # Without a step index the timestep must tell the steps apart; of those with one, one stands for all.
    if "FlowMatchEulerDiscreteScheduler" not in annotated and annotated & _WITHOUT_INDEX:
        return diffusers.DDIMScheduler()
    return diffusers.FlowMatchEulerDiscreteScheduler()


def _run(self: Any, steps: int) -> list[Tensor]:
    kind: PipelineClass = self.source
    outputs: list[Tensor] = []
    own = next(getattr(self, name) for name in kind.components if name.endswith("scheduler"))
    for _ in range(kind.chunks):
        own.set_timesteps(steps)
        self._num_timesteps = steps
        scheduler = own if kind.own_scheduler else copy.deepcopy(own)
        latents = torch.ones(1, 2)
        for step, t in enumerate(own.timesteps):
            for name in kind.denoisers if kind.together else [duty(kind, step, steps)]:
                for place, branch in enumerate(kind.branches):
                    model = getattr(self, name)
                    with model.cache_context(branch) if branch else contextlib.nullcontext():
                        outputs += output_of(model, inputs_of(type(model).__name__, step, place))
            latents = scheduler.step(torch.zeros_like(latents), t, latents, return_dict=False)[0]
    return outputs


def duty(kind: PipelineClass, step: int, steps: int) -> str:
    """The denoiser that is called in a step: each has its part of the run."""
    return kind.denoisers[step * len(kind.denoisers) // steps]


def inputs_of(name: str, step: int, place: int) -> dict[str, Any]:
    """Inputs of one branch at one step: only the time moves."""
    tiny, row = tiny_of(name), row_of(getattr(diffusers, name))
    assert row is not None
    moving = tiny.inputs(step)
    return tiny.inputs(10 * place) | {name: moving[name] for name in moving if name == row.timestep}
