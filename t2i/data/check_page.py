"""What a check leaves in its folder: check.json, and check.html, a page that needs no other file and runs nothing."""

import base64
import html
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from t2i.data.check import Check
from t2i.data.decode import decode
from t2i.data.findings import LOST, NOTED
from t2i.data.folder import FolderSource
from t2i.data.transforms import crop
from t2i.files import printable, write_text

FILES = ("check.json", "check.html")
THUMBNAIL = 96
SHOWN_FAULTS = 24  # thumbnails of each kind
SHOWN = 60  # of the usable pictures, evenly spread
MOST_LETTERS = 200  # of what stands below a thumbnail
EXAMPLE_SIDE = 256  # where no side is known
UNDRAWN = ("missing", "unread_format", "spare_text")  # of which there is no picture
STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; margin: clamp(.75rem, 4vw, 2rem); max-width: 75rem }
h1 { font-size: 1.5rem }
h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse }
td, th { padding: .2rem .75rem .2rem 0; text-align: left; vertical-align: top }
td:first-child { text-align: right; font-variant-numeric: tabular-nums }
.grid { display: flex; flex-wrap: wrap; gap: .75rem }
figure { margin: 0; min-width: 8rem; max-width: 13rem; font-size: .8rem; overflow-wrap: anywhere }
.large figure { max-width: 33rem }
img { display: block; max-width: 100%; height: auto; background: white }
.none { width: 6rem; height: 6rem; border: 1px dashed }
.bad { font-weight: 700 }
p, td { overflow-wrap: anywhere }
"""


def write_check(check: Check, folder: str | Path) -> None:
    """check.json and check.html in `folder`, in place of those of an earlier check."""
    for name, text in zip(FILES, (json.dumps(to_json(check), indent=1) + "\n", to_page(check)), strict=True):
        write_text(Path(folder) / name, text)


def to_json(check: Check) -> dict[str, Any]:
    """Everything that was found."""
    return {
        "schema_version": 1,
        "data": check.config.path,
        "ok": check.ok,
        "verdict": check.verdict,
        "total": check.total,
        "usable": check.usable,
        "lost": check.lost,
        "max_lost": check.max_lost,
        "counts": check.counts,
        "findings": [{key: printable(text) for key, text in f._asdict().items()} for f in check.findings],
        "sizes": check.sizes,
        "captions": check.captions,
        "examples": [
            e._asdict() | {"name": printable(e.name), "caption": printable(e.caption)} for e in check.examples
        ],
        "notes": check.notes,
    }


def to_page(check: Check) -> str:
    """The page; every text of the data is escaped."""
    title = f"Data check of {check.config.path}"
    sections = [_summary(check), _examples(check)]
    sections += [_kind(check, kind, said) for kind, said in (LOST | NOTED).items() if check.counts[kind]]
    lost = {finding.name for finding in check.findings if finding.kind in LOST}
    used = [name for name in check.rows if name not in lost]
    spread = used[:: max(1, -(-len(used) // SHOWN))]
    figures = (_figure(check, name, check.opened[check.rows[name]].text) for name in spread)
    sections.append(f"<h2>Usable pictures: {len(spread)} of {len(used)}</h2>{_grid(figures)}")
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{_text(title)}</h1>\n"
        + "\n".join(sections)
        + "\n</body>\n</html>\n"
    )


def _summary(check: Check) -> str:
    kinds = [(kind, said, n) for kind, said in (LOST | NOTED).items() if (n := check.counts[kind])]
    rows = "".join(f'<tr><td>{n}</td><td><a href="#{kind}">{_text(said)}</a></td></tr>' for kind, said, n in kinds)
    more = "".join(f"<p>{_text(line)}</p>" for line in [*check.said_sizes(), *check.said_captions()])
    mark = "" if check.ok else ' class="bad"'
    return f"<p{mark}>{_text(check.verdict)}</p><table>{rows}</table>{more}"


def _examples(check: Check) -> str:
    """Usable pictures as training sees them."""
    at = check.sizes.get("at")
    figures = []
    for example in check.examples:
        picture = decode(check.opened[example.row].read(), check.config.background)
        if at is None:
            picture.thumbnail((EXAMPLE_SIDE, EXAMPLE_SIDE))
        else:
            picture = Image.fromarray(crop(picture, (at["width"], at["height"])).permute(1, 2, 0).numpy())
        tokens = "" if example.tokens is None else f", {example.tokens} tokens"
        said = f"{example.name}, {example.width}x{example.height}{tokens}"
        figures.append(f"<figure>{_image(picture, 'PNG')}{_text(example.caption)}<br>{_text(said)}</figure>")
    return f'<h2>As they are trained on</h2><div class="large">{_grid(figures)}</div>' if figures else ""


def _kind(check: Check, kind: str, said: str) -> str:
    found = check.named(kind)
    shown = found[:SHOWN_FAULTS]
    head = f'<h2 id="{kind}">{len(found)} {_text(said)}</h2>'
    if kind in UNDRAWN:
        body = "<p>" + "<br>".join(_text(finding.name) for finding in shown) + "</p>"
    else:
        body = _grid(_figure(check, finding.name, finding.why, finding.twin) for finding in shown)
    return (
        head + body + (f"<p>and {len(found) - len(shown)} more: see check.json</p>" if len(found) > len(shown) else "")
    )


def _figure(check: Check, name: str, said: str, twin: str = "") -> str:
    """A thumbnail of the whole picture, where it can be read; beside it that of its twin."""
    thumbnails = "".join(_thumbnail(check, one) for one in (name, twin) if one)
    said = said if len(said) <= MOST_LETTERS else said[:MOST_LETTERS] + "..."
    return f'<figure><div class="grid">{thumbnails}</div>{_text(name)}<br>{_text(said)}</figure>'


def _thumbnail(check: Check, name: str) -> str:
    try:
        picture = decode(_bytes(check, name), check.config.background)
    except (ValueError, OSError):
        return '<div class="none"></div>'
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return _image(picture, "WEBP")


def _bytes(check: Check, name: str) -> bytes:
    if name in check.rows:
        return check.opened[check.rows[name]].read()
    assert isinstance(check.base, FolderSource)
    return check.base.path_of(name).read_bytes()  # on disk, and in no row: not listed


def _grid(figures: Iterable[str]) -> str:
    return f'<div class="grid">{"".join(figures)}</div>'


def _image(picture: Image.Image, format: str) -> str:
    data = io.BytesIO()
    picture.save(data, format)
    source = f"data:image/{format.lower()};base64," + base64.b64encode(data.getvalue()).decode()
    return f'<img width="{picture.width}" height="{picture.height}" alt="" src="{source}">'


def _text(text: str) -> str:
    return html.escape(printable(text))
