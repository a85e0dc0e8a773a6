"""`cache-dit generate`: 8 families with tiny pipelines on disk, two processes, names, errors."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import json
import os
import re
import runpy
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tiny.image_models import CHROMA, FLUX, QWEN_IMAGE, SD3
from tiny.models import tiny_model
from tiny.video_models import COGVIDEOX, LTX, WAN
from tokenizers import Tokenizer, models, pre_tokenizers
from typer.testing import CliRunner

from cache_dit import parse_config, supported_pipelines
from cache_dit.cli import app
from cache_dit.configs import save_configs
from cache_dit.demo import weights_path
from cache_dit.errors import CacheDiTError
from cache_dit.generate import FAMILIES, Drawing, Outcome, family_of, path_of, ready, save, stack_of
from cache_dit.generate.pipeline import _one_graph

ROOT = Path(__file__).parents[1]
RUNNER = CliRunner()
WIDTH, WORDS = 24, ["<pad>", "</s>", "<unk>", "a", "red", "house", "on", "grass", "at", "day", "with"]


def tokenizer(length: int) -> Any:
    """Some words, and unknown for all others."""
    made = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=length,
        chat_template="{{ messages[0].content }}",
    )


def clip(width: int, kind: type[Any] = transformers.CLIPTextModelWithProjection) -> Any:
    return kind(
        transformers.CLIPTextConfig(
            vocab_size=len(WORDS),
            hidden_size=width,
            projection_dim=width,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=77,
            eos_token_id=1,
        )
    )


def t5(kind: str = "T5") -> Any:
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(WORDS), d_model=WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    return getattr(transformers, f"{kind}EncoderModel")(config)


def qwen(kind: str) -> Any:
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    return getattr(transformers, f"{kind}Model")(config)


def vae(kind: str = "AutoencoderKL", **config: Any) -> Any:
    """One that makes 8 pixels of a latent."""
    four = {"block_out_channels": (8,) * 4, "norm_num_groups": 4, "layers_per_block": 1, "latent_channels": 4}
    if kind == "AutoencoderKL":
        types = ("Down", "Up")
        four |= {
            f"{one.lower()}_block_types": (f"{one}{way}coderBlock2D",) * 4
            for one, way in zip(types, ("En", "De"), strict=True)
        }
        four |= {"shift_factor": 0.0}
    return getattr(diffusers, kind)(**(config or four)).eval()


def causal_vae(kind: str) -> Any:
    return vae(
        kind,
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )


def ltx_vae() -> Any:
    config = {
        f"{way}{name}": value
        for way in ("", "decoder_")
        for name, value in {
            "block_out_channels": (8,) * 4,
            "layers_per_block": (1,) * 5,
            "spatio_temporal_scaling": (True, True, False, False),
        }.items()
    }
    flat: dict[str, Any] = {"decoder_inject_noise": (False,) * 5, "upsample_residual": (False,) * 4}
    return vae(
        "AutoencoderKLLTXVideo",
        **config,
        **flat,
        upsample_factor=(1,) * 4,
        latent_channels=8,
        patch_size=1,
        patch_size_t=1,
    )


def flow() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler()


def one_encoder(family: str, encoder: Any, transformer: Any, own_vae: Any, **more: Any) -> Any:
    parts = {"scheduler": flow(), "text_encoder": encoder, "tokenizer": tokenizer(512), "vae": own_vae}
    return getattr(diffusers, f"{family}Pipeline")(**{**parts, **more}, transformer=transformer)


def flux() -> Any:
    return diffusers.FluxPipeline(
        scheduler=flow(),
        vae=vae(),
        text_encoder=clip(20, transformers.CLIPTextModel),
        tokenizer=tokenizer(77),
        text_encoder_2=t5(),
        tokenizer_2=tokenizer(512),
        transformer=FLUX.build(),
    )


def sd3() -> Any:
    return diffusers.StableDiffusion3Pipeline(
        transformer=SD3.build(),
        scheduler=flow(),
        vae=vae(),
        text_encoder=clip(8),
        tokenizer=tokenizer(77),
        text_encoder_2=clip(12),
        tokenizer_2=tokenizer(77),
        text_encoder_3=t5(),
        tokenizer_3=tokenizer(512),
    )


def cogvideox() -> Any:
    config = dict(COGVIDEOX.build().config) | {"max_text_seq_length": 226}
    torch.manual_seed(0)
    model = diffusers.CogVideoXTransformer3DModel.from_config(config)
    scheduler = diffusers.CogVideoXDDIMScheduler()
    return one_encoder("CogVideoX", t5(), model, vae("AutoencoderKLCogVideoX"), scheduler=scheduler)


def wan() -> Any:
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return one_encoder("Wan", t5("UMT5"), WAN.build(), causal_vae("AutoencoderKLWan"), scheduler=scheduler)


PIPELINES: dict[str, Callable[[], Any]] = {
    "flux": flux,
    "qwen_image": lambda: one_encoder(
        "QwenImage", qwen("Qwen2"), QWEN_IMAGE.build(), causal_vae("AutoencoderKLQwenImage")
    ),
    "wan": wan,
    "z_image": lambda: one_encoder(
        "ZImage", qwen("Qwen3"), tiny_model("ZImageTransformer2DModel").build(), vae()
    ),
    "sd3": sd3,
    "chroma": lambda: one_encoder("Chroma", t5(), CHROMA.build(), vae()),
    "ltx": lambda: one_encoder("LTX", t5(), LTX.build(), ltx_vae()),
    "cogvideox": cogvideox,
}
SMALL = ["--height", "64", "--width", "64", "--steps", "4"]
CACHED = ["--config", "F1B0_W2M0MC1_R10"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Tiny pipelines on disk, each saved when it is first asked for."""

    @functools.cache
    def saved(family: str) -> Path:
        folder = tmp_path_factory.mktemp(family)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            PIPELINES[family]().save_pretrained(folder)
        return folder

    return saved


