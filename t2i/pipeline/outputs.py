"""Images on disk: PNGs that hold their settings, a grid, and `metadata.jsonl`; nothing is ever overwritten."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from t2i.errors import WriteFailed
from t2i.files import free_space, lock, sweep, write_png
from t2i.pipeline.metadata import OURS, SCHEMA, to_texts
from t2i.pipeline.metadata.chunks import read_texts
from t2i.pipeline.metadata.fields import read_json
from t2i.report.grid import image_grid

METADATA = "metadata.jsonl"
LOCK = ".lock"  # of a folder that a process resumes
LEFTOVERS = (".*.png-????????.partial", ".sheet-*.html-????????.partial")
LEFT = 60  # seconds after which a temporary file belongs to a killed process
MOST_IN_GRID = 64
_INDEX = re.compile(r"(?:grid-)?(\d{5,})(?:-\d+)?\.png")


class ImageFolder:
    """A folder of images that one request adds to, from the index after the highest in it."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.first = self.next = _next_index(self.folder)
        except OSError as error:
            raise ValueError(f"{folder}: cannot hold images ({error.strerror}); give another folder") from None
        sweep(self.folder, LEFT, LEFTOVERS)
        self.shown: list[Image.Image] = []

    def add(self, image: Image.Image, settings: dict[str, Any], *, metadata: bool = True) -> Path:
        """Writes an image, then its line; `settings` has its prompt and its seed.

        Without `metadata` the settings are in the line only.
        """
        settings = {"schema_version": SCHEMA, **settings}
        info = PngImagePlugin.PngInfo()
        for key, text in (to_texts(settings) if metadata else {}).items():
            (info.add_itxt if key == OURS else info.add_text)(key, text)
        path = self.folder / f"{self.next:05}-{settings['seed']}.png"
        write_png(path, image, new=True, pnginfo=info)
        _add_line(path, settings)
        self.next += 1
        if len(self.shown) < MOST_IN_GRID:
            self.shown.append(image)
        return path

    def grid(self) -> Path | None:
        """Writes the first images of this request as one; returns None for a single image."""
        if len(self.shown) < 2:
            return None
        path = self.folder / f"grid-{self.first:05}.png"
        write_png(path, image_grid(self.shown), new=True)
        return path


def read_settings(path: str | Path) -> dict[str, Any]:
    """Returns the settings inside a PNG of t2i, as they were written."""
    texts, _ = read_texts(path, {OURS})
    if OURS not in texts:
        raise ValueError(f"{path}: holds no settings of t2i")
    return read_json(texts[OURS])


@contextmanager
def resumed(folder: Path) -> Iterator[dict[str, Path]]:
    """Locks a folder against a second process that resumes it; yields its images by their `settings_key`.

    Leftovers of a killed process are put in order: temporary files are removed, and an image without its line in
    `metadata.jsonl` gets it. Raises ValueError where another process resumes the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOCK).touch()
    except OSError as error:
        raise ValueError(f"{folder}: cannot hold images ({error.strerror}); give another folder") from None
    with lock(folder / LOCK) as alone:
        if not alone:
            raise ValueError(f"{folder}: another process resumes in this folder: wait for it, or give another one")
        sweep(folder, patterns=LEFTOVERS)
        images: dict[str, Path] = {}
        lines, metadata = set(), folder / METADATA
        text = metadata.read_text(encoding="utf8", errors="replace") if metadata.is_file() else ""
        for line in text.splitlines():
            try:
                row = json.loads(line)
                name = row.pop("file_name")
                path = folder / name
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                continue  # cut off by a crash, or another program's
            if path.is_file():
                lines.add(path)
                images[settings_key({k: v for k, v in row.items() if k not in ("text", "schema_version")})] = path
        for path in sorted(folder.glob("[0-9]*.png")):
            if path in lines:
                continue
            try:
                settings = read_settings(path)
            except ValueError:
                continue  # another program's
            if isinstance(settings.get("prompt"), str):
                _add_line(path, settings)
                images[settings_key({k: v for k, v in settings.items() if k != "schema_version"})] = path
        yield images


def settings_key(settings: dict[str, Any]) -> str:
    """Returns a text that is equal for equal settings only."""
    return json.dumps(settings, sort_keys=True)


def _add_line(path: Path, settings: dict[str, Any]) -> None:
    """Appends the line of an image to `metadata.jsonl`, on a line of its own if a crash cut the last one off."""
    row = {"file_name": path.name, "text": settings["prompt"], **settings}
    metadata = path.with_name(METADATA)
    try:
        with open(metadata, "a+b") as file:
            cut_off = False
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                cut_off = file.read() != b"\n"
            file.write(b"\n" * cut_off + json.dumps(row, ensure_ascii=False).encode() + b"\n")
    except OSError as error:
        cause = f"{error.strerror}; {free_space(metadata)}"
        raise WriteFailed(f"{metadata}: not written ({cause}), but {path.name} is") from None


def _next_index(folder: Path) -> int:
    names = [path.name for path in folder.iterdir()]
    metadata = folder / METADATA
    if metadata.is_file():
        text = metadata.read_text(encoding="utf8", errors="replace")
        names += re.findall(r'"file_name": "([^"]*)"', text)
    return max((int(match[1]) + 1 for name in names if (match := _INDEX.fullmatch(name))), default=0)
