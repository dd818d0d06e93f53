"""Sheets: where pictures and labels lie, and a page that hostile text cannot break out of."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image, ImageDraw

from t2i.pipeline.sheet import GAP, INSET, MOST_LINES, MOST_PIXELS, Sheet

COLUMNS = ("cfg = 1", "cfg = 3", "cfg = 7.5")
LONG = "a red circle left of a very large blue square on a white background, " * 3
HOSTILE = "</title><script>alert(1)</script>\" onerror='x' & \u202egnp.exe\x00"


def pictures(count, size=(40, 24)):
    """Each of a colour of its own, none white and none black."""
    return [Image.new("RGB", size, (40 + 5 * k, 200 - 5 * k, 90)) for k in range(count)]


def test_every_picture_lies_whole_in_its_row_and_column():
    sheet = Sheet("frogs", (40, 24), COLUMNS, ("steps = 2", "steps = 4"), ("ddim", "dpm++2m"))
    given = pictures(12)
    drawn, boxes = sheet.draw(given), sheet.layout.boxes
    assert len(boxes) == sheet.count == 12 and drawn.size == sheet.layout.size
    for box, picture in zip(boxes, given, strict=True):
        assert drawn.crop(box).tobytes() == picture.tobytes()
    lefts, tops = np.array(boxes)[:, 0].reshape(2, 2, 3), np.array(boxes)[:, 1].reshape(2, 2, 3)
    assert (lefts == lefts[0, 0]).all() and (np.diff(lefts[0, 0]) >= 40 + GAP).all()
    assert (tops == tops[:, :, :1]).all() and (np.diff(tops[:, :, 0].ravel()) >= 24 + GAP).all()


@pytest.mark.parametrize("rows", [("",), (LONG, "x"), ("W" * 60,)])
@pytest.mark.parametrize("columns", [("",), COLUMNS, (LONG, "y"), (HOSTILE,)])
def test_labels_keep_to_their_places(rows, columns):
    """All ink lies in a label's box or in a picture's, and no two boxes meet."""
    sheet = Sheet(LONG, (40, 24), columns, rows, ("one", "two"))
    drawn = np.array(sheet.draw(pictures(sheet.count)).convert("L"))
    boxes = [box for box, _ in sheet.layout.labels] + sheet.layout.boxes
    covered = np.zeros(drawn.shape, int)
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= drawn.shape[1] and 0 <= top < bottom <= drawn.shape[0]
        covered[top:bottom, left:right] += 1
        assert (drawn[top:bottom, left:right] < 255).any()
    assert covered.max() == 1
    assert (drawn[covered == 0] == 255).all()


def test_labels_say_what_they_were_given_until_they_are_too_long():
    layout = Sheet("a title", (200, 24), ("first", "second"), ("one row",), ("a panel",)).layout
    said = [" ".join(lines) for _, lines in layout.labels]
    assert said == ["a title", "a panel", "first", "second", "one row"]
    (_, lines), *_ = Sheet(LONG * 5, (40, 24)).layout.labels
    assert len(lines) == MOST_LINES and lines[-1].endswith("...") and (LONG * 5).startswith(" ".join(lines[:-1]))
    assert HOSTILE not in str(Sheet(HOSTILE, (40, 24)).layout.labels)


def test_a_column_is_as_wide_as_its_label_and_both_begin_at_its_left():
    layout = Sheet("", (8, 8), ("cfg = 1", "cfg = 3")).layout
    assert layout.boxes[1][0] - layout.boxes[0][0] > 8 + GAP + 20
    assert [box[0] for box, _ in layout.labels] == [box[0] for box in layout.boxes]


def test_letters_grow_with_the_pictures():
    heights = [Sheet("t", (side, side)).layout.line for side in (64, 256, 1024)]
    assert heights[0] < heights[1] < heights[2]


def test_a_sheet_that_nothing_opens_is_refused():
    with pytest.raises(ValueError, match="give fewer values, or a smaller size than 4096x4096"):
        _ = Sheet("t", (4096, 4096), tuple("abcd"), tuple("abcd")).layout
    width, height = Sheet("t", (4096, 4096), tuple("abc"), tuple("abc")).layout.size
    assert width * height <= MOST_PIXELS


class Page(HTMLParser):
    """Tags with their attributes, and the text of the elements that are asked for."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.texts, self._open = [], {}, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("img", "meta"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and data.strip():
            self.texts.setdefault(self._open[-1], []).append(data)


def test_a_page_holds_the_pictures_themselves():
    sheet = Sheet("frogs", (40, 24), COLUMNS[:2], ("r1", "r2"), ("p1", "p2"))
    given = pictures(8)
    found = Page(sheet.page(given, {"seed": "7"}, "t2i grid 'a  frog\nand a toad'"))
    images = [attributes for tag, attributes in found.tags if tag == "img"]
    for image, picture in zip(images, given, strict=True):
        head, data = image["src"].split(",")
        assert head == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as read:
            assert read.tobytes() == picture.tobytes()
    assert images[1]["alt"] == "p1, r1, cfg = 3" and images[6]["alt"] == "p2, r2, cfg = 1"
    assert found.texts["th"] == [*COLUMNS[:2], "r1", "r2"] * 2 + ["seed"]
    assert found.texts["h2"] == ["p1", "p2", "Settings", "Command"]
    assert found.texts["pre"] == ["t2i grid 'a  frog\nand a toad'"]
    assert not found._open


def test_hostile_text_stays_text():
    sheet = Sheet(HOSTILE, (40, 24), (HOSTILE,), (HOSTILE,), (HOSTILE,))
    text = sheet.page(pictures(1), {HOSTILE: HOSTILE}, HOSTILE)
    assert "<script" not in text and "\x00" not in text and "\u202e" not in text
    found = Page(text)
    assert {tag for tag, _ in found.tags} == {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "div", "table", "tr", "th", "td", "img", "pre"
    }  # fmt: skip
    attributes = {name for _, attributes in found.tags for name in attributes}
    assert attributes == {"lang", "charset", "http-equiv", "content", "name", "width", "height", "alt", "title", "src"}
    assert found.texts["h1"][0].startswith("</title><script>alert(1)</script>\" onerror='x' & \\u202e")
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", text)


def test_the_ink_of_a_label_is_its_text():
    layout = Sheet("cfg = 7.5", (64, 64)).layout
    drawn = Sheet("cfg = 7.5", (64, 64)).draw([Image.new("RGB", (64, 64), "red")])
    (box, lines), *_ = layout.labels
    wanted = Image.new("RGB", (box[2] - box[0], box[3] - box[1]), "white")
    ImageDraw.Draw(wanted).text((INSET, 0), lines[0], "black", layout.font)
    assert drawn.crop(box).tobytes() == wanted.tobytes()
