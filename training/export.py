"""Writes the trained parts as a diffusers directory that the unmodified FluxPipeline loads.

python -m training.export --to src/cache_dit/demo/weights
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, FlowMatchEulerDiscreteScheduler, FluxPipeline
from safetensors.torch import load_file, save_file

from training.autoencoder import RUNS
from training.text import build_tokenizer
from training.transformer import Model

WEIGHTS = Path("src/cache_dit/demo/weights")
LIMIT_MB = 12.0
TOKENIZER_CLASS = "PreTrainedTokenizerFast"


def load_model(checkpoint: Path) -> Model:
    """The averaged (EMA) weights of the run."""
    model = Model()
    model.load_state_dict(torch.load(checkpoint)["ema"])
    return model.eval()


def assemble(model: Model, vae: AutoencoderTiny) -> FluxPipeline:
    """A pipeline of the parts: transformer and autoencoder in float16, the small text encoders in float32."""
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False),
        vae=vae.half(),
        text_encoder=model.text.clip,
        tokenizer=build_tokenizer(),
        text_encoder_2=model.text.t5,
        tokenizer_2=build_tokenizer(),
        transformer=model.transformer.half(),
    )


def edit_json(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps(content, indent=2) + "\n")


def name_tokenizers(folder: Path) -> None:
    """transformers saves a class name of its own that other releases do not know; the public one works."""
    for part in ("tokenizer", "tokenizer_2"):
        edit_json(folder / "model_index.json", **{part: ["transformers", TOKENIZER_CLASS]})
        edit_json(folder / part / "tokenizer_config.json", tokenizer_class=TOKENIZER_CLASS)


def name_text_weights(folder: Path) -> None:
    """transformers 5 saves CLIP without the prefix that 4 looks for; what 4 lacks it draws. 5 reads both."""
    path = folder / "text_encoder" / "model.safetensors"
    weights = {
        f"text_model.{name.removeprefix('text_model.')}": value for name, value in load_file(path).items()
    }
    save_file(weights, path, metadata={"format": "pt"})


def tidy(folder: Path) -> None:
    """Drops where the parts came from and a key that AutoencoderTiny writes but warns about when reading.

    Also makes the files readable for everybody, which safetensors does not.
    """
    for path in folder.rglob("*.json"):
        content = json.loads(path.read_text())
        unwanted = {"_name_or_path"} | ({"block_out_channels"} if path.parent.name == "vae" else set())
        path.write_text(json.dumps({k: v for k, v in content.items() if k not in unwanted}, indent=2) + "\n")
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def export(checkpoint: Path, vae: Path, to: Path) -> float:
    """Writes beside and swaps, so that a reader never sees half a directory; returns the size in MB."""
    pipeline = assemble(load_model(checkpoint), AutoencoderTiny.from_pretrained(vae))
    partial = to.with_name(to.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    pipeline.save_pretrained(partial, safe_serialization=True)
    name_tokenizers(partial)
    name_text_weights(partial)
    tidy(partial)
    megabytes = sum(p.stat().st_size for p in partial.rglob("*") if p.is_file()) / 1e6
    if megabytes > LIMIT_MB:
        raise ValueError(f"the exported directory has {megabytes:.1f} MB, allowed are {LIMIT_MB}")
    shutil.rmtree(to, ignore_errors=True)
    to.parent.mkdir(parents=True, exist_ok=True)
    partial.rename(to)
    return megabytes


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=Path, default=RUNS, help="checkpoint and autoencoder")
    parser.add_argument("--to", type=Path, default=WEIGHTS)
    parser.add_argument("--smoke", action="store_true", help="accepted; an export is always quick")
    args = parser.parse_args(argv)
    vae = args.runs / "vae" if (args.runs / "vae").exists() else args.runs / "vae_joint"
    print(f"{export(args.runs / 'transformer_rank0.pt', vae, args.to):.2f} MB in {args.to}")


if __name__ == "__main__":
    main()