def command(family: str, folder: Path, out: Path, *more: str) -> list[str]:
    frames = ["--frames", "9"] if family_of(family).video else []
    return ["generate", family, "--model", str(folder), *SMALL, *frames, "--out", str(out), *more]


def run(*arguments: str) -> Any:
    result = RUNNER.invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result


def refused(*arguments: str) -> str:
    result = RUNNER.invoke(app, ["generate", *arguments])
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    return result.stderr


def frames_of(path: Path) -> np.ndarray:
    """[frames, height, width, 3]"""
    if path.suffix == ".png":
        return np.asarray(Image.open(path))[None]
    import av

    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def uncounted(patch: pytest.MonkeyPatch) -> None:
    """Counting FLOPs takes seconds for every class, and is tested where it is at home."""
    patch.setattr("cache_dit.stats.stats.forward_flops", lambda *_: None)


@pytest.fixture(autouse=True)
def _uncounted(monkeypatch: pytest.MonkeyPatch) -> None:
    uncounted(monkeypatch)


@pytest.fixture(scope="module")
def alone(
    folders: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, Any]]:
    """What one process tells of the picture of a family, each drawn when it is first asked for."""

    @functools.cache
    def drawn(family: str) -> dict[str, Any]:
        out = tmp_path_factory.mktemp(f"{family}-alone")
        with pytest.MonkeyPatch.context() as patch:
            uncounted(patch)
            told: dict[str, Any] = json.loads(
                run(*command(family, folders(family), out, *CACHED, "--json")).stdout
            )
        assert list(out.iterdir()) == [Path(told["file"])]
        return told

    return drawn


@pytest.mark.parametrize("family", PIPELINES)
def test_a_family_draws(family: str, alone: Callable[[str], dict[str, Any]]) -> None:
    told = alone(family)
    path = Path(told["file"])
    size = "64x64x9" if family_of(family).video else "64x64"
    assert path.name.startswith(f"{family}.{size}.C0_Q0_DBCache_F1B0_W2I1M0MC1_R10")
    assert [one["cached_steps"] for one in told["cache"]] == [[2]]
    drawn = frames_of(path)
    assert drawn.shape == (9 if family_of(family).video else 1, 64, 64, 3)
    assert drawn.std() > 1


WORKER = """
import json
import os
import sys

import torch
import cache_dit.stats.stats as stats
from cache_dit.cli import main

torch.set_num_threads(1)
stats.forward_flops = lambda *_: None
# A rendezvous for each command, as if each had a start of its own.
os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "False", "MASTER_ADDR": "127.0.0.1"}
for port, command in json.loads(sys.argv[1]):
    os.environ["MASTER_PORT"] = str(port)
    sys.argv = ["cache-dit", *command]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise
"""
TOGETHER = ("flux", "qwen_image", "wan")


