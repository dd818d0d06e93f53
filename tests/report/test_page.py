"""Pages hold all that they show, and hostile text cannot break out of them."""

import re
from pathlib import Path

import pytest
from PIL import Image
from report.parser import Page

import t2i
import t2i.report.page
from t2i.report.page import element, encode, escape, figure, gallery, image, image_map, page, section, settings, table

HOSTILE = "</title><script>alert(1)</script>\" onerror='x' & \u202egnp.exe\x00"
RED, BLUE = Image.new("RGB", (6, 4), "red"), Image.new("RGB", (6, 4), "blue")


def test_a_page_begins_with_its_title_and_its_result():
    parsed = Page(page("Frogs", "All 3 are green.", section("Numbers", element("p", "1"), id="n")))
    assert parsed.texts["title"] == parsed.texts["h1"] == ["Frogs"] and not parsed.open
    assert parsed.texts["p"] == ["All 3 are green.", "1"] and parsed.texts["h2"] == ["Numbers"]
    assert ("p", {"class": "result"}) in parsed.tags and ("section", {"id": "n"}) in parsed.tags
    policy = {
        "http-equiv": "Content-Security-Policy",
        "content": "default-src 'none'; img-src data:; style-src 'unsafe-inline'",
    }
    assert ("meta", policy) in parsed.tags
    assert ("p", {"class": "result bad"}) in Page(page("Frogs", "None is green.", bad=True)).tags
    assert "p" not in Page(page("Frogs", "")).texts


def test_hostile_text_stays_text():
    text = page(
        HOSTILE,
        HOSTILE,
        section(HOSTILE, table([HOSTILE, "x"], [[HOSTILE, HOSTILE]], ids=[HOSTILE])),
        gallery([figure(image(RED, HOSTILE), caption=HOSTILE)]),
        image_map(encode(RED), HOSTILE, [(1, 2, "#row-1", HOSTILE)]),
        settings({HOSTILE: HOSTILE}, HOSTILE),
    )
    assert "<script" not in text and "\x00" not in text and "\u202e" not in text
    parsed = Page(text)
    assert {tag for tag, _ in parsed.tags} == {
        *("html", "head", "meta", "title", "style", "body", "main", "section", "h1", "h2", "p", "div", "table", "tr"),
        *("th", "td", "figure", "figcaption", "img", "svg", "image", "a", "circle", "pre"),
    }
    assert {name for _, attributes in parsed.tags for name in attributes} == {
        *("lang", "charset", "http-equiv", "content", "name", "class", "id", "width", "height", "alt", "title", "src"),
        *("viewbox", "role", "aria-label", "cx", "cy", "r", "href"),
    }
    assert parsed.texts["h1"][0].startswith("</title><script>alert(1)</script>\" onerror='x' & \\u202e")
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", text)


def test_only_html_is_not_escaped():
    assert escape("<b>") == "&lt;b&gt;" and escape(escape("<b>")) == "&lt;b&gt;" and escape(3) == "3"
    cell = element("a", "run <1>", href="#run-1")
    assert '<td><a href="#run-1">run &lt;1&gt;</a></td>' in table(["", "run"], [[1, cell]])
    assert element("p", f"{cell}") == "<p>&lt;a href=&quot;#run-1&quot;&gt;run &amp;lt;1&amp;gt;&lt;/a&gt;</p>"


def test_tables_have_headings_by_row_and_targets():
    parsed = Page(table(["run", "fd"], [["a", 1.5], ["b", 2]], ids=["run-a", "run-b"]))
    assert parsed.texts == {"th": ["run", "fd", "a", "b"], "td": ["1.5", "2"]}
    assert [attributes for tag, attributes in parsed.tags if tag == "tr"] == [{}, {"id": "run-a"}, {"id": "run-b"}]
    assert 'class="wrap"' in table([], [["a", "long text"]], wrap=True) and "<th>a</th>" in table([], [["a", "b"]])


def test_settings_and_command_can_be_copied():
    parsed = Page(settings({"seed": 7}, "t2i grid 'a  frog\nand a toad'", "Protocol"))
    assert parsed.texts["h2"] == ["Protocol", "Command"] and parsed.texts["pre"] == ["t2i grid 'a  frog\nand a toad'"]
    assert parsed.texts["th"] == ["seed"] and parsed.texts["td"] == ["7"]


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_images_have_their_size_and_their_bytes(format):
    for content in (RED, encode(RED, format)):
        parsed = Page(image(content, "a frog", format=format))
        assert parsed.images[0].format == format and parsed.images[0].size == RED.size
        attributes = parsed.tags[0][1]
        assert (attributes["width"], attributes["height"], attributes["alt"], attributes["title"]) == (
            "6",
            "4",
            "a frog",
            "a frog",
        )
    tags = Page(image(encode(RED), dark=encode(BLUE))).tags
    assert [tag for tag, _ in tags] == ["picture", "source", "img"]
    assert tags[1][1]["media"] == "(prefers-color-scheme: dark)" and tags[1][1]["srcset"] != tags[2][1]["src"]


def test_points_of_a_figure_are_links_and_it_fits_the_window():
    parsed = Page(image_map(encode(RED), "curves", [(1, 2, "#row-3", "run a: fd 1.5"), (4, 2, "#row-4", "run b")]))
    circles = [attributes for tag, attributes in parsed.tags if tag == "circle"]
    assert circles == [{"cx": "1", "cy": "2", "r": "5"}, {"cx": "4", "cy": "2", "r": "5"}]
    assert [attributes for tag, attributes in parsed.tags if tag == "a"] == [{"href": "#row-3"}, {"href": "#row-4"}]
    assert parsed.texts["title"] == ["run a: fd 1.5", "run b"]
    (svg,) = [attributes for tag, attributes in parsed.tags if tag == "svg"]
    assert svg["viewbox"] == "0 0 6 4" and svg["aria-label"] == "curves"
    style = page("", "")
    assert re.search(r"\nimg \{[^}]*max-width: 100%", style) and re.search(r"\nsvg \{[^}]*max-width: 100%", style)
    assert re.search(r"\ndiv \{ overflow-x: auto \}", style)  # of tables


def test_every_page_of_the_project_is_made_here():
    """So each has the policy: no other module writes a document, a style or a script."""
    own = Path(t2i.report.page.__file__)
    for path in Path(t2i.__file__).parent.rglob("*.py"):
        text = path.read_text().lower()
        marks = ("<!doctype", "<html", "<body", "<style", "<script", "<iframe", "content-security-policy")
        if path != own:
            assert not [mark for mark in marks if mark in text], path
    texts = [page("", ""), page("a", "b", section("c"), bad=True)]
    for text in texts:
        head = text[: text.index("<title>")]
        assert 'http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; style-src' in head
