"""Pictures as a labelled table: one picture of stacked panels, and one HTML page that holds everything."""

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from PIL import Image, ImageDraw, ImageFont

from t2i.files import printable

GAP = 6  # pixels around everything
INSET = 1  # of a label in its box: letters reach over their own width
MOST_LINES = 6  # of a label
FONT_SIZES = (12, 22)
LEAST_LABEL = 140  # pixels that a label may take beside or above a small picture
LEAST_TITLE = 320
MOST_PIXELS = 2 * Image.MAX_IMAGE_PIXELS if Image.MAX_IMAGE_PIXELS else 2**27  # beyond it Pillow opens no picture

STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; margin: clamp(.75rem, 4vw, 2rem) }
div { overflow-x: auto }
table { border-collapse: collapse; margin: 1rem 0 2rem }
th { font-weight: 600; text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0; max-width: 24rem }
td { padding: .25rem .75rem .25rem 0; vertical-align: top }
th, td, h1, h2, pre { overflow-wrap: anywhere }
div th:first-child { position: sticky; left: 0; background: Canvas; min-width: 4.5rem; max-width: 40vw }
h1 { font-size: 1.5rem }
h2 { font-size: 1.15rem }
pre { white-space: pre-wrap; border: 1px solid; padding: 1rem }
img { display: block; max-width: none }
"""


@dataclass(frozen=True)
class Sheet:
    """The labels of a table: panels below each other, each of `rows` x `columns` pictures, all of one size.

    Pictures go panel by panel and row by row. A single label "" is an axis that is not there.
    """

    title: str
    size: tuple[int, int]  # (width, height) of the pictures
    columns: tuple[str, ...] = ("",)
    rows: tuple[str, ...] = ("",)
    panels: tuple[str, ...] = ("",)

    def __post_init__(self) -> None:
        assert self.columns and self.rows and self.panels

    @property
    def count(self) -> int:
        """How many pictures."""
        return len(self.columns) * len(self.rows) * len(self.panels)

    @cached_property
    def layout(self) -> "Layout":
        """Where everything lies."""
        return Layout(self)

    def draw(self, pictures: Sequence[Image.Image]) -> Image.Image:
        """The table in black on white."""
        assert len(pictures) == self.count and {picture.size for picture in pictures} == {self.size}
        layout = self.layout
        sheet = Image.new("RGB", layout.size, "white")
        for (left, top, _, _), lines in layout.labels:
            for i, line in enumerate(lines):
                ImageDraw.Draw(sheet).text((left + INSET, top + i * layout.line), line, "black", layout.font)
        for box, picture in zip(layout.boxes, pictures, strict=True):
            sheet.paste(picture, box[:2])
        return sheet

    def page(self, pictures: Sequence[Image.Image], settings: Mapping[str, str], command: str) -> str:
        """The table as a page of HTML that needs no other file and runs nothing."""
        assert len(pictures) == self.count
        rows = iter(pictures)
        parts = [f"<h1>{_text(self.title)}</h1>"]
        for panel in self.panels:
            parts += [f"<h2>{_text(panel)}</h2>"] if panel else []
            parts.append("<div><table>")
            if self.columns != ("",):
                parts.append("<tr><td></td>" + "".join(f"<th>{_text(name)}</th>" for name in self.columns) + "</tr>")
            for row in self.rows:
                cells = "".join(_cell(next(rows), (panel, row, column)) for column in self.columns)
                parts.append(f"<tr><th>{_text(row)}</th>{cells}</tr>")
            parts.append("</table></div>")
        listed = "".join(f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in settings.items())
        parts += [f"<h2>Settings</h2><table>{listed}</table>", f"<h2>Command</h2><pre>{_text(command)}</pre>"]
        policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{_text(self.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
            + "\n".join(parts)
            + "\n</body>\n</html>\n"
        )


Box = tuple[int, int, int, int]  # left, top, right, bottom


class Layout:
    """Where a sheet's pictures and labels lie, and its size; raises ValueError where no program would open it."""

    def __init__(self, sheet: Sheet) -> None:
        width, height = sheet.size
        least, most = FONT_SIZES
        font = ImageFont.load_default(min(max(height // 16, least), most))
        assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow's default one, which scales
        self.font, self.line = font, sum(font.getmetrics())
        self.labels: list[tuple[Box, list[str]]] = []
        self.boxes: list[Box] = []
        column = max(width, min(self._widest(sheet.columns), LEAST_LABEL))
        beside = min(self._widest(sheet.rows), max(width, LEAST_LABEL))
        left = GAP + (beside + GAP if beside else 0)
        table = left + len(sheet.columns) * (column + GAP)
        right = max(table, min(GAP + self._widest([sheet.title, *sheet.panels]) + GAP, LEAST_TITLE))
        top = self._label(sheet.title, GAP, GAP, right - 2 * GAP)
        for panel in sheet.panels:
            top = self._label(panel, GAP, top, right - 2 * GAP)
            top = max(
                self._label(label, left + i * (column + GAP), top, column) for i, label in enumerate(sheet.columns)
            )
            for row in sheet.rows:
                below = self._label(row, GAP, top, beside)
                for i in range(len(sheet.columns)):
                    x = left + i * (column + GAP)
                    self.boxes.append((x, top, x + width, top + height))
                top = max(below, top + height + GAP)
        self.size = (right, top)
        if right * top > MOST_PIXELS:
            raise ValueError(
                f"the sheet would have {right}x{top} pixels, more than programs open: give fewer values, or a smaller "
                f"size than {width}x{height}"
            )

    def _widest(self, labels: Sequence[str]) -> int:
        return max(self._width(" ".join(printable(label).split())) for label in labels)

    def _width(self, text: str) -> int:
        return math.ceil(self.font.getlength(text)) + 2 * INSET if text else 0

    def _label(self, label: str, x: int, y: int, width: int) -> int:
        """Place a label; the y below it."""
        lines = self._wrap(printable(label), width)
        if not lines:
            return y
        bottom = y + self.line * len(lines)
        self.labels.append(((x, y, x + width, bottom), lines))
        return bottom + GAP

    def _wrap(self, text: str, width: int) -> list[str]:
        """`text` in lines of at most `width` pixels, words whole where they fit; what is too much ends in "..."."""
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


def _cell(picture: Image.Image, labels: Sequence[str]) -> str:
    data = io.BytesIO()
    picture.save(data, "PNG")
    source = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    said = _text(", ".join(label for label in labels if label))
    size = f'width="{picture.width}" height="{picture.height}"'
    return f'<td><img {size} alt="{said}" title="{said}" src="{source}"></td>'


def _text(text: str) -> str:
    return html.escape(printable(text))