@pytest.fixture(scope="module")
def together(folders: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what two processes draw: all families in one start, which takes longer than a picture."""
    folder = tmp_path_factory.mktemp("together")
    worker = folder / "worker.py"
    worker.write_text(WORKER)
    split = ("--parallel", "ulysses", "--ulysses-anything", "--attn", "native")
    commands = [
        (port, command(family, folders(family), folder / family, *CACHED, *split))
        for port, family in zip(free_ports(len(TOGETHER)), TOGETHER, strict=True)
    ]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", str(worker)]
    started = subprocess.Popen(
        [sys.executable, *launch, json.dumps(commands)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )
    # Ended gently, so that it ends its processes.
    limit = threading.Timer(300, started.terminate)
    limit.start()
    said, _ = started.communicate()
    limit.cancel()
    assert started.returncode == 0, said[-5000:]
    return folder


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@pytest.mark.parametrize("family", TOGETHER)
def test_two_processes_draw_the_same(
    family: str, together: Path, alone: Callable[[str], dict[str, Any]]
) -> None:
    (path,) = (together / family).iterdir()
    assert "_R10_T0O0_S1_Ulysses2_ulysses_anything_native" in path.name
    one = Path(alone(family)["file"])
    assert "Ulysses" not in one.name
    wanted, got = frames_of(one).astype(float), frames_of(path).astype(float)
    assert wanted.std() > 1
    # Rounding to 256 levels, and for a video its compression, may enlarge differences of 1e-5.
    assert np.abs(wanted - got).max() <= (1 if path.suffix == ".png" else 8)


DEMO = ("demo", "--steps", "6")


def test_the_demo_with_everything(tmp_path: Path) -> None:
    options = ("--cache", "--quantize", "int8_weight_only", "--attn", "native", "--offload", "group")
    timed = ("--track-memory", "--repeats", "2", "--warmup", "1", "--summary", "--seed", "3")
    result = run("generate", *DEMO, *options, *timed, "--out", str(tmp_path))
    (path,) = tmp_path.iterdir()
    assert path.name == (
        "demo.64x64.seed3.C0_Q1_int8_weight_only_DBCache_F2B0_W8I1M0MC0_R0.08_E0_S0_native_group.png"
    )
    for words in ("median of", "GiB, peak memory of this process", "0 of 6 steps", "| cond ", str(path)):
        assert words in result.stdout
    assert "Linear layers are int8_weight_only" in result.stderr
    with Image.open(path) as image:
        assert image.info["prompt"] == "a red house on grass at day with mountains"
        assert image.info["seed"] == "3"


def test_a_file_of_configurations_says_everything(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    save_configs(file, cache_config=parse_config("F1B0_W2_R10").cache_config, attention_backend="native")
    with file.open("a") as more:
        more.write("quantize_config: {quant_type: int8_weight_only}\ncompile_config: {recompile_limit: 16}\n")
    stack = stack_of(family_of("demo"), config=str(file), quantize="float8_weight_only")
    assert (stack.attention, stack.quant_type, stack.compile) == (
        "native",
        "float8_weight_only",
        {"recompile_limit": 16},
    )
    assert stack.cache is not None
    assert stack.cache["cache_config"].max_warmup_steps == 2
    off = stack_of(family_of("demo"), config=str(file), cache=False, compile_blocks=False)
    assert (off.cache, off.compile) == (None, None)


def test_blocks_are_compiled_after_what_changes_them() -> None:
    family = family_of("demo")
    stack = stack_of(family, preset="fora(interval=2)", compile_blocks=True)
    with ready(family, stack) as pipe:
        blocks = [*pipe.transformer.transformer_blocks, *pipe.transformer.single_transformer_blocks]
        assert all(block._compiled_call_impl is not None for block in blocks)
        assert torch._dynamo.config.recompile_limit == 96
    assert torch._dynamo.config.recompile_limit != 96
    inside = stack_of(family, preset="pab", compile_blocks=True)
    with ready(family, inside) as pipe:
        assert _one_graph(pipe, stack) is False


def test_a_file_of_somebody_else_is_kept(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.png"
    Image.new("RGB", (8, 8)).save(theirs)
    before = theirs.read_bytes()
    drawing = Drawing(family=family_of("demo"))
    outcome = Outcome([Image.new("RGB", (64, 64))], (1.0,), None, ())
    with pytest.raises(CacheDiTError, match="was not written by this command"):
        save(drawing, outcome, theirs)
    assert theirs.read_bytes() == before
    video = Drawing(family=family_of("wan"), frames=5)
    frames = Outcome([Image.new("RGB", (64, 64), (at * 9, 0, 0)) for at in range(5)], (1.0,), None, ())
    for name, kind in (("ours.png", drawing), ("ours.mp4", video), ("ours.gif", video)):
        for _ in range(2):  # its own is replaced
            save(kind, frames, tmp_path / name)
    assert len(frames_of(tmp_path / "ours.mp4")) == 5


def test_names_of_files(tmp_path: Path) -> None:
    outcome = Outcome([], (1.0,), None, ())
    drawing, stack = Drawing(family=family_of("wan")), stack_of(family_of("wan"))
    assert path_of(drawing, stack, outcome, tmp_path) == tmp_path / "wan.832x480x81.C0_Q0_NONE.mp4"
    assert path_of(drawing, stack, outcome, tmp_path / "a.gif") == tmp_path / "a.gif"
    long = dataclasses.replace(stack, attention="x" * 300)
    other = dataclasses.replace(stack, attention="x" * 301)
    names = {path_of(drawing, one, outcome, tmp_path).name for one in (long, other)}
    assert len(names) == 2
    assert max(map(len, names)) < 240


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("flx", "Did you mean 'flux'?"),
        ("flux --model ./nowhere", "there is no such folder"),
        ("flux --model {tmp}", "has no model_index.json"),
        ("wan --model {demo}", "is a FluxPipeline, but wan is a WanPipeline"),
        ("demo --height 60", "multiple of 16, such as 64"),
        ("demo --frames 5", "makes pictures"),
        ("demo --steps 0", "steps is 0"),
        ("flux --negative-prompt blur", "has guidance built in"),
        ("hunyuan_image --cfg 3", "takes no scale"),
        ("qwen_image_edit", "needs a picture to start from"),
        ("flux --image x.png", "starts from noise"),
        ("demo --config F8Q1", "'Q1'"),
        ("demo --config {tmp}/none.yaml", "none.yaml"),
        ("demo --preset F8B0", "give a name such as taylorseer"),
        ("demo --preset fora --config F1B0", "config and preset"),
        ("demo --quantize float9", "allowed are 'float8_per_row'"),
        ("demo --quantize int8_per_row --offload group --compile", "torch keeps hold of compiled"),
        ("demo --offload sequential --device cpu", "in main memory anyway"),
        ("demo --attn natve", "Did you mean 'native'"),
        ("demo --dtype float31", "Did you mean 'float32'"),
        ("demo --device warp", "which torch does not know"),
        ("demo --parallel ulysses", "torchrun --nproc_per_node=2"),
        ("demo --ulysses-anything", "but not parallel"),
        ("demo --out x.mp4", "written as .png"),
        ("demo --prompt teapot", "was not taught"),
    ],
)
def test_mistakes_are_one_line(options: str, words: str, tmp_path: Path) -> None:
    given = options.format(tmp=tmp_path, demo=weights_path()).split()
    said = refused(*given)
    assert words in said
    assert len([line for line in said.splitlines() if line.startswith("Error: ")]) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ulysses:3", "multiple of 3 processes"),
        ("ulysses:2", "takes 2 processes but there are 4"),
        ("ulysses,ring", "are 'auto'"),
        ("usp", "give ulysses, ring or tp"),
        (None, "each would draw the same"),
    ],
)
def test_processes_fit(text: str | None, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(CacheDiTError, match=words):
        stack_of(family_of("flux"), parallel=text)
    fixed = stack_of(family_of("flux"), parallel="ulysses:2,tp", ulysses_float8=True).parallelism
    assert fixed is not None
    assert (fixed.ring_size, fixed.ulysses_size, fixed.tp_size, fixed.ulysses_float8) == (1, 2, 2, True)


def test_every_family_is_a_pipeline_that_takes_what_it_is_given() -> None:
    names = [family.name for family in FAMILIES]
    assert len(names) == len(set(names)) >= 60
    assert family_of("Qwen-Image") is family_of("qwen_image")
    told = json.loads(run("generate", "list", "--json").stdout)
    assert list(told) == names
    for family in FAMILIES:
        pipeline = getattr(diffusers, family.pipeline)
        known = inspect.signature(pipeline.__call__).parameters
        image = Path("x.png") if family.image else None
        given = Drawing(family=family, image=image, negative_prompt="blur" if family.negative else None)
        wanted = {*given.arguments(), "generator", "output_type", "return_dict", *(["image"] * family.image)}
        assert wanted <= set(known), family.name
        assert any(family.pipeline.startswith(one.rstrip("*")) for one in supported_pipelines()[1]), (
            family.name
        )


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "generate.md").read_text()
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(block, {})
    (path,) = (tmp_path / "pictures").iterdir()
    assert path.name.startswith("demo.64x64.C0_Q0_DBCache_F1B0_W2I1M0MC1_R0.3_T0O0_S3")


def test_the_script_is_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = str(ROOT / "examples" / "generate.py")
    monkeypatch.setattr(sys, "argv", [script, "list"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(script, run_name="__main__")
    assert ended.value.code == 0
    assert "black-forest-labs/FLUX.1-dev" in capsys.readouterr().out
