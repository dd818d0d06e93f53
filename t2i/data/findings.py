"""What one look at each picture of a data set tells: faults, oddities, twins and sizes."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from os import cpu_count
from typing import Any, NamedTuple

import numpy as np

from t2i.data import near_duplicates
from t2i.data.decode import Facts, examine
from t2i.data.source import Source
from t2i.progress import progress

CHUNK = 256
TINY = 0.5  # of the side that is trained at: a smaller picture is mostly invented by enlarging it
LEAST_SIDE = 32  # where no side is known
LOST = {  # what keeps a picture out of training
    "unreadable": "unreadable",
    "captionless": "without a caption",
    "missing": "listed in the metadata, but not there",
    "unlisted": "there, but not listed in the metadata",
    "unread_format": "of a format that is not read: save as PNG, JPEG or WebP",
}
NOTED = {  # what is used as it is said here
    "duplicate": "with the same pixels as an earlier one",
    "near_duplicate": "an earlier one saved anew (other quality, size or format; crops are not looked for)",
    "tiny": "tiny",
    "turned": "turned upright by the EXIF orientation",
    "alpha": "with transparent pixels, which are laid on the background",
    "cmyk": "in CMYK: converted to RGB without the colour profile",
    "deep": "with more than 8 bits a channel: scaled to 8",
    "animated": "animated or of several pages: the first one is used",
    "caption_cut": "with a caption longer than the text encoder reads: its end is cut off",
    "spare_text": "text files that caption no picture in use",
}


class Finding(NamedTuple):
    """One picture, or file, and what was found."""

    kind: str  # a key of LOST or NOTED
    name: str
    why: str = ""
    twin: str = ""  # the earlier picture that it is


class Look(NamedTuple):
    """What is kept of a picture that was read."""

    width: int
    height: int
    facts: Facts
    digest: bytes
    thumbnail: np.ndarray


def _look(source: Source, row: int, background: str) -> Look | str:
    try:
        picture, facts = examine(source[row].read(), background)
    except (ValueError, OSError) as error:
        return str(error)
    return Look(
        picture.width, picture.height, facts, near_duplicates.digest(picture), near_duplicates.thumbnail(picture)
    )


def look_at_all(source: Source, rows: dict[str, int], background: str, quiet: bool) -> dict[str, Any]:
    """A Look, or why there is none, by name."""
    found: dict[str, Look | str] = {}
    todo = iter(rows.items())
    with ThreadPoolExecutor(cpu_count()) as pool, progress("looking at pictures", len(rows), quiet=quiet) as report:
        while chunk := list(islice(todo, CHUNK)):
            looks = pool.map(lambda row: _look(source, row, background), [row for _, row in chunk])
            found |= dict(zip((name for name, _ in chunk), looks, strict=True))
            report(len(found))
    return found


def find_faults(looks: Mapping[str, Look | str], size: tuple[int, int] | None, notes: list[str]) -> list[Finding]:
    """What the pictures' own bytes say."""
    found: list[Finding] = []
    seen: dict[bytes, str] = {}
    for name, look in looks.items():
        if isinstance(look, str):
            found.append(Finding("unreadable", name, look))
            continue
        facts = look.facts
        marks = (("turned", facts.turned), ("alpha", facts.alpha), ("cmyk", facts.cmyk), ("deep", facts.deep))
        found += [Finding(kind, name) for kind, there in (*marks, ("animated", facts.animated)) if there]
        if _scale(look, size) < TINY if size else min(look.width, look.height) < LEAST_SIDE:
            found.append(Finding("tiny", name, f"{look.width}x{look.height}"))
        if look.digest in seen:
            found.append(Finding("duplicate", name, f"of {seen[look.digest]}", seen[look.digest]))
        seen.setdefault(look.digest, name)
    names = list(seen.values())
    if len(names) > near_duplicates.LIMIT:
        notes.append(f"near duplicates were not looked for: more than {near_duplicates.LIMIT} pictures")
    elif names:
        kept = [look for look in map(looks.__getitem__, names) if isinstance(look, Look)]
        pairs = near_duplicates.find_near(
            np.stack([look.thumbnail for look in kept]), np.array([look.width / look.height for look in kept])
        )
        found += [Finding("near_duplicate", names[i], f"of {names[j]}", names[j]) for i, j in sorted(pairs.items())]
    return found


def _scale(look: Look, size: tuple[int, int]) -> float:
    """How many pixels of the picture become one: below 1 it is enlarged."""
    return min(look.width / size[0], look.height / size[1])


def said_of_sizes(looks: list[Look], size: tuple[int, int] | None) -> dict[str, Any]:
    """The sizes that pictures have, and what becomes of them at (width, height) `size`."""
    if not looks:
        return {}
    sides = [min(look.width, look.height) for look in looks]
    found: dict[str, Any] = {"distinct": len({(look.width, look.height) for look in looks})}
    found |= {"least": min(sides), "median": float(np.median(sides)), "most": max(sides), "at": None}
    if size is not None:
        scales = [_scale(look, size) for look in looks]
        areas = [(look.width * look.height) for look in looks]
        shares = [1 - s * s * size[0] * size[1] / area for s, area in zip(scales, areas, strict=True)]
        cropped = [share for share in shares if share > 1e-9]
        found["at"] = {
            "width": size[0],
            "height": size[1],
            "exact": sum((look.width, look.height) == size for look in looks),
            "reduced": sum(s > 1 for s in scales),
            "enlarged": sum(s < 1 for s in scales),
            "cropped": len(cropped),
            "cropped_share": float(np.mean(cropped)) if cropped else 0.0,
            "worst_share": max(cropped, default=0.0),
        }
    return found
