"""A run whose condition switches on the way computes that step, and forecasts from later steps only.

A ControlNet's window begins or ends, LoRAs and IP-Adapters are loaded, exchanged, scaled or taken out, or
another transformer has worked in between. Most runs take the same input at all of their steps, so that what
is skipped must agree with the forward of a model without a cache; and what follows a switch is, bit for bit,
what a run that begins there gives.
"""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from diffusers import FluxMultiControlNetModel
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor, FluxIPAdapterAttnProcessor
from peft import LoraConfig
from tiny.control_models import FLUX_CONTROL_UNION, Z_IMAGE_CONTROL
from tiny.control_pipelines import CONTROL_PIPELINES, FLUX_CONTROLNET, ControlPipeline
from tiny.models import FLUX, WAN, WAN_SECOND, Draw, Inputs, output_of
from tiny.runs import decisions
from torch import Tensor

import cache_dit
from cache_dit import DBCacheConfig, Request, TaylorSeerCalibratorConfig
from cache_dit.api import attachments_of
from cache_dit.caching.maths.gate import Reason
from cache_dit.errors import ConfigError, EngineError

CONFIG = DBCacheConfig(
    Fn_compute_blocks=1, max_warmup_steps=1, residual_diff_threshold=1.0, enable_separate_cfg=False
)
TAYLOR = TaylorSeerCalibratorConfig(taylorseer_order=2)

Prepare = Callable[[Any], None]


def nothing(model: Any) -> None:
    """Leave the model as it is."""


class Part:
    """Some steps of a run: how often, under which inputs, and what is done to the model before."""

    def __init__(self, count: int, inputs: Inputs, prepare: Prepare = nothing) -> None:
        self.count, self.inputs, self.prepare = count, inputs, prepare


def error(output: Tensor, other: Tensor) -> float:
    return float((output - other).norm() / other.norm())


def run(model: Any, parts: Sequence[Part]) -> list[Tensor]:
    """The output of every step."""
    outputs = []
    with Request():
        for part in parts:
            part.prepare(model)
            outputs += [output_of(model, part.inputs)[0] for _ in range(part.count)]
    return outputs


def check(parts: Sequence[Part]) -> None:
    """A switch before every part but the first, and none within a part."""
    expected, model = run(FLUX.build(), parts), cache_dit.enable_cache(FLUX.build(), CONFIG, TAYLOR)
    outputs = run(model, parts)
    assert decisions(model) == "".join("C" + "S" * (part.count - 1) for part in parts)
    latest = attachments_of(model)[0].session.latest
    assert latest is not None
    reasons = [step.verdict.reason for step in latest.steps if not step.verdict.skip]
    assert reasons == [Reason.WARMUP, *[Reason.SWITCHED] * (len(parts) - 1)]
    assert max(map(error, outputs, expected)) < 1e-5
    first = 0
    for number, part in enumerate(parts):
        if number:
            assert error(expected[first], expected[first - 1]) > 1e-3, "the parts do not differ"
        fresh = FLUX.build()
        for earlier in parts[:number]:
            earlier.prepare(fresh)
        alone = run(cache_dit.enable_cache(fresh, CONFIG, TAYLOR), [part])
        assert all(map(torch.equal, alone, outputs[first : first + part.count]))
        first += part.count


# --- arguments ---

PLAIN = FLUX.inputs(0)
CONTROLLED = FLUX.variants["controlnet"](0)
ZERO = CONTROLLED | {
    name: [torch.zeros_like(value) for value in CONTROLLED[name]]
    for name in ("controlnet_block_samples", "controlnet_single_block_samples")
}
WITHOUT = CONTROLLED | {"controlnet_block_samples": None, "controlnet_single_block_samples": None}
ONE_OF_TWO = CONTROLLED | {"controlnet_single_block_samples": None}


@pytest.mark.parametrize(
    "off", [PLAIN, WITHOUT, ZERO, ONE_OF_TWO], ids=["plain", "None", "zero", "one of two"]
)
def test_window_of_a_controlnet(off: Inputs) -> None:
    check([Part(3, CONTROLLED), Part(3, off)])
    check([Part(2, off), Part(3, CONTROLLED), Part(2, off)])


