"""Grids: the places of images and labels, as an image and as HTML tables."""

import numpy as np
import pytest
from PIL import Image, ImageDraw
from report.parser import Page

from t2i.report.grid import CELL_GAP, GAP, INSET, MOST_LINES, MOST_PIXELS, LabelledGrid, image_grid

COLUMNS = ("cfg = 1", "cfg = 3", "cfg = 7.5")
LONG = "a red circle left of a very large blue square on a white background, " * 3
HOSTILE = "</title><script>alert(1)</script>\" onerror='x' & \u202egnp.exe\x00"


def colours(count, size=(40, 24)):
    """Each of a colour of its own, none white and none black."""
    return [Image.new("RGB", size, (40 + 5 * k, 200 - 5 * k, 90)) for k in range(count)]


def test_every_image_lies_whole_in_its_row_and_column():
    grid = LabelledGrid("frogs", (40, 24), COLUMNS, ("steps = 2", "steps = 4"), ("ddim", "dpm++2m"))
    given = colours(12)
    drawn, boxes = grid.draw(given), grid.layout.boxes
    assert len(boxes) == grid.count == 12 and drawn.size == grid.layout.size
    for box, image in zip(boxes, given, strict=True):
        assert drawn.crop(box).tobytes() == image.tobytes()
    lefts, tops = np.array(boxes)[:, 0].reshape(2, 2, 3), np.array(boxes)[:, 1].reshape(2, 2, 3)
    assert (lefts == lefts[0, 0]).all() and (np.diff(lefts[0, 0]) >= 40 + GAP).all()
    assert (tops == tops[:, :, :1]).all() and (np.diff(tops[:, :, 0].ravel()) >= 24 + GAP).all()


@pytest.mark.parametrize("rows", [("",), (LONG, "x"), ("W" * 60,)])
@pytest.mark.parametrize("columns", [("",), COLUMNS, (LONG, "y"), (HOSTILE,)])
def test_labels_keep_to_their_places(rows, columns):
    """All ink lies in a label's box or in an image's, and no two boxes meet."""
    grid = LabelledGrid(LONG, (40, 24), columns, rows, ("one", "two"))
    drawn = np.array(grid.draw(colours(grid.count)).convert("L"))
    boxes = [box for box, _ in grid.layout.labels] + grid.layout.boxes
    covered = np.zeros(drawn.shape, int)
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= drawn.shape[1] and 0 <= top < bottom <= drawn.shape[0]
        covered[top:bottom, left:right] += 1
        assert (drawn[top:bottom, left:right] < 255).any()
    assert covered.max() == 1
    assert (drawn[covered == 0] == 255).all()


def test_labels_say_what_they_were_given_until_they_are_too_long():
    layout = LabelledGrid("a title", (200, 24), ("first", "second"), ("one row",), ("a panel",)).layout
    said = [" ".join(lines) for _, lines in layout.labels]
    assert said == ["a title", "a panel", "first", "second", "one row"]
    (_, lines), *_ = LabelledGrid(LONG * 5, (40, 24)).layout.labels
    assert len(lines) == MOST_LINES and lines[-1].endswith("...") and (LONG * 5).startswith(" ".join(lines[:-1]))
    assert HOSTILE not in str(LabelledGrid(HOSTILE, (40, 24)).layout.labels)


def test_a_column_is_as_wide_as_its_label_and_both_begin_at_its_left():
    layout = LabelledGrid("", (8, 8), ("cfg = 1", "cfg = 3")).layout
    assert layout.boxes[1][0] - layout.boxes[0][0] > 8 + GAP + 20
    assert [box[0] for box, _ in layout.labels] == [box[0] for box in layout.boxes]


def test_letters_grow_with_the_colours():
    heights = [LabelledGrid("t", (side, side)).layout.line for side in (64, 256, 1024)]
    assert heights[0] < heights[1] < heights[2]


def test_a_grid_that_nothing_opens_is_refused():
    with pytest.raises(ValueError, match="give fewer values, or a smaller size than 4096x4096"):
        _ = LabelledGrid("t", (4096, 4096), tuple("abcd"), tuple("abcd")).layout
    width, height = LabelledGrid("t", (4096, 4096), tuple("abc"), tuple("abc")).layout.size
    assert width * height <= MOST_PIXELS


def test_the_ink_of_a_label_is_its_text():
    layout = LabelledGrid("cfg = 7.5", (64, 64)).layout
    drawn = LabelledGrid("cfg = 7.5", (64, 64)).draw([Image.new("RGB", (64, 64), "red")])
    (box, lines), *_ = layout.labels
    wanted = Image.new("RGB", (box[2] - box[0], box[3] - box[1]), "white")
    ImageDraw.Draw(wanted).text((INSET, 0), lines[0], "black", layout.font)
    assert drawn.crop(box).tobytes() == wanted.tobytes()


def test_tables_hold_the_images_themselves():
    grid = LabelledGrid("frogs", (40, 24), COLUMNS[:2], ("r1", "r2"), ("p1", "p2"))
    given = colours(8)
    parsed = Page(grid.tables(given))
    assert [image.tobytes() for image in parsed.images] == [image.tobytes() for image in given]
    alts = [attributes["alt"] for tag, attributes in parsed.tags if tag == "img"]
    assert alts[1] == "p1, r1, cfg = 3" and alts[6] == "p2, r2, cfg = 1"
    assert parsed.texts["th"] == [*COLUMNS[:2], "r1", "r2"] * 2 and parsed.texts["h2"] == ["p1", "p2"]
    only = Page(LabelledGrid("frogs", (40, 24), rows=("r1", "r2")).tables(given[:2]))
    assert only.texts == {"th": ["r1", "r2"]} and [tag for tag, _ in only.tags].count("tr") == 2


def test_a_plain_grid_is_as_square_as_possible():
    given = colours(5)
    drawn = image_grid(given)
    assert drawn.size == (3 * 42 + CELL_GAP, 2 * 26 + CELL_GAP)
    assert drawn.crop((44, 28, 84, 52)).tobytes() == given[4].tobytes()
    assert image_grid(given, columns=5).size == (5 * 42 + CELL_GAP, 26 + CELL_GAP)
