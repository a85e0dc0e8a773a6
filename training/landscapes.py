"""Procedural 64x64 landscapes with captions: the whole training set of the demo model.

The objects are large, flat-coloured and differ by silhouette, because a model of three million parameters
must learn them from a few hundred thousand samples; position, size, horizon and texture vary
continuously, so that it cannot simply memorise pictures.

    python -m training.landscapes --count 40000 --workers 2
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIZE = 64
OVERSAMPLE = 4
CANVAS = SIZE * OVERSAMPLE

Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (222, 40, 36),
    "yellow": (250, 205, 30),
    "green": (16, 132, 62),
    "blue": (34, 92, 226),
    "purple": (130, 44, 176),
    "pink": (250, 122, 176),
}
OBJECTS = ("house", "tree", "balloon", "mushroom")
GROUNDS: dict[str, tuple[Colour, Colour]] = {
    "grass": ((126, 190, 74), (88, 156, 52)),
    "sand": ((240, 214, 150), (216, 180, 108)),
    "snow": ((246, 250, 255), (206, 222, 240)),
}
SKIES: dict[str, tuple[Colour, Colour]] = {
    "day": ((70, 150, 236), (186, 224, 250)),
    "sunset": ((88, 52, 128), (255, 158, 92)),
    "night": ((10, 14, 48), (46, 56, 116)),
}
# What the light does to everything that is not the sky; the object keeps more of its colour than the ground.
LIGHT = {"day": (1.0, 1.0, 1.0), "sunset": (1.0, 0.84, 0.74), "night": (0.46, 0.52, 0.74)}


@dataclass(frozen=True, slots=True)
class Caption:
    """The five choices that a prompt makes."""

    colour: str
    thing: str
    ground: str
    time: str
    mountains: bool

    def __str__(self) -> str:
        tail = " with mountains" if self.mountains else ""
        return f"a {self.colour} {self.thing} on {self.ground} at {self.time}{tail}"


def all_captions() -> list[Caption]:
    """Every prompt the model is trained on, in a fixed order (432 of them)."""
    return [Caption(*choice) for choice in product(COLOURS, OBJECTS, GROUNDS, SKIES, (False, True))]


def _mix(a: Colour, b: Colour, t: float) -> Colour:
    return tuple(round(x + (y - x) * t) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


def _lit(colour: Colour, light: tuple[float, float, float], strength: float = 1.0) -> Colour:
    return tuple(round(c * (1 + (k - 1) * strength)) for c, k in zip(colour, light, strict=True))  # type: ignore[return-value]


def _disc(draw: ImageDraw.ImageDraw, x: float, y: float, rx: float, ry: float, fill: Colour) -> None:
    draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=fill)


def _gradient(top: Colour, bottom: Colour, rows: int) -> np.ndarray:
    t = np.linspace(0, 1, rows)[:, None, None]
    return (np.array(top) * (1 - t) + np.array(bottom) * t).repeat(CANVAS, 1)  # [rows, CANVAS, 3]


def _sky(rng: np.random.Generator, time: str, horizon: int) -> Image.Image:
    """A canvas with a vertical gradient of slightly varying brightness; the ground is pasted later."""
    sky = _gradient(*SKIES[time], horizon) + rng.uniform(-8, 8)
    pixels = np.concatenate([sky, np.zeros((CANVAS - horizon, CANVAS, 3))])
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _ground(caption: Caption, horizon: int) -> Image.Image:
    near, far = (_lit(c, LIGHT[caption.time]) for c in GROUNDS[caption.ground])
    return Image.fromarray(_gradient(near, far, CANVAS - horizon).astype(np.uint8))


def _draw_sky(draw: ImageDraw.ImageDraw, rng: np.random.Generator, time: str, horizon: int) -> None:
    x = rng.uniform(0.08, 0.24) * CANVAS
    x = x if rng.random() < 0.5 else CANVAS - x
    if time == "day":
        y, r = rng.uniform(0.1, 0.2) * CANVAS, rng.uniform(0.06, 0.08) * CANVAS
        _disc(draw, x, y, r * 1.35, r * 1.35, (222, 230, 214))
        _disc(draw, x, y, r, r, (255, 236, 120))
        cloud_x, cloud_y, s = CANVAS - x, rng.uniform(0.1, 0.26) * CANVAS, rng.uniform(0.8, 1.1)
        for dx, dy, r in ((-18, 4, 12), (0, -2, 17), (18, 4, 12)):
            _disc(draw, cloud_x + dx * s, cloud_y + dy * s, r * s * 1.25, r * s * 0.8, (246, 250, 255))
    elif time == "sunset":
        y, r = horizon - rng.uniform(0.0, 0.08) * CANVAS, rng.uniform(0.1, 0.13) * CANVAS
        _disc(draw, x, y, r * 1.3, r * 1.3, (255, 176, 100))
        _disc(draw, x, y, r, r, (255, 226, 130))
    else:
        y, r = rng.uniform(0.1, 0.2) * CANVAS, rng.uniform(0.065, 0.08) * CANVAS
        for star_x, star_y in rng.uniform(0.03, 0.97, (7, 2)):
            _disc(draw, star_x * CANVAS, star_y * horizon * 0.8, 3.2, 3.2, (236, 236, 210))
        _disc(draw, x, y, r, r, (244, 240, 214))
        _disc(draw, x - r * 0.25, y - r * 0.2, r * 0.22, r * 0.22, (214, 208, 186))


def _draw_mountains(draw: ImageDraw.ImageDraw, rng: np.random.Generator, time: str, horizon: int) -> None:
    """Three peaks with snow caps, the middle ones highest, behind everything else."""
    light = LIGHT[time]
    rock, dark = _lit((120, 124, 150), light), _lit((92, 96, 126), light)
    cap = _lit((244, 246, 252), light, 0.7)
    for centre in (0.1, 0.9, 0.5):
        x = (centre + rng.uniform(-0.08, 0.08)) * CANVAS
        h, w = rng.uniform(0.2, 0.32) * CANVAS, rng.uniform(0.24, 0.3) * CANVAS
        top = horizon - h
        draw.polygon([(x - w, horizon), (x, top), (x + w, horizon)], fill=rock)
        draw.polygon([(x, top), (x + w, horizon), (x + w * 0.2, horizon)], fill=dark)
        draw.polygon([(x - w * 0.3, top + h * 0.3), (x, top), (x + w * 0.3, top + h * 0.3),
                      (x, top + h * 0.22)], fill=cap)  # fmt: skip


def _texture(draw: ImageDraw.ImageDraw, rng: np.random.Generator, caption: Caption, horizon: int) -> None:
    """A few tufts, ripples or drifts; sparse, so that the autoencoder does not spend itself on them."""
    light = LIGHT[caption.time]
    dark = _lit(_mix(*GROUNDS[caption.ground], 1.25), light)
    for t, x in rng.uniform(0.05, 0.95, (7, 2)):
        x, y = x * CANVAS, horizon + t * (CANVAS - horizon)
        if caption.ground == "grass":
            draw.polygon([(x - 6, y), (x - 4, y - 11), (x, y - 2), (x + 4, y - 12), (x + 6, y)], fill=dark)
        elif caption.ground == "sand":
            draw.arc((x - 26, y - 6, x + 26, y + 8), 200, 340, fill=dark, width=4)
        else:
            _disc(draw, x, y, 22, 5, _lit((255, 255, 255), light))


def _house(draw: ImageDraw.ImageDraw, x: float, base: float, h: float, paint: Colour, time: str) -> None:
    light = LIGHT[time]
    w, wall = h * 0.46, base - h * 0.56
    roof, wood = _lit((96, 62, 52), light, 0.6), _lit((84, 54, 36), light, 0.6)
    window = (255, 226, 120) if time == "night" else _lit((214, 240, 255), light, 0.5)
    draw.rectangle((x + w * 0.42, base - h * 0.98, x + w * 0.68, wall), fill=wood)
    draw.rectangle((x - w, wall, x + w, base), fill=paint)
    draw.rectangle((x + w * 0.5, wall, x + w, base), fill=_mix(paint, (0, 0, 0), 0.18))
    draw.polygon([(x - w * 1.25, wall), (x, base - h), (x + w * 1.25, wall)], fill=roof)
    draw.rectangle((x - w * 0.2, base - h * 0.34, x + w * 0.2, base), fill=wood)
    for side in (-0.62, 0.62):
        centre, y = x + side * w, base - h * 0.34
        draw.rectangle((centre - w * 0.19, y - w * 0.19, centre + w * 0.19, y + w * 0.19), fill=window)


def _tree(draw: ImageDraw.ImageDraw, x: float, base: float, h: float, paint: Colour, time: str) -> None:
    trunk = _lit((104, 68, 40), LIGHT[time], 0.6)
    dark = _mix(paint, (0, 0, 0), 0.22)
    draw.rectangle((x - h * 0.075, base - h * 0.25, x + h * 0.075, base), fill=trunk)
    for bottom, top, w in ((0.17, 0.58, 0.42), (0.4, 0.8, 0.33), (0.62, 1.0, 0.24)):
        y, tip, w = base - h * bottom, base - h * top, w * h
        draw.polygon([(x - w, y), (x, tip), (x + w, y)], fill=paint)
        draw.polygon([(x + w * 0.15, y), (x, tip), (x + w, y)], fill=dark)


def _balloon(draw: ImageDraw.ImageDraw, x: float, base: float, h: float, paint: Colour, time: str) -> None:
    light = LIGHT[time]
    r, top = h * 0.36, base - h
    stripe = _mix(paint, (255, 255, 255), 0.62)
    rope, basket = _lit((70, 52, 40), light, 0.6), _lit((150, 100, 54), light, 0.6)
    y = top + r
    for side in (-1, 1):
        ends = (x + side * r * 0.75, y + r * 0.6, x + side * h * 0.085, base - h * 0.15)
        draw.line(ends, fill=rope, width=4)
    draw.polygon([(x - r * 0.86, y + r * 0.5), (x - h * 0.07, y + r * 1.36), (x + h * 0.07, y + r * 1.36),
                  (x + r * 0.86, y + r * 0.5)], fill=paint)  # fmt: skip
    _disc(draw, x, y, r, r, paint)
    _disc(draw, x, y, r * 0.62, r, stripe)
    _disc(draw, x, y, r * 0.26, r, paint)
    draw.rectangle((x - h * 0.1, base - h * 0.16, x + h * 0.1, base), fill=basket)


def _mushroom(draw: ImageDraw.ImageDraw, x: float, base: float, h: float, paint: Colour, time: str) -> None:
    light = LIGHT[time]
    stem, shade = _lit((250, 240, 218), light, 0.5), _lit((206, 190, 164), light, 0.5)
    rim, r = base - h * 0.46, h * 0.52
    right = [(x + h * 0.13, rim), (x + h * 0.19, base)]
    draw.polygon([(x - h * 0.13, rim), *right, (x - h * 0.19, base)], fill=stem)
    draw.polygon([(x + h * 0.04, rim), *right, (x + h * 0.06, base)], fill=shade)
    draw.pieslice((x - r, rim - h * 0.54, x + r, rim + h * 0.54), 180, 360, fill=paint)
    draw.pieslice((x - r, rim - h * 0.1, x + r, rim + h * 0.1), 0, 180, fill=_mix(paint, (0, 0, 0), 0.25))
    for dx, dy, size in ((-0.27, 0.14, 0.08), (0.02, 0.35, 0.085), (0.28, 0.15, 0.07)):
        _disc(draw, x + dx * h, rim - dy * h, size * h, size * h, _lit((255, 252, 244), light, 0.4))


PAINTERS = {"house": _house, "tree": _tree, "balloon": _balloon, "mushroom": _mushroom}


def render(caption: Caption, rng: np.random.Generator) -> np.ndarray:
    """One picture, uint8 [SIZE, SIZE, 3], drawn OVERSAMPLE times larger and averaged against aliasing."""
    horizon = round(rng.uniform(0.56, 0.66) * CANVAS)
    image = _sky(rng, caption.time, horizon)
    draw = ImageDraw.Draw(image)
    _draw_sky(draw, rng, caption.time, horizon)
    if caption.mountains:
        _draw_mountains(draw, rng, caption.time, horizon)
    image.paste(_ground(caption, horizon), (0, horizon))
    _texture(draw, rng, caption, horizon)
    x, base = rng.uniform(0.36, 0.64) * CANVAS, rng.uniform(0.8, 0.9) * CANVAS
    height = rng.uniform(0.5, 0.62) * CANVAS
    shadow = _lit(_mix(GROUNDS[caption.ground][1], (0, 0, 0), 0.3), LIGHT[caption.time])
    _disc(draw, x, base, height * 0.42, height * 0.07, shadow)
    paint = _lit(COLOURS[caption.colour], LIGHT[caption.time], 0.35)
    PAINTERS[caption.thing](draw, x, base, height, paint, caption.time)
    return np.asarray(image.reduce(OVERSAMPLE))


def make_chunk(seed: int, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 [count, 3, SIZE, SIZE] and caption indices [count].

    Each scene has its own generator, so that the data does not depend on the number of workers, and captions
    go round robin, so that all are equally frequent.
    """
    captions = all_captions()
    index = np.arange(first, first + count) % len(captions)
    pictures = [render(captions[k], np.random.default_rng((seed, first + i))) for i, k in enumerate(index)]
    return np.stack(pictures).transpose(0, 3, 1, 2), index


def make_dataset(count: int, seed: int, workers: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` scenes, in chunks over `workers` processes."""
    starts = list(range(0, count, 500))
    sizes = [min(500, count - s) for s in starts]
    if workers == 1:
        parts = [make_chunk(seed, s, n) for s, n in zip(starts, sizes, strict=True)]
    else:
        with ProcessPoolExecutor(workers) as pool:
            parts = list(pool.map(make_chunk, [seed] * len(starts), starts, sizes))
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("training/runs/data"))
    parser.add_argument("--count", type=int, default=40_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--smoke", action="store_true", help="96 scenes, one worker")
    args = parser.parse_args(argv)
    count, workers = (96, 1) if args.smoke else (args.count, args.workers)
    pictures, index = make_dataset(count, args.seed, workers)
    args.out.mkdir(parents=True, exist_ok=True)
    np.save(args.out / "pictures.npy", pictures)
    np.save(args.out / "captions.npy", index)
    print(f"{count} scenes of {len(all_captions())} captions in {args.out}")


if __name__ == "__main__":
    main()