def test_residuals_that_change_are_no_switch() -> None:
    others = [CONTROLLED | FLUX.variants["controlnet"](seed) | PLAIN for seed in range(4)]
    model = cache_dit.enable_cache(FLUX.build(), CONFIG)
    run(model, [Part(1, inputs) for inputs in others])
    assert decisions(model) == "CSSS"


def test_a_switch_of_one_branch_is_none_of_the_other() -> None:
    model: Any = cache_dit.enable_cache(FLUX.build(), CONFIG)
    with Request():
        for step in range(4):
            for name in ("cond", "uncond"):
                with model.cache_context(name):
                    output_of(model, CONTROLLED if name == "uncond" and step < 2 else PLAIN)
    assert decisions(model) == "CSSS"
    assert decisions(model, branch=1) == "CSCS"


# --- LoRAs ---


def add_lora(name: str, *layers: str, weights: int = 0) -> Prepare:
    """Load a LoRA with random weights into some of the linear layers."""

    def add(model: Any) -> None:
        config = LoraConfig(r=2, lora_alpha=6, target_modules=list(layers), init_lora_weights=False)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # PEFT tells that a second adapter is the second.
            warnings.filterwarnings("ignore", message="Already found", category=UserWarning)
            torch.manual_seed(weights)
            model.add_adapter(config, name)

    return add


def set_adapters(names: Sequence[str], weights: Sequence[float]) -> Prepare:
    return lambda model: model.set_adapters(list(names), list(weights))


def then(*prepare: Prepare) -> Prepare:
    def all_of_them(model: Any) -> None:
        for one in prepare:
            one(model)

    return all_of_them


def unload(model: Any) -> None:
    model.unload_lora()


FIRST = add_lora("first", "to_q")
SECOND = add_lora("second", "proj_mlp", weights=1)
BOTH = then(FIRST, SECOND, set_adapters(["first", "second"], [1.0, 0.3]))


@pytest.mark.parametrize(
    ("before", "switch"),
    [
        pytest.param(nothing, FIRST, id="loaded"),
        pytest.param(FIRST, unload, id="unloaded"),
        pytest.param(FIRST, then(unload, add_lora("first", "to_q", weights=2)), id="reloaded"),
        pytest.param(FIRST, SECOND, id="another loaded"),
        pytest.param(BOTH, set_adapters(["first"], [1.0]), id="one of two"),
        pytest.param(BOTH, set_adapters(["second"], [0.3]), id="other of two"),
        pytest.param(BOTH, set_adapters(["first", "second"], [1.0, 0.9]), id="scale of the second"),
        pytest.param(FIRST, set_adapters(["first"], [0.5]), id="scale"),
        pytest.param(FIRST, lambda model: model.disable_lora(), id="disabled"),
        pytest.param(
            FIRST, then(lambda model: model.fuse_lora(lora_scale=0.5), unload), id="fused and unloaded"
        ),
    ],
)
def test_lora(before: Prepare, switch: Prepare) -> None:
    check([Part(3, PLAIN, before), Part(3, PLAIN, switch)])


def test_lora_fused() -> None:
    check([Part(3, PLAIN, FIRST), Part(3, PLAIN, lambda model: model.fuse_lora(lora_scale=0.5))])


def test_lora_scale_of_a_call() -> None:
    scaled = [PLAIN | {"joint_attention_kwargs": {"scale": scale}} for scale in (0.7, 0.3)]
    check([Part(8, scaled[0], BOTH), Part(8, scaled[1])])


def test_lora_that_is_not_used_is_no_switch() -> None:
    model = cache_dit.enable_cache(FLUX.build(), CONFIG)
    parts = [Part(2, PLAIN, then(BOTH, set_adapters(["first"], [1.0])))]
    outputs = run(model, [*parts, Part(2, PLAIN, set_adapters(["first"], [1.0]))])
    assert decisions(model) == "CSSS"
    assert error(outputs[3], outputs[0]) < 1e-5


def test_unloaded_lora_is_freed() -> None:
    model: Any = cache_dit.enable_cache(FLUX.build(), CONFIG)
    FIRST(model)
    weights = weakref.ref(model.transformer_blocks[0].attn.to_q.lora_A["first"].weight)
    output_of(model, PLAIN)
    unload(model)
    gc.collect()
    assert weights() is None


