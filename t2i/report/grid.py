"""Several images as one: plain grids, and labelled grids as an image or as HTML tables."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from PIL import Image, ImageDraw, ImageFont

from t2i.files import printable
from t2i.report.page import Html, element, image

CELL_GAP = 2  # pixels around each image of a plain grid
GAP = 6  # pixels around everything of a labelled grid
INSET = 1  # of a label in its box: letters reach over their own width
MOST_LINES = 6  # of a label
FONT_SIZES = (12, 22)
LEAST_LABEL = 140  # pixels that a label may take beside or above a small image
LEAST_TITLE = 320
MOST_PIXELS = 2 * Image.MAX_IMAGE_PIXELS if Image.MAX_IMAGE_PIXELS else 2**27  # beyond it Pillow opens no image

Box = tuple[int, int, int, int]  # left, top, right, bottom


def image_grid(images: Sequence[Image.Image], columns: int | None = None) -> Image.Image:
    """Returns the images row by row on white; by default the grid is as square as possible."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    width, height = (max(image.size[k] for image in images) + CELL_GAP for k in (0, 1))
    size = (columns * width + CELL_GAP, math.ceil(len(images) / columns) * height + CELL_GAP)
    grid = Image.new("RGB", size, "white")
    for k, one in enumerate(images):
        grid.paste(one, (k % columns * width + CELL_GAP, k // columns * height + CELL_GAP))
    return grid


@dataclass(frozen=True)
class LabelledGrid:
    """The labels of a grid: panels below each other, each of `rows` x `columns` images, all of one size.

    Images are given panel by panel and row by row. A single label "" is an axis that is not used.
    """

    title: str
    size: tuple[int, int]  # (width, height) of the images
    columns: tuple[str, ...] = ("",)
    rows: tuple[str, ...] = ("",)
    panels: tuple[str, ...] = ("",)

    def __post_init__(self) -> None:
        assert self.columns and self.rows and self.panels

    @property
    def count(self) -> int:
        """Returns the number of images."""
        return len(self.columns) * len(self.rows) * len(self.panels)

    @cached_property
    def layout(self) -> "Layout":
        """Returns the places of everything; raises a ValueError if the grid is too large to be opened."""
        return Layout(self)

    def draw(self, images: Sequence[Image.Image]) -> Image.Image:
        """Returns the grid as one image, in black on white."""
        assert len(images) == self.count and {one.size for one in images} == {self.size}
        layout = self.layout
        drawn = Image.new("RGB", layout.size, "white")
        for (left, top, _, _), lines in layout.labels:
            for i, line in enumerate(lines):
                ImageDraw.Draw(drawn).text((left + INSET, top + i * layout.line), line, "black", layout.font)
        for box, one in zip(layout.boxes, images, strict=True):
            drawn.paste(one, box[:2])
        return drawn

    def tables(self, images: Sequence[Image.Image]) -> Html:
        """Returns the grid as a table of HTML for each panel, without its title."""
        assert len(images) == self.count
        remaining = iter(images)
        parts = []
        for panel in self.panels:
            if panel:
                parts.append(element("h2", panel))
            lines = []
            if self.columns != ("",):
                lines.append(element("tr", element("td"), *(element("th", column) for column in self.columns)))
            for row in self.rows:
                labels = [", ".join(filter(None, (panel, row, column))) for column in self.columns]
                cells = [element("td", image(next(remaining), label)) for label in labels]
                lines.append(element("tr", element("th", row), *cells))
            parts.append(element("div", element("table", *lines)))
        return Html("\n".join(parts))


class Layout:
    """The boxes of a grid's images and labels, and its size; raises a ValueError if it is too large to be opened."""

    def __init__(self, grid: LabelledGrid) -> None:
        width, height = grid.size
        least, most = FONT_SIZES
        font = ImageFont.load_default(min(max(height // 16, least), most))
        assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow's default one, which scales
        self.font, self.line = font, sum(font.getmetrics())
        self.labels: list[tuple[Box, list[str]]] = []
        self.boxes: list[Box] = []
        column = max(width, min(self._widest(grid.columns), LEAST_LABEL))
        beside = min(self._widest(grid.rows), max(width, LEAST_LABEL))
        left = GAP + (beside + GAP if beside else 0)
        table = left + len(grid.columns) * (column + GAP)
        right = max(table, min(GAP + self._widest([grid.title, *grid.panels]) + GAP, LEAST_TITLE))
        top = self._label(grid.title, GAP, GAP, right - 2 * GAP)
        for panel in grid.panels:
            top = self._label(panel, GAP, top, right - 2 * GAP)
            top = max(
                self._label(label, left + i * (column + GAP), top, column) for i, label in enumerate(grid.columns)
            )
            for row in grid.rows:
                below = self._label(row, GAP, top, beside)
                for i in range(len(grid.columns)):
                    x = left + i * (column + GAP)
                    self.boxes.append((x, top, x + width, top + height))
                top = max(below, top + height + GAP)
        self.size = (right, top)
        if right * top > MOST_PIXELS:
            raise ValueError(
                f"the grid would have {right}x{top} pixels, more than programs open: give fewer values, or a smaller "
                f"size than {width}x{height}"
            )

    def _widest(self, labels: Sequence[str]) -> int:
        return max(self._width(" ".join(printable(label).split())) for label in labels)

    def _width(self, text: str) -> int:
        return math.ceil(self.font.getlength(text)) + 2 * INSET if text else 0

    def _label(self, label: str, x: int, y: int, width: int) -> int:
        """Places a label; returns the y below it."""
        lines = self._wrap(printable(label), width)
        if not lines:
            return y
        bottom = y + self.line * len(lines)
        self.labels.append(((x, y, x + width, bottom), lines))
        return bottom + GAP

    def _wrap(self, text: str, width: int) -> list[str]:
        """Returns lines of at most `width` pixels, with whole words if they fit; a longer text ends in "..."."""
        lines: list[str] = []
        for word in text.split():
            if lines and self._width(f"{lines[-1]} {word}") <= width:
                lines[-1] += f" {word}"
                continue
            lines.append("")
            for letter in word:
                if lines[-1] and self._width(lines[-1] + letter) > width:
                    lines.append("")
                lines[-1] += letter
        if len(lines) > MOST_LINES:
            last = lines[MOST_LINES - 1]
            while last and self._width(last + "...") > width:
                last = last[:-1]
            lines = [*lines[: MOST_LINES - 1], last + "..."]
        return lines
