"""The files of a data check: check.json, and check.html with thumbnails."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

from t2i.data.check import Check
from t2i.data.decode import decode
from t2i.data.findings import LOST, NOTED
from t2i.data.folder import FolderSource
from t2i.data.transforms import crop
from t2i.files import printable, sweep, write_text
from t2i.report import page
from t2i.report.page import Html

FILES = ("check.json", "check.html")
THUMBNAIL = 96
SHOWN_FAULTS = 24  # thumbnails of each kind
SHOWN = 60  # usable images, evenly spread
MOST_LETTERS = 200  # of the text below a thumbnail
EXAMPLE_SIDE = 256  # if the size of training is not known
WITHOUT_IMAGE = ("missing", "unread_format", "spare_text")


def write_check(check: Check, folder: str | Path) -> None:
    """Writes check.json and check.html to `folder`, in place of those of an earlier check."""
    sweep(Path(folder), patterns=[f".{name}-????????.partial" for name in FILES])
    for name, text in zip(FILES, (json.dumps(to_json(check), indent=1) + "\n", to_page(check)), strict=True):
        write_text(Path(folder) / name, text)


def to_json(check: Check) -> dict[str, Any]:
    """Returns all findings, counts and statistics as JSON values."""
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
    """Returns the page; all text of the data is escaped."""
    kinds = [(kind, label, check.counts[kind]) for kind, label in (LOST | NOTED).items() if check.counts[kind]]
    counts = page.table([], [[n, page.element("a", label, href=f"#{kind}")] for kind, label, n in kinds], wrap=True)
    lines = [page.element("p", line) for line in (*check.size_lines(), *check.caption_lines())]
    parts = [counts, *lines, _examples(check), *(_findings(check, kind, label) for kind, label, _ in kinds)]
    lost = {finding.name for finding in check.findings if finding.kind in LOST}
    used = [name for name in check.rows if name not in lost]
    shown = used[:: max(1, -(-len(used) // SHOWN))]
    figures = (_figure(check, name, check.opened[check.rows[name]].text) for name in shown)
    parts.append(page.section(f"Usable images: {len(shown)} of {len(used)}", page.gallery(figures)))
    return page.page(f"Data check of {check.config.path}", check.verdict, *parts, bad=not check.ok)


def _examples(check: Check) -> Html:
    """Returns usable images as training crops and resizes them."""
    at = check.sizes.get("at")
    figures = []
    for example in check.examples:
        image = decode(check.opened[example.row].read(), check.config.background)
        if at is None:
            image.thumbnail((EXAMPLE_SIDE, EXAMPLE_SIDE))
        else:
            image = Image.fromarray(crop(image, (at["width"], at["height"])).permute(1, 2, 0).numpy())
        tokens = "" if example.tokens is None else f", {example.tokens} tokens"
        caption = f"{example.caption}\n{example.name}, {example.width}x{example.height}{tokens}"
        figures.append(page.figure(page.image(image), caption=caption))
    return page.section("As they are trained on", page.gallery(figures, large=True)) if figures else Html()


def _findings(check: Check, kind: str, label: str) -> Html:
    """Returns the findings of one kind, the first ones as thumbnails."""
    findings = check.of_kind(kind)
    shown = findings[:SHOWN_FAULTS]
    if kind in WITHOUT_IMAGE:
        body = page.element("ul", *(page.element("li", finding.name) for finding in shown))
    else:
        body = page.gallery(_figure(check, finding.name, finding.why, finding.twin) for finding in shown)
    more = len(findings) - len(shown)
    note = [page.element("p", f"and {more} more: see check.json")] if more else []
    return page.section(f"{len(findings)} {label}", body, *note, id=kind)


def _figure(check: Check, name: str, text: str, twin: str = "") -> Html:
    """Returns a thumbnail of the whole image, if it can be read, beside that of the image it repeats."""
    thumbnails = [_thumbnail(check, one) for one in (name, twin) if one]
    text = text if len(text) <= MOST_LETTERS else text[:MOST_LETTERS] + "..."
    return page.figure(*thumbnails, caption=f"{name}\n{text}")


def _thumbnail(check: Check, name: str) -> Html:
    try:
        image = decode(_bytes(check, name), check.config.background)
    except (ValueError, OSError):
        return page.element("div", class_="missing")
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return page.image(image, format="WEBP")


def _bytes(check: Check, name: str) -> bytes:
    if name in check.rows:
        return check.opened[check.rows[name]].read()
    assert isinstance(check.base, FolderSource)
    return check.base.path_of(name).read_bytes()  # on disk, and in no row: not listed