# --- IP-Adapters ---

_IMAGES, _IMAGE_DIM, _TOKENS = 2, 12, 4


def prompted(seed: int, **extra: Any) -> Inputs:
    draw = Draw(seed)
    return PLAIN | {"joint_attention_kwargs": {"ip_adapter_image_embeds": [draw(2, 1, _IMAGE_DIM)], **extra}}


def add_ip_adapter(model: Any) -> None:
    """As it is loaded from a file: projection layers, and processors of attention in the first list."""
    width = model.config.num_attention_heads * model.config.attention_head_dim
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        projection = ImageProjection(_IMAGE_DIM, model.config.joint_attention_dim, _TOKENS)
        model.encoder_hid_proj = MultiIPAdapterImageProjection([projection])
        text = model.config.joint_attention_dim
        model.set_attn_processor(
            {
                name: processor
                if name.startswith("single")
                else FluxIPAdapterAttnProcessor(width, text, num_tokens=(_TOKENS,))
                for name, processor in model.attn_processors.items()
            }
        )
    model.eval()


def scale_images(scale: float) -> Prepare:
    """What `set_ip_adapter_scale` of a pipeline does."""

    def set_scale(model: Any) -> None:
        for processor in model.attn_processors.values():
            processor.scale = [scale]

    return set_scale


def remove_ip_adapter(model: Any) -> None:
    model.encoder_hid_proj = None
    model.set_attn_processor(FluxAttnProcessor())


def test_repeated_image_prompt_is_exact() -> None:
    check([Part(5, prompted(0), add_ip_adapter)])


def test_image_prompt_begins_and_ends() -> None:
    check([Part(3, PLAIN), Part(3, prompted(0), add_ip_adapter), Part(2, PLAIN, remove_ip_adapter)])


def test_image_prompt_among_other_attention_arguments() -> None:
    other = PLAIN | {"joint_attention_kwargs": {"scale": 1.0}}
    check([Part(3, other), Part(3, prompted(0, scale=1.0), add_ip_adapter)])


def test_scale_of_the_image_prompt() -> None:
    check([Part(3, prompted(0), add_ip_adapter), Part(3, prompted(0), scale_images(0.0))])


def test_image_prompt_with_a_lora() -> None:
    check([Part(3, prompted(0), then(add_ip_adapter, FIRST)), Part(3, prompted(0), scale_images(0.5))])


def test_image_prompts_that_differ_are_no_switch() -> None:
    model = FLUX.build()
    add_ip_adapter(model)
    run(cache_dit.enable_cache(model, CONFIG), [Part(1, prompted(seed)) for seed in range(4)])
    assert decisions(model) == "CSSS"


# --- experts that take turns ---


class Position:
    """The step of a run as a pipeline tells it: schedulers have no index before their first step."""

    def __init__(self) -> None:
        self.step = 0

    def total_steps(self) -> int | None:
        return None

    def position(self) -> int | None:
        return self.step or -1


def take_turns(experts: Sequence[Any], turns: str, names: Sequence[str]) -> list[list[Tensor]]:
    """The outputs of every expert in a run with one of them on duty in every step."""
    request, position = Request(), Position()
    request.timeline = position
    outputs: list[list[Tensor]] = [[] for _ in experts]
    with request:
        for position.step, turn in enumerate(turns):
            model = experts[int(turn)]
            for name in names:
                with model.cache_context(name):
                    outputs[int(turn)].append(output_of(model, WAN.inputs(position.step))[0])
    return outputs


@pytest.mark.parametrize(
    ("turns", "first", "second"),
    [
        ("000111", "CSS", "CSS"),
        ("000111000", "CSSCSS", "CSS"),
        ("00101", "CSC", "CC"),
        ("0010011", "CSCS", "CCS"),
    ],
)
@pytest.mark.parametrize("names", [("cond",), ("cond", "uncond")], ids=["one branch", "two branches"])
def test_an_expert_that_returns_computes(turns: str, first: str, second: str, names: Sequence[str]) -> None:
    experts = [cache_dit.enable_cache(tiny.build(), CONFIG) for tiny in (WAN, WAN_SECOND)]
    outputs = take_turns(experts, turns, names)
    for branch in range(len(names)):
        assert [decisions(model, branch) for model in experts] == [first, second]
    plain = take_turns([WAN.build(), WAN_SECOND.build()], turns, names)
    for model, made, expected in zip((first, second), outputs, plain, strict=True):
        computed = [letter == "C" for letter in model for _ in names]
        same = [torch.equal(one, other) for one, other in zip(made, expected, strict=True)]
        assert same == computed


