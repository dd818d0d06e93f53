"""HTML pages that need no other file and run nothing: escaped text, tables, images as data URLs, one style sheet."""

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence

from PIL import Image

from t2i.files import printable

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
POINT = 5  # pixels: the radius of a link in a figure
VOID = ("img", "source")  # elements without content
STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; margin: clamp(.75rem, 4vw, 2rem); overflow-wrap: break-word }
main { max-width: 94rem; margin: auto }
h1 { font-size: 1.5rem; overflow-wrap: anywhere }
h2 { font-size: 1.15rem; margin-top: 2rem; overflow-wrap: anywhere }
p, ul, ol { max-width: 62rem; overflow-wrap: anywhere }
pre { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid; padding: 1rem }
.result { font-size: 1.1rem; border-left: 4px solid #36c; padding: .25rem 1rem }
.note { border-left: 4px solid #d60; padding: .25rem 1rem }
.bad { font-weight: 700; border-color: #c00 }
:target { outline: 2px solid #d60 }
div { overflow-x: auto }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .25rem .75rem .25rem 0; text-align: left; vertical-align: top; font-variant-numeric: tabular-nums }
th { font-weight: 600; min-width: 4.5rem; max-width: 24rem; overflow-wrap: anywhere }
th:first-child { position: sticky; left: 0; background: Canvas; max-width: 40vw }
td { white-space: nowrap }
td .text { white-space: normal; min-width: 14rem }
.wrap td { white-space: normal; overflow-wrap: anywhere }
figure { margin: 0; font-size: .85rem; overflow-wrap: anywhere }
figcaption { white-space: pre-line }
.gallery { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1rem 0 }
.gallery figure { min-width: 8rem; max-width: 13rem }
.large figure { max-width: 33rem }
.images { display: flex; flex-wrap: wrap; gap: .25rem }
img { display: block; max-width: 100%; height: auto; background: white }
td img { max-width: none }
svg { display: block; max-width: 100%; height: auto; background: white }
circle { fill: transparent }
a:hover circle { stroke: #d60 }
.missing { width: 6rem; height: 6rem; border: 1px dashed }
"""


class Html(str):
    """Text that is HTML already; the functions of this module escape all other text."""

    __slots__ = ()


def escape(value: object) -> Html:
    """Returns a value as HTML text without control characters; Html stays as it is."""
    return value if isinstance(value, Html) else Html(html.escape(printable(str(value))))


def element(tag: str, *content: object, **attributes: object) -> Html:
    """Returns an HTML element with escaped content and attributes (`class_` for class); None omits an attribute."""
    written = "".join(f' {name.rstrip("_")}="{escape(v)}"' for name, v in attributes.items() if v is not None)
    start = f"<{tag}{written}>"
    return Html(start if tag in VOID else f"{start}{''.join(map(escape, content))}</{tag}>")


def page(title: str, result: str, *parts: Html, bad: bool = False) -> str:
    """Returns a whole page: its title, its result in one sentence (marked where it is `bad`), and its parts."""
    top = [element("p", result, class_="result bad" if bad else "result")] if result else []
    body = element("main", element("h1", title), *top, *(Html(f"\n{part}") for part in parts))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def section(heading: str, *content: object, id: str | None = None) -> Html:
    """Returns a heading and what belongs to it."""
    return element("section", element("h2", heading), *content, id=id)


def table(
    head: Sequence[object], rows: Iterable[Sequence[object]], *, ids: Sequence[str] = (), wrap: bool = False
) -> Html:
    """Returns a table that scrolls sideways; the first cell of each row is its heading.

    `ids` are the targets of links to the rows. With `wrap` the cells hold text that may be broken into lines.
    """
    top = [element("tr", *(element("th", cell) for cell in head))] if head else []
    body = [
        element("tr", element("th", cells[0]), *(element("td", cell) for cell in cells[1:]), id=ids[i] if ids else None)
        for i, cells in enumerate(rows)
    ]
    return element("div", element("table", *top, *body, class_="wrap" if wrap else None))


def settings(values: Mapping[str, object], command: str, heading: str = "Settings") -> Html:
    """Returns the two sections that tell how a result was made: settings, and the command that repeats it."""
    return Html(
        section(heading, table([], list(values.items()), wrap=True)) + section("Command", element("pre", command))
    )


def encode(image: Image.Image, format: str = "PNG") -> bytes:
    """Returns the bytes of an image file."""
    data = io.BytesIO()
    image.save(data, format)
    return data.getvalue()


def data_url(data: bytes, format: str = "PNG") -> str:
    """Returns the bytes of an image file as a URL."""
    return f"data:image/{format.lower()};base64,{base64.b64encode(data).decode()}"


def image(content: Image.Image | bytes, alt: str = "", *, dark: bytes | None = None, format: str = "PNG") -> Html:
    """Returns an image, or the bytes of an image file of that format, as an element.

    `dark` are the bytes of the image that readers with a dark theme see. A mouse over the image shows `alt`.
    """
    if isinstance(content, bytes):
        with Image.open(io.BytesIO(content)) as opened:
            size = opened.size
    else:
        size, content = content.size, encode(content, format)
    title = alt or None
    shown = element("img", width=size[0], height=size[1], alt=alt, title=title, src=data_url(content, format))
    if dark is None:
        return shown
    source = element("source", media="(prefers-color-scheme: dark)", srcset=data_url(dark, format))
    return element("picture", source, shown)


def figure(*content: object, caption: object = "") -> Html:
    """Returns images side by side with a caption below."""
    return element(
        "figure", element("div", *content, class_="images"), *([element("figcaption", caption)] if caption else [])
    )


def gallery(figures: Iterable[Html], *, large: bool = False) -> Html:
    """Returns figures in rows that adapt to the width of the window."""
    return element("div", *figures, class_="gallery large" if large else "gallery")


def image_map(data: bytes, name: str, areas: Iterable[tuple[int, int, str, str]]) -> Html:
    """Returns a PNG whose points (x, y in pixels, URL, text) are links; it is scaled to the width of the window."""
    with Image.open(io.BytesIO(data)) as opened:
        width, height = opened.size
    links = [
        element("a", element("circle", element("title", text), cx=x, cy=y, r=POINT), href=url)
        for x, y, url, text in areas
    ]
    shown = element("image", width=width, height=height, href=data_url(data))
    box = {"viewBox": f"0 0 {width} {height}", "role": "img", "aria-label": name}
    return element("svg", shown, *links, width=width, height=height, **box)
