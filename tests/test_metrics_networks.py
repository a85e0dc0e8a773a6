"""Metrics that see with a network: LPIPS, FID, CLIP score, rewards; random weights, expectations by hand."""

import math
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from cache_dit.errors import ConfigError
from cache_dit.metrics import (
    NotGivenError,
    compute_clip_score,
    compute_fid,
    compute_image_reward,
    compute_lpips,
    frechet_distance,
)

State = dict[str, Tensor]


def save(path: Path, seed: int, size: int = 36) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (size, size + 4, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def as_tensor(path: Path) -> Tensor:
    return torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1).float() / 255


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Path, Path]:
    return save(tmp_path / "true.png", 0), save(tmp_path / "test.png", 1)


# --- LPIPS -------------------------------------------------------------------------------------------------


def alexnet() -> tuple[nn.Sequential, tuple[int, ...]]:
    """torchvision's layers one by one, and behind which of them features are compared."""
    convs = [nn.Conv2d(3, 64, 11, 4, 2), nn.Conv2d(64, 192, 5, padding=2)]
    convs += [nn.Conv2d(a, b, 3, padding=1) for a, b in ((192, 384), (384, 256), (256, 256))]
    relu, pool = nn.ReLU(), nn.MaxPool2d(3, 2)
    first = [convs[0], relu, pool, convs[1], relu, pool]
    return nn.Sequential(*first, convs[2], relu, convs[3], relu, convs[4], relu), (1, 4, 7, 9, 11)


def vgg16() -> tuple[nn.Sequential, tuple[int, ...]]:
    layers: list[nn.Module] = []
    channels = 3
    for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()] if width else [nn.MaxPool2d(2, 2)]
        channels = width or channels
    return nn.Sequential(*layers), (3, 8, 15, 22, 29)


Made = tuple[nn.Sequential, tuple[int, ...], State, State]


def made(make: Callable[[], tuple[nn.Sequential, tuple[int, ...]]]) -> Made:
    """The layers, the places, and the two files of weights: backbone and heads."""
    torch.manual_seed(0)
    layers, places = make()
    widths = [layers[place - 1].out_channels for place in places]
    heads = {f"lin{n}.model.1.weight": torch.rand(1, width, 1, 1) for n, width in enumerate(widths)}
    backbone = {f"features.{name}": values for name, values in layers.state_dict().items()}
    return layers, places, backbone | {"classifier.1.bias": torch.zeros(4)}, heads


@pytest.fixture(scope="module")
def alex() -> Made:
    return made(alexnet)


def by_hand(first: Tensor, second: Tensor, network: Made) -> float:
    """Zhang et al. 2018, eq. 1, pixel by pixel of every compared layer."""
    layers, places, _, heads = network
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    x, y = (((2 * p - 1).permute(1, 2, 0) - shift) / scale for p in (first, second))
    x, y = x.permute(2, 0, 1)[None], y.permute(2, 0, 1)[None]
    total = 0.0
    for number, layer in enumerate(layers):
        x, y = layer(x), layer(y)
        if number in places:
            head = heads[f"lin{places.index(number)}.model.1.weight"].flatten()
            rows, columns = x.shape[2:]
            for row in range(rows):
                for column in range(columns):
                    a, b = x[0, :, row, column], y[0, :, row, column]
                    unit = a / (a.norm() + 1e-10) - b / (b.norm() + 1e-10)
                    total += float(head @ unit**2) / (rows * columns)
    return total


@torch.no_grad()
@pytest.mark.parametrize("make", [alexnet, vgg16])
def test_lpips_against_the_formula(
    pictures: tuple[Path, Path], tmp_path: Path, make: Callable[[], tuple[nn.Sequential, tuple[int, ...]]]
) -> None:
    network = made(make)
    (tmp_path / "weights").mkdir()
    torch.save(network[2], tmp_path / "weights" / "backbone.pth")
    torch.save(network[3], tmp_path / "weights" / "heads.pth")
    true, test = pictures
    value, n = compute_lpips(true, test, tmp_path / "weights")
    assert n == 1
    assert value == pytest.approx(by_hand(as_tensor(true), as_tensor(test), network), rel=1e-4)
    assert compute_lpips(true, true, tmp_path / "weights").value == 0