# --- pipelines ---

each_pipeline = pytest.mark.parametrize("tiny", CONTROL_PIPELINES, ids=lambda tiny: tiny.name)
STEPS = 8
PIPELINE_CONFIG = DBCacheConfig(Fn_compute_blocks=1, max_warmup_steps=1, residual_diff_threshold=1.0)


def computed(model: Any) -> list[Reason]:
    """Why the steps that were computed were; the first forecast segment of the first branch."""
    latest = attachments_of(model)[0].session.latest
    assert latest is not None
    return [step.verdict.reason for step in latest.of(0, latest.branches[0]) if not step.verdict.skip]


@each_pipeline
@pytest.mark.parametrize(
    ("window", "expected"),
    [
        ((0.0, 1.0), "CSSSSSSS"),
        ((0.0, 0.5), "CSSSCSSS"),
        ((0.5, 1.0), "CSSSCSSS"),
        ((0.25, 0.75), "CSCSSSCS"),
    ],
    ids=str,
)
def test_window_in_a_pipeline(tiny: ControlPipeline, window: tuple[float, float], expected: str) -> None:
    pipe = cache_dit.enable_cache(tiny.build(), PIPELINE_CONFIG)
    start, end = window
    tiny.call(pipe, STEPS, control_guidance_start=start, control_guidance_end=end)
    assert [decisions(pipe, branch) for branch in range(tiny.branches)] == [expected] * tiny.branches
    assert computed(pipe) == [Reason.WARMUP] + [Reason.SWITCHED] * (expected.count("C") - 1)


@each_pipeline
def test_the_step_at_which_a_window_ends_is_computed(tiny: ControlPipeline) -> None:
    pipe = tiny.build()
    results = []
    # With and without the step at which the window ends: it is computed in any case.
    for mask in ([1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0]):
        config = PIPELINE_CONFIG.updated(DBCacheConfig().reset(steps_computation_mask=mask))
        cache_dit.enable_cache(pipe, config, TAYLOR)
        results.append(tiny.call(pipe, STEPS, control_guidance_end=0.5))
        assert decisions(pipe) == "CCCCCSSS"
    assert torch.equal(*results)


@each_pipeline
def test_controlnet_is_cached_on_request_only(tiny: ControlPipeline) -> None:
    pipe = cache_dit.enable_cache(tiny.build(), PIPELINE_CONFIG)
    assert [attached.lists.name for attached in attachments_of(pipe)] == [tiny.transformer.name]
    with pytest.raises(ConfigError, match=f"{tiny.controlnet.name} is not cached"):
        attachments_of(pipe.controlnet)


@each_pipeline
def test_transformer_and_controlnet(tiny: ControlPipeline) -> None:
    pipe = tiny.build()
    expected = tiny.call(pipe, STEPS, control_guidance_end=0.5)
    never = PIPELINE_CONFIG.updated(DBCacheConfig().reset(residual_diff_threshold=0.0))
    for first, second in ((pipe, pipe.controlnet), (pipe.controlnet, pipe)):
        cache_dit.enable_cache(first, never)
        cache_dit.enable_cache(second, never)
        assert torch.equal(tiny.call(pipe, STEPS, control_guidance_end=0.5), expected)
        cache_dit.disable_cache(pipe)

    mask = [1, 0, 1, 0, 0, 1, 0, 0]
    own = PIPELINE_CONFIG.updated(DBCacheConfig().reset(steps_computation_mask=mask))
    cache_dit.enable_cache(pipe.controlnet, own)
    cache_dit.enable_cache(pipe, PIPELINE_CONFIG)
    for _ in range(2):
        tiny.call(pipe, STEPS, control_guidance_end=0.5)
        assert [decisions(pipe, branch) for branch in range(tiny.branches)] == ["CSSSCSSS"] * tiny.branches
        assert decisions(pipe.controlnet) == "CSCSSCSS"
    names = [attached.lists.name for attached in attachments_of(pipe)]
    assert names == [tiny.transformer.name, tiny.controlnet.name]
    assert not any(attached.shares_run for attached in attachments_of(pipe))

    cache_dit.disable_cache(pipe)
    for model in (pipe, pipe.controlnet):
        with pytest.raises(ConfigError, match="is not cached"):
            attachments_of(model)
    assert torch.equal(tiny.call(pipe, STEPS, control_guidance_end=0.5), expected)


