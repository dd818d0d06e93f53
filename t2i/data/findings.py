"""Findings of a data check in the images themselves: faults, oddities, duplicates and sizes."""

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
TINY = 0.5  # of the training size: most pixels of a smaller image are interpolated
LEAST_SIDE = 32  # pixels, if the training size is not known
LOST = {  # findings that keep an image out of training
    "unreadable": "unreadable",
    "captionless": "without a caption",
    "missing": "listed in the metadata, but not on disk",
    "unlisted": "on disk, but not listed in the metadata",
    "unread_format": "of a format that is not read: save as PNG, JPEG or WebP",
}
NOTED = {  # findings about images that are used
    "duplicate": "with the same pixels as an earlier one",
    "near_duplicate": "an earlier one saved anew (other quality, size or format; crops are not compared)",
    "tiny": "tiny",
    "turned": "turned upright by the EXIF orientation",
    "alpha": "with transparent pixels, which are laid on the background",
    "cmyk": "in CMYK: converted to RGB without the colour profile",
    "deep": "with more than 8 bits a channel: scaled to 8",
    "animated": "animated or of several pages: the first one is used",
    "caption_cut": "with a caption longer than the text encoder reads: its end is cut off",
    "spare_text": "text files that caption no image in use",
}


class Finding(NamedTuple):
    """One finding about an image or another file."""

    kind: str  # a key of LOST or NOTED
    name: str
    why: str = ""
    twin: str = ""  # the earlier image that a duplicate repeats


class Scan(NamedTuple):
    """The properties of an image that was read."""

    width: int
    height: int
    facts: Facts
    digest: bytes
    thumbnail: np.ndarray


def scan_images(source: Source, rows: dict[str, int], background: str, quiet: bool) -> dict[str, Any]:
    """Reads every image; returns its Scan, or the error that made it unreadable, by name."""
    scans: dict[str, Scan | str] = {}
    todo = iter(rows.items())
    with ThreadPoolExecutor(cpu_count()) as pool, progress("checking images", len(rows), quiet=quiet) as report:
        while chunk := list(islice(todo, CHUNK)):
            results = pool.map(lambda row: _scan(source, row, background), [row for _, row in chunk])
            scans |= dict(zip((name for name, _ in chunk), results, strict=True))
            report(len(scans))
    return scans


def _scan(source: Source, row: int, background: str) -> Scan | str:
    try:
        image, facts = examine(source[row].read(), background)
    except (ValueError, OSError) as error:
        return str(error)
    digest, thumbnail = near_duplicates.digest(image), near_duplicates.thumbnail(image)
    return Scan(image.width, image.height, facts, digest, thumbnail)


def find_faults(scans: Mapping[str, Scan | str], size: tuple[int, int] | None, notes: list[str]) -> list[Finding]:
    """Returns the findings in the images; appends to `notes` what was not checked."""
    findings: list[Finding] = []
    seen: dict[bytes, str] = {}
    for name, scan in scans.items():
        if isinstance(scan, str):
            findings.append(Finding("unreadable", name, scan))
            continue
        findings += [
            Finding(kind, name) for kind in ("turned", "alpha", "cmyk", "deep", "animated") if getattr(scan.facts, kind)
        ]
        if _scale(scan, size) < TINY if size else min(scan.width, scan.height) < LEAST_SIDE:
            findings.append(Finding("tiny", name, f"{scan.width}x{scan.height}"))
        if scan.digest in seen:
            findings.append(Finding("duplicate", name, f"of {seen[scan.digest]}", seen[scan.digest]))
        seen.setdefault(scan.digest, name)
    names = list(seen.values())
    if len(names) > near_duplicates.LIMIT:
        notes.append(f"near duplicates were not looked for: more than {near_duplicates.LIMIT} images")
    elif names:
        distinct = [scan for scan in map(scans.__getitem__, names) if isinstance(scan, Scan)]
        thumbnails = np.stack([scan.thumbnail for scan in distinct])
        aspects = np.array([scan.width / scan.height for scan in distinct])
        pairs = sorted(near_duplicates.find_near_duplicates(thumbnails, aspects).items())
        findings += [Finding("near_duplicate", names[i], f"of {names[j]}", names[j]) for i, j in pairs]
    return findings


def _scale(scan: Scan, size: tuple[int, int]) -> float:
    """Returns the factor by which an image is reduced; below 1 it is enlarged."""
    return min(scan.width / size[0], scan.height / size[1])


def size_statistics(scans: list[Scan], size: tuple[int, int] | None) -> dict[str, Any]:
    """Returns statistics of the images' sizes, and of the resizing and cropping to `size` = (width, height)."""
    if not scans:
        return {}
    sides = [min(scan.width, scan.height) for scan in scans]
    statistics: dict[str, Any] = {"distinct": len({(scan.width, scan.height) for scan in scans})}
    statistics |= {"least": min(sides), "median": float(np.median(sides)), "most": max(sides), "at": None}
    if size is not None:
        scales = [_scale(scan, size) for scan in scans]
        areas = [(scan.width * scan.height) for scan in scans]
        fractions = [1 - s * s * size[0] * size[1] / area for s, area in zip(scales, areas, strict=True)]
        cropped = [fraction for fraction in fractions if fraction > 1e-9]
        statistics["at"] = {
            "width": size[0],
            "height": size[1],
            "exact": sum((scan.width, scan.height) == size for scan in scans),
            "reduced": sum(s > 1 for s in scales),
            "enlarged": sum(s < 1 for s in scales),
            "cropped": len(cropped),
            "cropped_share": float(np.mean(cropped)) if cropped else 0.0,
            "worst_share": max(cropped, default=0.0),
        }
    return statistics