def test_lpips_of_folders_in_batches(tmp_path: Path, alex: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(alex[2] | alex[3], tmp_path / "one.safetensors")
    for number, size in enumerate((36, 36, 40, 40, 40)):
        save(tmp_path / "true" / f"{number}.png", number, size)
        save(tmp_path / "test" / f"{number}.png", 10 + number, size)
    monkeypatch.setenv("LPIPS_MODEL_DIR", str(tmp_path / "one.safetensors"))
    one = compute_lpips(tmp_path / "true", tmp_path / "test")
    four = compute_lpips(tmp_path / "true", tmp_path / "test", batch_size=4)
    assert one.n == 5
    assert len(set(one.scores.values())) == 5
    assert dict(four.scores) == pytest.approx(dict(one.scores), rel=1e-5)


def test_lpips_without_weights(pictures: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LPIPS_MODEL_DIR", raising=False)
    with pytest.raises(NotGivenError, match="LPIPS_MODEL_DIR"):
        compute_lpips(*pictures)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: state.pop("lin2.model.1.weight"), r"of AlexNet.*lin2\.model\.1\.weight.*is missing"),
        (lambda state: state.update({"features.3.bias": torch.zeros(2)}), r"should be \[192\] and is \[2\]"),
        (lambda state: state.clear(), "not whole"),
    ],
    ids=["no head", "another shape", "nothing"],
)
def test_lpips_refuses_weights(
    pictures: tuple[Path, Path], tmp_path: Path, alex: Made, change: Callable[[State], Any], says: str
) -> None:
    state = alex[2] | alex[3]
    change(state)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=says):
        compute_lpips(*pictures, tmp_path / "w.safetensors")


class Evil:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("evil"),)


def test_files_of_weights_are_data(
    pictures: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"features.0.weight": Evil()}, protocol=2))
    torch.save({"features.0.weight": Evil()}, tmp_path / "zip.pth")
    torch.save({"features.0.weight": 3}, tmp_path / "number.pth")
    (tmp_path / "text.safetensors").write_text("no weights")
    (tmp_path / "text.pth").write_text("no weights")
    for name in ("evil.pth", "zip.pth", "text.safetensors", "text.pth"):
        with pytest.raises(ConfigError, match=f"{name} holds no weights"):
            compute_lpips(*pictures, tmp_path / name)
    with pytest.raises(ConfigError, match=r"number\.pth is no dictionary of tensors"):
        compute_lpips(*pictures, tmp_path / "number.pth")
    assert not (tmp_path / "evil").exists()


def test_folders_of_weights(pictures: tuple[Path, Path], tmp_path: Path, alex: Made) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    with pytest.raises(ConfigError, match="has no weights"):
        compute_lpips(*pictures, folder)
    torch.save(alex[3], folder / "a.pth")
    save_file(alex[3], folder / "b.safetensors")
    with pytest.raises(ConfigError, match=r"lin0\.model\.1\.weight is in .*b\.safetensors and in another"):
        compute_lpips(*pictures, folder)
    save_file(alex[2] | alex[3], tmp_path / "w.safetensors")
    small = save(tmp_path / "small.png", 0, size=30)
    with pytest.raises(ConfigError, match=r"31x31 pixels.*small\.png"):
        compute_lpips(small, small, tmp_path / "w.safetensors")
    edge = save(tmp_path / "edge.png", 0, size=31)
    assert compute_lpips(edge, edge, tmp_path / "w.safetensors").value == 0


# --- FID ---------------------------------------------------------------------------------------------------


def rotation(size: int, seed: int) -> Tensor:
    random = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(random).Q


def test_frechet_distance_of_covariances_that_commute() -> None:
    """With common axes it is |m1 - m2|² + Σ (√a - √b)², whatever the axes are; some variances are 0."""
    a = torch.tensor([1.0, 4.0, 9.0, 0.0, 2.0, 0.0]).double()
    b = torch.tensor([4.0, 1.0, 16.0, 0.0, 0.0, 3.0]).double()
    shift = torch.tensor([1.0, 0.0, -2.0, 0.0, 0.0, 0.0]).double()
    axes = rotation(6, 0)
    covs = [axes @ torch.diag(values) @ axes.T for values in (a, b)]
    got = frechet_distance(shift, covs[0], torch.zeros(6), covs[1])
    assert got == pytest.approx(5 + 1 + 1 + 1 + 2 + 3, abs=1e-7)
    assert frechet_distance(shift, covs[0], shift, covs[0]) == pytest.approx(0, abs=1e-7)


def test_frechet_distance_of_covariances_that_do_not_commute() -> None:
    """For 2x2, tr √M is √(tr M + 2 √det M), with M = C1 C2."""
    first = torch.tensor([[2.0, 0.5], [0.5, 1.0]]).double()
    second = torch.tensor([[1.0, -0.7], [-0.7, 3.0]]).double()
    product = first @ second
    trace = math.sqrt(product.trace() + 2 * math.sqrt(torch.linalg.det(product)))
    expected = 1 + (2 + 1) + (1 + 3) - 2 * trace
    zero, one = torch.zeros(2), torch.tensor([0.0, 1.0])
    assert frechet_distance(zero, first, one, second) == pytest.approx(expected, abs=1e-9)
    assert frechet_distance(one, second, zero, first) == pytest.approx(expected, abs=1e-9)


