"""Transformers outside of diffusers: each calls its blocks in a way that other code bases do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

WIDTH, COUNT = 8, 4


# --- blocks ---


class Mixer(nn.Module):
    """Two streams that act on each other."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def mix(self, first: Tensor, second: Tensor, vec: Tensor) -> tuple[Tensor, Tensor]:
        moved = first + torch.tanh(self.one(first) + second.mean(1, keepdim=True) + vec[:, None])
        return moved, second + torch.tanh(self.two(second))


class PositionalBlock(Mixer):
    def forward(self, img: Tensor, txt: Tensor, vec: Tensor) -> tuple[Tensor, Tensor]:
        img, txt = self.mix(img, txt, vec)
        return txt, img


class KeywordBlock(Mixer):
    """Nothing in the place where it is expected."""

    def forward(self, vec: Tensor, *, context: Tensor, latent: Tensor) -> tuple[Tensor, Tensor]:
        return self.mix(latent, context, vec)


class ComfyBlock(Mixer):
    def forward(
        self, img: Tensor, txt: Tensor, vec: Tensor, pe: Tensor, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return self.mix(img, txt, vec + pe.mean())


class ComfySingleBlock(Mixer):
    def forward(self, x: Tensor, vec: Tensor, pe: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        return self.mix(x, x, vec + pe.mean())[0]


class DecoderLayer(Mixer):
    """As in engines for language models: the sum is left to the next layer."""

    def forward(
        self, positions: Tensor, hidden: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        residual = hidden if residual is None else hidden + residual
        return torch.tanh(self.one(residual) + positions[..., None] * 0.01), residual


class PlainBlock(Mixer):
    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        return self.mix(x, x, vec)[0]


class AnyArgumentsBlock(PlainBlock):
    def forward(self, *args: Tensor) -> Tensor:
        return super().forward(*args)


class OneTupleBlock(Mixer):
    def forward(self, x: Tensor, vec: Tensor) -> tuple[Tensor]:
        return (self.mix(x, x, vec)[0],)


class ListBlock(Mixer):
    def forward(self, img: Tensor, txt: Tensor, vec: Tensor) -> list[Tensor]:
        return list(self.mix(img, txt, vec))


class AttentionBlock(Mixer):
    """Also returns its attention weights, which the model does not pass on."""

    def forward(self, x: Tensor, vec: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.mix(x, x, vec)[0], torch.softmax(x @ x.transpose(1, 2) + mask, -1)


class NothingBesideBlock(Mixer):
    def forward(self, x: Tensor, vec: Tensor) -> tuple[None, Tensor]:
        return None, self.mix(x, x, vec)[0]


class UnpackedBlock(Mixer):
    """For `nn.Sequential`, which hands on one value."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.one(x))


# --- models ---


class Model(nn.Module):
    """The blocks and a head; what differs is the loop."""

    block: type[nn.Module] = PlainBlock

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.make()

    def make(self) -> None:
        self.layers = nn.ModuleList(self.block() for _ in range(COUNT))

    def forward(self, image: Tensor, text: Tensor, timestep: Tensor) -> Any:
        vec = timestep[:, None].expand(-1, WIDTH)
        return self.head(self.run(self.embed(image), text, vec))

    def run(self, image: Tensor, text: Tensor, vec: Tensor) -> Tensor:
        for layer in self.layers:
            image = layer(image, vec)
        return image


class Positional(Model):
    block = PositionalBlock

    def run(self, image: Tensor, text: Tensor, vec: Tensor) -> Tensor:
        for layer in self.layers:
            text, image = layer(image, text, vec)
        return image


class Keywords(Model):
    block = KeywordBlock

    def run(self, image: Tensor, text: Tensor, vec: Tensor) -> Tensor:
        for layer in self.layers:
            image, text = layer(latent=image, context=text, vec=vec)
        return image


class Comfy(Model):
    def make(self) -> None:
        self.double_blocks = nn.ModuleList(ComfyBlock() for _ in range(COUNT))
        self.single_blocks = nn.ModuleList(ComfySingleBlock() for _ in range(COUNT))

    def run(self, image: Tensor, text: Tensor, vec: Tensor) -> Tensor:
        pe = torch.ones(2, 2)
        for index, block in enumerate(self.double_blocks):
            image, text = block(image, txt=text, vec=vec, pe=pe, attn_mask=None)
            if index == 2:
                image[:, :2] += 0.1  # a control net
        x = torch.cat((text, image), 1)
        for block in self.single_blocks:
            x = block(x, vec=vec, pe=pe, attn_mask=None)
            x[:, text.shape[1] :, ...] += 0.1
        return x[:, text.shape[1] :]


class Language(Model):
    block = DecoderLayer

    def run(self, image: Tensor, text: Tensor, vec: Tensor) -> Tensor:
        positions, residual = torch.arange(image.shape[1]).expand(image.shape[:2]), None
        for layer in self.layers:
            image, residual = layer(positions, image, residual)
        return image + residual


class Rebinding(Model):
    """What a block returns is not the object that the next one gets."""

    def run(self, image: Tensor, text: Tensor, vec: Tensor) -> Tensor:
        for index, layer in enumerate(self.layers):
            image = layer(image, vec + index) + 0.1
        return image


class Splitting(Model):
    def run(self, image: Tensor, text: Tensor, vec: Tensor) -> Tensor:
        for layer in self.layers:
            both = layer(torch.cat((text, image), 1), vec)
            text, image = both[:, : text.shape[1]], both[:, text.shape[1] :]
        return image


class AnyArguments(Model):
    block = AnyArgumentsBlock


class OneTuple(Model):
    block = OneTupleBlock

    def run(self, image: Tensor, text: Tensor, vec: Tensor) -> Tensor:
        for layer in self.layers:
            (image,) = layer(image, vec)
        return image


class ListOutput(Model):
    block = ListBlock

    def run(self, image: Tensor, text: Tensor, vec: Tensor) -> Tensor:
        for layer in self.layers:
            image, text = layer(image, text, vec=vec)
        return image


class Attention(Model):
    block = AttentionBlock

    def run(self, image: Tensor, text: Tensor, vec: Tensor) -> Tensor:
        weights: Any = 0.0
        for layer in self.layers:
            image, seen = layer(image, vec, mask=torch.zeros(image.shape[1], image.shape[1]))
            weights = weights + seen
        return image + weights.mean()


class NothingBeside(Model):
    block = NothingBesideBlock

    def run(self, image: Tensor, text: Tensor, vec: Tensor) -> Tensor:
        for layer in self.layers:
            _, image = layer(image, vec)
        return image


class Nested(Model):
    """The list lies deeper, beside one that is too short and one that does not run."""

    def make(self) -> None:
        self.decoder = nn.ModuleDict({"trunk": nn.ModuleList(PlainBlock() for _ in range(COUNT))})
        self.short = nn.ModuleList([PlainBlock()])
        self.unused = nn.ModuleList(PlainBlock() for _ in range(COUNT))
        self.mlp = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))

    def run(self, image: Tensor, text: Tensor, vec: Tensor) -> Tensor:
        image = self.mlp(self.short[0](image, vec))
        for layer in self.decoder["trunk"]:  # type: ignore[union-attr]
            image = layer(image, vec)
        return image


class Chain(Model):
    def make(self) -> None:
        self.trunk = nn.Sequential(*(UnpackedBlock() for _ in range(COUNT)))

    def run(self, image: Tensor, text: Tensor, vec: Tensor) -> Tensor:
        return self.trunk(image + vec[:, None])


class Turns(Model):
    def make(self) -> None:
        self.space = nn.ModuleList(PlainBlock() for _ in range(COUNT))
        self.time = nn.ModuleList(PlainBlock() for _ in range(COUNT))

    def run(self, image: Tensor, text: Tensor, vec: Tensor) -> Tensor:
        for space, time in zip(self.space, self.time, strict=True):
            image = time(space(image, vec), vec)
        return image


class Refining(Turns):
    """Short lists before the trunk and between its blocks."""

    def make(self) -> None:
        self.refiner = nn.ModuleList(UnpackedBlock() for _ in range(2))
        self.adapters = nn.ModuleList(UnpackedBlock() for _ in range(2))
        self.layers = nn.ModuleList(PlainBlock() for _ in range(9))

    def run(self, image: Tensor, text: Tensor, vec: Tensor) -> Tensor:
        for layer in self.refiner:
            text = layer(text)
        image = image + text.mean(1, keepdim=True)
        for index, layer in enumerate(self.layers):
            image = layer(image, vec)
            if index in (3, 6):
                image = image + self.adapters[index // 3 - 1](image)
        return image


class Residuals(Model):
    """Uses what leaves every block, as a ControlNet does."""

    def run(self, image: Tensor, text: Tensor, vec: Tensor) -> Tensor:
        every = []
        for layer in self.layers:
            image = layer(image, vec)
            every.append(image)
        return torch.stack(every).cumsum(0).prod(0)


class DictOutput(Model):
    def forward(self, image: Tensor, text: Tensor, timestep: Tensor) -> dict[str, Tensor]:
        return {"sample": super().forward(image, text, timestep)}


class Popping(Model):
    """Empties a list that it is given."""

    def forward(self, image: Tensor, text: Tensor, timestep: Tensor) -> Tensor:
        hints = [image] if isinstance(image, Tensor) else image
        return super().forward(hints.pop() if hints is image else hints[0], text, timestep)


class Drawing(Model):
    """Draws noise in its forward."""

    def run(self, image: Tensor, text: Tensor, vec: Tensor) -> Tensor:
        return super().run(image + torch.randn_like(image), text, vec)


# --- what stands in the way of caching ---


class DictBlock(Mixer):
    def forward(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        image, text = self.mix(state["image"], state["text"], state["vec"])
        return {**state, "image": image, "text": text}


class DictState(Model):
    block = DictBlock

    def run(self, image: Tensor, text: Tensor, vec: Tensor) -> Tensor:
        state = {"image": image, "text": text, "vec": vec}
        for layer in self.layers:
            state = layer(state)
        return state["image"]


class Recycling(Model):
    def run(self, image: Tensor, text: Tensor, vec: Tensor) -> Tensor:
        for _ in range(2):
            image = super().run(image, text, vec)
        return image


class Direct(Model):
    def run(self, image: Tensor, text: Tensor, vec: Tensor) -> Tensor:
        for layer in self.layers:
            image = layer.forward(image, vec)
        return image


class WritingBlock(PlainBlock):
    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        return x.copy_(super().forward(x, vec))


class Writing(Model):
    block = WritingBlock


class TwinBlock(Mixer):
    def forward(self, left: Tensor, right: Tensor, vec: Tensor) -> tuple[Tensor, Tensor]:
        return self.mix(left, right, vec)


class Twins(Model):
    """Two streams of one shape, neither handed on as the same object."""

    block = TwinBlock

    def run(self, image: Tensor, text: Tensor, vec: Tensor) -> Tensor:
        left, right = image, image
        for layer in self.layers:
            left, right = (value + 1 for value in layer(left, right, vec))
        return left


class GrowingBlock(PlainBlock):
    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        return torch.cat((super().forward(x, vec), x[:, :1]), 1)


class Growing(Model):
    block = GrowingBlock


class HalfWayBlock(Mixer):
    def forward(self, x: Tensor, y: Tensor, vec: Tensor) -> tuple[Tensor, Tensor]:
        return self.mix(x, y, vec)


class HalfWay(Model):
    """The second stream goes on in the first half only."""

    block = HalfWayBlock

    def run(self, image: Tensor, text: Tensor, vec: Tensor) -> Tensor:
        for index, layer in enumerate(self.layers):
            image, moved = layer(image, text, vec)
            text = moved if index < COUNT // 2 else text
        return image


class Skipping(Model):
    def run(self, image: Tensor, text: Tensor, vec: Tensor) -> Tensor:
        for layer in (self.layers[0], self.layers[2]):
            image = layer(image, vec)
        return image


class Early(Model):
    def run(self, image: Tensor, text: Tensor, vec: Tensor) -> Tensor:
        for layer in self.layers[:2]:
            image = layer(image, vec)
        return image


class Parallel(Model):
    def run(self, image: Tensor, text: Tensor, vec: Tensor) -> Tensor:
        return torch.stack([layer(image, vec) for layer in self.layers]).sum(0)


class MixedBlock(PlainBlock):
    def forward(self, x: Tensor, vec: Tensor) -> Any:
        moved = super().forward(x, vec)
        return moved if vec.mean() > 0 else (moved, x)


class Mixed(Model):
    block = MixedBlock

    def run(self, image: Tensor, text: Tensor, vec: Tensor) -> Tensor:
        for index, layer in enumerate(self.layers):
            output = layer(image, vec - index)
            image = output if isinstance(output, Tensor) else output[0]
        return image


class CountingBlock(Mixer):
    def forward(self, ids: Tensor) -> Tensor:
        return ids + 1


class Counting(Model):
    block = CountingBlock

    def run(self, image: Tensor, text: Tensor, vec: Tensor) -> Tensor:
        ids = torch.zeros(2, 1, 1, dtype=torch.long)
        for layer in self.layers:
            ids = layer(ids)
        return image + ids
