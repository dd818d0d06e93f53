"""The elements of scenes: shapes, colours, sizes, places and relations; the scene itself, and its JSON."""

import math
from dataclasses import asdict, dataclass
from typing import Any

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
SIZES = {"small": 0.11, "": 0.16, "large": 0.21}  # half the extent, in sides of the image; no word for the middle one
LEFT, MIDDLE, RIGHT = 0.25, 0.5, 0.75
PLACES = {
    "in the centre": (MIDDLE, MIDDLE),
    "on the left": (LEFT, MIDDLE),
    "on the right": (RIGHT, MIDDLE),
    "at the top": (MIDDLE, LEFT),
    "at the bottom": (MIDDLE, RIGHT),
    "in the top left corner": (LEFT, LEFT),
    "in the top right corner": (RIGHT, LEFT),
    "in the bottom left corner": (LEFT, RIGHT),
    "in the bottom right corner": (RIGHT, RIGHT),
}
RELATIONS = {
    "left of": ((0.24, 0.5), (0.76, 0.5)),
    "right of": ((0.76, 0.5), (0.24, 0.5)),
    "above": ((0.5, 0.24), (0.5, 0.76)),
    "below": ((0.5, 0.76), (0.5, 0.24)),
}  # centres of the first and the second thing
MAX_THINGS = 6
GAP = 0.06  # least distance of two things, in sides of the image: two pixels of 32


def _turns(n: int, inner: float = 1.0) -> list[tuple[float, float]]:
    """Returns corners on the unit circle from the top, clockwise; every second one at radius `inner`."""
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
    """One shape: its words, and its centre in sides of the image (y down)."""

    shape: str
    colour: str
    size: str
    centre: tuple[float, float]

    @property
    def extent(self) -> float:
        """Returns half its extent, in sides of the image."""
        return SIZES[self.size]

    @property
    def pair(self) -> tuple[str, str]:
        return self.colour, self.shape


@dataclass(frozen=True)
class Absent:
    """A thing that the caption says is absent."""

    shape: str
    colour: str

    @property
    def pair(self) -> tuple[str, str]:
        return self.colour, self.shape


@dataclass(frozen=True)
class Wording:
    """The wording of a caption: its template, and its synonym for each kind of word."""

    template: int = 0
    held_out: bool = False  # a template of the held-out ones
    shape: int = 0
    size: int = 0
    relation: int = 0


@dataclass(frozen=True)
class Scene:
    """The ground truth of an image, and what its caption claims beyond the things; `kind` is the caption's family.

    `relation` holds from the first thing to the second; `place` is that of a single thing.
    """

    things: tuple[Thing, ...]
    background: str
    kind: str = ""  # "" for a scene without a caption, read from an image
    place: str = ""
    relation: str = ""
    absent: Absent | None = None
    wording: Wording = Wording()
    caption: str = ""

    def to_json(self) -> dict[str, Any]:
        """Returns the scene as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Scene":
        """Returns the scene that `to_json` wrote."""
        values = dict(values)
        things = tuple(Thing(**{**thing, "centre": tuple(thing["centre"])}) for thing in values.pop("things"))
        absent, wording = values.pop("absent"), values.pop("wording")
        return cls(things, absent=Absent(**absent) if absent else None, wording=Wording(**wording), **values)


def holds(relation: str, first: Thing, second: Thing) -> bool:
    """True if the relation holds between two centres: along its axis, and more along it than across."""
    dx, dy = second.centre[0] - first.centre[0], second.centre[1] - first.centre[1]
    along = {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[relation]
    across = dy if relation in ("left of", "right of") else dx
    return along > abs(across)


def place_of(thing: Thing) -> str:
    """Returns the place nearest to a thing's centre."""
    return min(PLACES, key=lambda place: math.dist(PLACES[place], thing.centre))