def colours(pictures: Tensor) -> Tensor:
    assert pictures.dtype == torch.uint8
    return pictures.float().mean(dim=(2, 3))


class Colours(nn.Module):
    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        found = img.float().mean(dim=(2, 3))
        return found if return_features else torch.zeros_like(found)


@pytest.fixture
def sets(tmp_path: Path) -> tuple[Path, Path]:
    for number in range(6):
        save(tmp_path / "true" / f"{number}.png", number, size=8 + number // 3)
    for number in range(9):
        save(tmp_path / "test" / f"other-{number}.png", 20 + number, size=8)
    return tmp_path / "true", tmp_path / "test"


def test_fid_by_hand(sets: tuple[Path, Path]) -> None:
    moments = []
    for folder in sets:
        seen = torch.stack(
            [as_tensor(path).double().mean(dim=(1, 2)) * 255 for path in sorted(folder.iterdir())]
        )
        moments += [seen.mean(dim=0), torch.cov(seen.T)]
    value, n = compute_fid(*sets, colours)
    assert n == 9
    assert value == pytest.approx(frechet_distance(*moments), rel=1e-4)
    assert value > 0.5
    assert compute_fid(*sets, colours, batch_size=4).value == pytest.approx(value, rel=1e-5)
    assert compute_fid(sets[0], sets[0], colours).value == pytest.approx(0, abs=1e-6)


def test_fid_with_torchscript(
    sets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(Colours()).save(str(tmp_path / "colours.pt"))
    expected = compute_fid(*sets, colours)
    assert compute_fid(*sets, tmp_path / "colours.pt") == expected
    monkeypatch.setenv("FID_MODEL_PATH", str(tmp_path / "colours.pt"))
    assert compute_fid(*sets) == expected
    (tmp_path / "text.pt").write_text("no script")
    with pytest.raises(ConfigError, match=r"text\.pt cannot be read as TorchScript"):
        compute_fid(*sets, tmp_path / "text.pt")


def test_fid_refuses(sets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FID_MODEL_PATH", raising=False)
    with pytest.raises(NotGivenError, match="FID_MODEL_PATH"):
        compute_fid(*sets)
    with pytest.raises(NotGivenError, match=r"0\.png is a file"):
        compute_fid(sets[0] / "0.png", sets[1], colours)
    with pytest.raises(ConfigError, match="leave it out"):
        compute_fid(*sets, colours, per_item="fid.csv")
    with pytest.raises(ConfigError, match=r"features gave \[1, 3, 8, 12\] for 1 pictures"):
        compute_fid(*sets, lambda pictures: pictures)
    save(tmp_path / "one" / "0.png", 0)
    with pytest.raises(ConfigError, match="has 1 picture"):
        compute_fid(sets[0], tmp_path / "one", colours)


# --- prompts -----------------------------------------------------------------------------------------------


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Three prompts, and pictures 0 to 2 in `drawn`."""
    for number in range(3):
        save(tmp_path / "drawn" / f"house_v2_{number}.png", number, size=20)
    path = tmp_path / "prompts.txt"
    path.write_text(
        "\ufeffa red house\n\n  blue and a very long text that is cut off  \nx\n", encoding="utf-8"
    )
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model with random weights and the letters as its vocabulary."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizerFast

    letters = [f"{letter}{end}" for letter in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")]
    vocabulary = {token: n for n, token in enumerate(["<|startoftext|>", "<|endoftext|>", *letters])}
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "max_position_embeddings": 12}
    config = CLIPConfig(
        text_config={"vocab_size": len(vocabulary), **tokens, **small},
        vision_config={"image_size": 16, "patch_size": 8, **small},
        projection_dim=8,
    )
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    seen = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    CLIPProcessor(seen, CLIPTokenizerFast(vocab=vocabulary, merges=[])).save_pretrained(folder)
    return folder


@torch.no_grad()
def cosine(folder: Path, prompt: str, path: Path) -> float:
    """From the two towers and their projections, with the tokens written out."""
    from transformers import CLIPModel, CLIPProcessor

    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    letters = [number for word in prompt.split() for number in _letters(word)]
    tokens = [0, *letters[:10], 1]
    text = model.text_projection(model.text_model(input_ids=torch.tensor([tokens])).pooler_output)[0]
    pixels = processor.image_processor(Image.open(path), return_tensors="pt")["pixel_values"]
    image = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)[0]
    return float(text @ image / (text.norm() * image.norm()))


def _letters(word: str) -> list[int]:
    numbers = [2 + 2 * (ord(letter) - ord("a")) for letter in word]
    return [*numbers[:-1], numbers[-1] + 1]


def test_clip_score_by_hand(prompts: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import CLIPModel

    drawn = prompts.parent / "drawn"
    value, n = result = compute_clip_score(prompts, drawn, clip)
    texts = ["a red house", "blue and a very long text that is cut off", "x"]
    cosines = [cosine(clip, text, drawn / f"house_v2_{k}.png") for k, text in enumerate(texts)]
    assert n == 3
    assert list(result.scores.values()) == pytest.approx([100 * max(cos, 0) for cos in cosines], abs=1e-3)
    assert value > 1, "all cosines are negative: choose another seed"
    assert compute_clip_score(texts, drawn, clip, batch_size=3).value == pytest.approx(value, abs=1e-3)
    for name in ("get_image_features", "get_text_features"):  # transformers 4 gives tensors
        wrapped = getattr(CLIPModel, name)
        monkeypatch.setattr(
            CLIPModel, name, lambda self, wrapped=wrapped, **k: wrapped(self, **k).pooler_output
        )
    monkeypatch.setenv("CLIP_MODEL_DIR", str(clip))
    assert compute_clip_score(prompts, drawn) == pytest.approx((value, 3))


def test_clip_score_without_a_model(prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLIP_MODEL_DIR", raising=False)
    with pytest.raises(NotGivenError, match="CLIP_MODEL_DIR"):
        compute_clip_score(prompts, tmp_path / "drawn")
    with pytest.raises(ConfigError, match="holds no CLIP model"):
        compute_clip_score(prompts, tmp_path / "drawn", tmp_path / "drawn")


def brightness(prompt: str, picture: Image.Image) -> float:
    assert picture.mode == "RGB"
    return len(prompt) + np.asarray(picture).mean() / 1000


def test_rewards(prompts: Path, tmp_path: Path) -> None:
    drawn = tmp_path / "drawn"
    value, n = result = compute_image_reward(prompts, drawn, brightness, per_item=tmp_path / "r.csv")
    lengths = [11, 41, 1]
    means = [float(as_tensor(path).mean()) * 0.255 for path in sorted(drawn.iterdir())]
    assert n == 3
    assert list(result.scores.values()) == pytest.approx(
        [length + mean for length, mean in zip(lengths, means, strict=True)], abs=1e-6
    )
    assert value == pytest.approx(sum(result.scores.values()) / 3)
    assert (tmp_path / "r.csv").read_text().startswith("item,image_reward\nhouse_v2_0.png,")
    with pytest.raises(NotGivenError, match="score of compute_image_reward"):
        compute_image_reward(prompts, drawn)


def test_pictures_follow_their_numbers(tmp_path: Path) -> None:
    """10 comes after 9, and numbering may begin with 1."""
    for number in range(1, 12):
        save(tmp_path / f"{number}.png", number, size=8)
    texts = ["x" * number for number in range(1, 12)]
    result = compute_image_reward(texts, tmp_path, lambda prompt, _: len(prompt))
    assert result.scores == {f"{number}.png": number for number in range(1, 12)}
    assert compute_image_reward(["xx"], tmp_path / "3.png", lambda prompt, _: len(prompt)) == (2, 1)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("0", "2"), "no picture has number 1"),
        (("0", "1", "2", "3"), r"3\.png has no prompt"),
        (("2", "3", "4"), "no picture has number 1"),
        (("0", "1", "last"), "has no number in its name"),
        (("0", "1", "2", "02"), "have the same number"),
    ],
)
def test_numbers_that_do_not_fit(tmp_path: Path, names: tuple[str, ...], says: str) -> None:
    for name in names:
        save(tmp_path / f"{name}.png", 0, size=8)
    with pytest.raises(ConfigError, match=says):
        compute_image_reward(["a", "b", "c"], tmp_path, brightness)


def test_prompt_files(prompts: Path, tmp_path: Path) -> None:
    for content, says in (
        (b"\xff\xfe\x00", "no text in UTF-8"),
        (b"\n\n", "no prompts"),
        (b"a\n" * 5_000_000, "8 MiB"),
    ):
        prompts.write_bytes(content)
        with pytest.raises(ConfigError, match=says):
            compute_image_reward(prompts, tmp_path / "drawn", brightness)
    with pytest.raises(ConfigError, match="does not exist"):
        compute_image_reward(tmp_path / "none.txt", tmp_path / "drawn", brightness)
