"""Figures: themes, notes, and points where the page's links need them."""

import io

import numpy as np
from PIL import Image

from t2i.report.figures import COLOURS, DPI, canvas


def opened(drawing) -> np.ndarray:
    with Image.open(io.BytesIO(drawing.png)) as image:
        assert image.format == "PNG" and image.size == drawing.size
        return np.asarray(image.convert("RGB"))


def test_a_linked_point_lies_where_it_is_drawn():
    with canvas(2, width=3, height=2) as made:
        axes = made.axes[0][1]
        axes.plot([0, 1, 4], [0, 3, 9], "s", color="#ff0000", markersize=6)
        made.link(axes.transData, 1, 3, "row 1")
        drawing = made.draw()
    assert drawing.size == (6 * DPI, 2 * DPI)
    ((x, y, target),) = drawing.links
    assert target == "row 1" and tuple(opened(drawing)[y, x]) == (255, 0, 0)


def test_themes_differ_in_their_colours_and_a_note_is_drawn():
    drawn = {}
    for theme, note in (("light", ""), ("dark", ""), ("dark", "bars: 95%")):
        with canvas(width=3, height=2, theme=theme) as made:
            made.axes[0][0].set_title("FD")
            drawn[theme, note] = opened(made.draw(note))
    assert tuple(drawn["light", ""][0, 0]) == (255, 255, 255)
    dark = tuple(int(COLOURS["dark"].background[i : i + 2], 16) for i in (1, 3, 5))
    assert tuple(drawn["dark", ""][0, 0]) == dark
    assert (drawn["dark", "bars: 95%"][-12:, :60] != dark).any() and (drawn["dark", ""][-4:, :8] == dark).all()
