"""matplotlib figures as PNGs without a display, in a light and a dark theme, with points that a page can link."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from PIL import Image

DPI = 110

Theme = Literal["light", "dark"]


class Colours(NamedTuple):
    """The colours of a theme."""

    background: str
    ink: str
    first: str
    second: str


COLOURS: dict[Theme, Colours] = {
    "light": Colours("white", "#1b1f24", "#0b63b0", "#b3541e"),
    "dark": Colours("#16191d", "#e6e8ea", "#6db3f2", "#f0a070"),
}


@dataclass
class Drawing:
    """A PNG and its linked points: x and y in its pixels, and the target of each."""

    png: bytes
    size: tuple[int, int]
    links: list[tuple[int, int, Any]] = field(default_factory=list)


class Canvas:
    """A matplotlib figure, its `axes` by row and column, and the points that were linked."""

    def __init__(self, columns: int, rows: int, width: float, height: float) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.figure: Any = Figure(figsize=(columns * width, rows * height), dpi=DPI, layout="constrained")
        self._agg = FigureCanvasAgg(self.figure)
        self.axes: Any = self.figure.subplots(rows, columns, squeeze=False)
        self._links: list[tuple[Any, float, float, Any]] = []

    def link(self, transform: Any, x: float, y: float, target: Any) -> None:
        """Links the point (x, y) of a transform to a target."""
        self._links.append((transform, x, y, target))

    def draw(self, note: str = "") -> Drawing:
        """Draws the figure, with a note in its lower left corner, as a PNG of 256 colours."""
        if note:
            self.figure.supxlabel(note, x=0.01, ha="left", fontsize=7)
        self._agg.draw()
        width, height = self._agg.get_width_height()
        image = Image.frombytes("RGBA", (width, height), bytes(self._agg.buffer_rgba()))
        points = [(*transform.transform((x, y)), target) for transform, x, y, target in self._links]
        links = [(round(x), round(image.height - y), target) for x, y, target in points]
        return Drawing(small_png(image), image.size, links)


@contextmanager
def canvas(
    columns: int = 1, rows: int = 1, *, width: float = 6.0, height: float = 4.6, theme: Theme = "light"
) -> Iterator[Canvas]:
    """Yields a canvas of rows x columns axes of width x height inches each; everything is drawn inside the block."""
    import matplotlib

    background, ink, *_ = COLOURS[theme]
    inks = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    faces = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
    style: Any = dict.fromkeys(inks, ink) | dict.fromkeys(faces, background)
    style |= {"axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(style):
        yield Canvas(columns, rows, width, height)


def small_png(image: Image.Image) -> bytes:
    """Returns a PNG of 256 colours, a third as large: a report can be kept in a repository."""
    data = io.BytesIO()
    image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(data, "PNG", optimize=True)
    return data.getvalue()
