"""Captioned shapes drawn on demand, with exact ground truth: data for people without data."""

import io
import math
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw

from t2i.data.record import Record, Report, fingerprint
from t2i.randomness import generator

VERSION = 1  # part of the fingerprint: raise it when a scene of the same (seed, index) changes
PIXELS = 256  # side of a picture as `read` gives it
OVERSAMPLE = 4

COLOURS = {
    "red": (214, 39, 40),
    "orange": (255, 140, 0),
    "yellow": (250, 214, 10),
    "green": (44, 160, 44),
    "blue": (31, 98, 200),
    "purple": (128, 60, 190),
    "pink": (255, 130, 190),
    "brown": (120, 72, 30),
    "black": (20, 20, 20),
    "white": (250, 250, 250),
}
BACKGROUNDS = {"white": (250, 250, 250), "black": (20, 20, 20), "gray": (128, 128, 128), "cyan": (0, 190, 210)}
SIZES = {"small": 0.11, "": 0.16, "large": 0.21}  # half the extent, in sides of the picture; no word for the middle one
PLACES = {
    "in the centre": (0.5, 0.5),
    "on the left": (0.25, 0.5),
    "on the right": (0.75, 0.5),
    "at the top": (0.5, 0.25),
    "at the bottom": (0.5, 0.75),
}
RELATIONS = {
    "left of": ((0.25, 0.5), (0.75, 0.5)),
    "right of": ((0.75, 0.5), (0.25, 0.5)),
    "above": ((0.5, 0.25), (0.5, 0.75)),
    "below": ((0.5, 0.75), (0.5, 0.25)),
}
JITTER = 0.03


def _turns(n: int, inner: float = 1.0) -> list[tuple[float, float]]:
    """Corners on the unit circle from the top, clockwise; every second one at radius `inner`."""
    polar = [(inner if k % 2 else 1.0, 2 * math.pi * k / n - math.pi / 2) for k in range(n)]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in polar]


_ARM = 0.36
SHAPES: dict[str, list[tuple[float, float]]] = {
    "circle": [],  # drawn as an ellipse
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": [(0, -0.95), (0.95, 0.8), (-0.95, 0.8)],
    "diamond": [(0, -1), (0.7, 0), (0, 1), (-0.7, 0)],
    "star": _turns(10, 0.42),
    "hexagon": _turns(6),
    "cross": [
        *[(-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM)],
        *[(_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM)],
    ],
}  # corners around the centre, in half extents; each shape covers its centre


@dataclass(frozen=True)
class Thing:
    """One shape: its words, and its centre and half extent in sides of the picture (y down)."""

    shape: str
    colour: str
    size: str
    centre: tuple[float, float]

    @property
    def extent(self) -> float:
        return SIZES[self.size]

    def __str__(self) -> str:
        words = " ".join(word for word in (self.size, self.colour, self.shape) if word)
        return f"an {words}" if words[0] in "aeiou" else f"a {words}"


@dataclass(frozen=True)
class SceneSpec:
    """The ground truth of a picture: `where` is a place for one thing, a relation (first to second) for two."""

    things: tuple[Thing, ...]
    where: str
    background: str

    def caption(self) -> str:
        ground = f"on a {self.background} background"
        if len(self.things) == 1:
            return f"{self.things[0]} {self.where} {ground}"
        return f"{self.things[0]} {self.where} {self.things[1]} {ground}"


def scene(index: int, seed: int = 0) -> tuple[SceneSpec, str]:
    """Scene `index` of that seed and its caption; a function of the two alone."""
    draw = generator(seed, "scene", index)

    def choose(words) -> str:
        words = list(words)
        return words[int(torch.randint(len(words), (), generator=draw))]

    background = choose(BACKGROUNDS)
    colours = [name for name in COLOURS if name != background]
    count = int(torch.randint(1, 3, (), generator=draw))
    where = choose(PLACES if count == 1 else RELATIONS)
    places = [PLACES[where]] if count == 1 else list(RELATIONS[where])
    things: list[Thing] = []
    for x, y in places:
        free = [(c, s) for c in colours for s in SHAPES if (c, s) not in [(t.colour, t.shape) for t in things]]
        colour, shape = free[int(torch.randint(len(free), (), generator=draw))]
        dx, dy = ((torch.rand(2, generator=draw) * 2 - 1) * JITTER).tolist()
        things.append(Thing(shape, colour, choose(SIZES), (x + dx, y + dy)))
    spec = SceneSpec(tuple(things), where, background)
    return spec, spec.caption()


def render(spec: SceneSpec, size: int) -> Image.Image:
    """The picture of a scene, `size` pixels a side: drawn larger and averaged down, so edges are smooth."""
    side = size * OVERSAMPLE
    image = Image.new("RGB", (side, side), BACKGROUNDS[spec.background])
    draw = ImageDraw.Draw(image)
    for thing in spec.things:
        (x, y), r = thing.centre, thing.extent
        if thing.shape == "circle":
            draw.ellipse([side * (x - r), side * (y - r), side * (x + r), side * (y + r)], fill=COLOURS[thing.colour])
        else:
            corners = [(side * (x + r * u), side * (y + r * v)) for u, v in SHAPES[thing.shape]]
            draw.polygon(corners, fill=COLOURS[thing.colour])
    return image.reduce(OVERSAMPLE)


class ScenesSource:
    """`count` scenes of a seed."""

    def __init__(self, count: int, seed: int = 0):
        self._count, self._seed = count, seed
        self.report = Report(rows=count)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> Record:
        assert 0 <= i < self._count
        spec, caption = scene(i, self._seed)
        return Record(f"scene {self._seed}/{i}", caption, lambda: _png(render(spec, PIXELS)))

    def texts(self) -> list[str]:
        return [scene(i, self._seed)[1] for i in range(self._count)]

    def fingerprint(self) -> str:
        return fingerprint(["scenes", str(VERSION), str(PIXELS), str(self._seed), str(self._count)])


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
