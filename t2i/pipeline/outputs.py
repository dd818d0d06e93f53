"""Images on disk: PNGs that hold their settings, a grid, and `metadata.jsonl`; nothing is ever overwritten."""

import json
import re
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from t2i.errors import RunFailed
from t2i.files import write_png
from t2i.pipeline.metadata import OURS, SCHEMA, to_texts
from t2i.pipeline.metadata.chunks import read_texts
from t2i.pipeline.metadata.fields import read_json
from t2i.report.grid import image_grid

METADATA = "metadata.jsonl"
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
        line = {"file_name": path.name, "text": settings["prompt"], **settings}
        write_png(path, image, new=True, pnginfo=info)
        try:
            with open(self.folder / METADATA, "a", encoding="utf8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        except OSError as error:
            raise RunFailed(f"{self.folder / METADATA}: not written ({error.strerror})") from None
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


def _next_index(folder: Path) -> int:
    names = [path.name for path in folder.iterdir()]
    metadata = folder / METADATA
    if metadata.is_file():
        text = metadata.read_text(encoding="utf8", errors="replace")
        names += re.findall(r'"file_name": "([^"]*)"', text)
        if text and not text.endswith("\n"):  # a line that a crash cut off
            with open(metadata, "a", encoding="utf8") as file:
                file.write("\n")
    return max((int(match[1]) + 1 for name in names if (match := _INDEX.fullmatch(name))), default=0)