@each_pipeline
def test_cached_controlnet_is_near(tiny: ControlPipeline) -> None:
    """Every second output of a ControlNet from the one before moves the result less than none at all."""
    pipe = tiny.build()
    expected, without = tiny.call(pipe, STEPS), tiny.call(pipe, STEPS, controlnet_conditioning_scale=0.0)
    config = PIPELINE_CONFIG.updated(DBCacheConfig().reset(max_continuous_cached_steps=1))
    cache_dit.enable_cache(pipe.controlnet, config)
    result = tiny.call(pipe, STEPS)
    assert decisions(pipe.controlnet) == "CS" * (STEPS // 2)
    assert 1e-4 < error(result, expected) < 0.5 * error(without, expected)


def two_pictures() -> Inputs:
    picture = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return {
        "control_image": [picture, 1 - picture],
        "control_mode": [0, 2],
        "controlnet_conditioning_scale": [1.0, 0.5],
        "control_guidance_start": [0.0, 0.0],
        "control_guidance_end": [1.0, 1.0],
    }


def test_several_controlnets() -> None:
    tiny, options = FLUX_CONTROLNET, two_pictures()
    pipe = tiny.build()
    pipe.controlnet = FluxMultiControlNetModel([pipe.controlnet, FLUX_CONTROL_UNION.build()])
    expected = tiny.call(pipe, STEPS, **options)
    first, second = pipe.controlnet.nets
    cache_dit.enable_cache(first, PIPELINE_CONFIG)
    cache_dit.enable_cache(second, PIPELINE_CONFIG.updated(DBCacheConfig().reset(max_warmup_steps=3)))
    cache_dit.enable_cache(pipe, PIPELINE_CONFIG)
    assert len(attachments_of(pipe)) == 3
    tiny.call(pipe, STEPS, **options)
    assert [decisions(model) for model in (pipe, first, second)] == ["CSSSSSSS", "CSSSSSSS", "CCCSSSSS"]
    cache_dit.disable_cache(pipe)
    assert torch.equal(tiny.call(pipe, STEPS, **options), expected)


def test_one_controlnet_for_several_pictures() -> None:
    """Its forwards of a step are branches, with a state each."""
    tiny, options = FLUX_CONTROLNET, two_pictures()
    pipe = tiny.build()
    pipe.controlnet = FluxMultiControlNetModel([FLUX_CONTROL_UNION.build()])
    net = pipe.controlnet.nets[0]
    expected = tiny.call(pipe, STEPS, **options)
    never = PIPELINE_CONFIG.updated(DBCacheConfig().reset(residual_diff_threshold=0.0))
    cache_dit.enable_cache(net, never)
    assert torch.equal(tiny.call(pipe, STEPS, **options), expected)
    for target in (net, pipe):
        cache_dit.enable_cache(target, PIPELINE_CONFIG)
    tiny.call(pipe, STEPS, **options)
    assert [decisions(net, branch) for branch in range(2)] == ["CSSSSSSS"] * 2


def test_list_that_runs_twice_is_refused() -> None:
    """Z-Image's ControlNet may refine the noise with the blocks of its list as well."""
    model: Any = Z_IMAGE_CONTROL.build()
    model.add_control_noise_refiner = "control_layers"
    cache_dit.enable_cache(model, CONFIG)
    with pytest.raises(EngineError, match="control_layers: block 1 ran again"), Request():
        output_of(model, Z_IMAGE_CONTROL.inputs(0))
