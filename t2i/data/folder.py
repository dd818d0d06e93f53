"""A folder of images, captioned by one metadata file, by a text file beside each image, or by names."""

import csv
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from t2i.data.captions import name_caption, repeated_folder
from t2i.data.source import Record, Report, check_captions, fingerprint
from t2i.errors import ConfigError
from t2i.files import sha256

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
UNREAD = (
    *(".jfif", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".psd", ".xcf", ".tga", ".ico", ".ppm", ".pgm"),
    *(".exr", ".dng", ".cr2", ".nef", ".arw"),
)  # images of formats that are not read
METADATA = ("metadata.jsonl", "metadata.csv")
SIDECARS = (".txt", ".caption")
CAPTION_COLUMNS = ("text", "caption", "captions", "prompt", "tags")  # what others call it


@dataclass(frozen=True)
class Naming:
    """Sources of captions that are in no file; `kohya` None: used if all images are in folders N_name."""

    file_names: bool = False
    kohya: bool | None = None
    instance_prompt: str | None = None


@dataclass
class Listing:
    """The content of a folder; the first four lists have an entry for each image."""

    names: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)  # of the texts
    repeats: list[int] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # listed in the metadata, not on disk
    unlisted: list[str] = field(default_factory=list)  # on disk, not listed in the metadata
    unread: list[str] = field(default_factory=list)  # images in formats that are not read
    spare: list[str] = field(default_factory=list)  # text files that caption no image

    def add(self, other: "Listing", prefix: str) -> None:
        """Appends the entries of another folder."""
        for entry in ("names", "missing", "unlisted", "unread", "spare"):
            getattr(self, entry).extend(prefix + name for name in getattr(other, entry))
        for entry in ("texts", "origins", "repeats"):
            getattr(self, entry).extend(getattr(other, entry))


class FolderSource:
    """The images of folders in natural order (2.png before 10.png), with the captions of each folder.

    Links may lead into `root` besides the folder itself. Training counts steps, not epochs, so only the ratio of
    kohya's N matters: an image has N rows, divided by the greatest common divisor.
    """

    def __init__(
        self,
        folders: list[Path],
        caption_column: str = "text",
        allow_empty_captions: bool = False,
        naming: Naming | None = None,
        root: Path | None = None,
    ):
        self.folders, self.listing = folders, Listing()
        files: list[Path] = []
        for number, folder in enumerate(folders):
            content = _read_folder(folder, caption_column, naming or Naming(), root or folder)
            files += [folder / name for name in content.names]
            self.listing.add(content, "" if len(folders) == 1 else f"{number}:")
        listing = self.listing
        divisor = math.gcd(*listing.repeats)
        rows = [i for i, n in enumerate(listing.repeats) for _ in range(n // divisor)]
        self._names = [listing.names[i] for i in rows]
        self._files = [files[i] for i in rows]
        self._texts = [listing.texts[i] for i in rows]
        empty = check_captions(listing.texts, listing.names.__getitem__, allow_empty_captions)
        self.report = Report(
            len(self._texts) + len(listing.missing),
            missing=len(listing.missing),
            unlisted=len(listing.unlisted),
            empty_captions=empty,
            repeats=len(self._texts) - len(files),
            origins=tuple(Counter(listing.origins).items()),
        )

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, i: int) -> Record:
        return Record(self._names[i], self._texts[i], self._files[i].read_bytes)

    def texts(self) -> list[str]:
        return list(self._texts)

    def path_of(self, name: str) -> Path:
        """Returns the path of a file of the listing, used in a row or not."""
        if len(self.folders) == 1:
            return self.folders[0] / name
        number, _, file = name.partition(":")
        return self.folders[int(number)] / file

    def fingerprint(self) -> str:
        hashes = {file: sha256(file) for file in dict.fromkeys(self._files)}
        return fingerprint(["folder"], self._names, self._texts, map(hashes.__getitem__, self._files))


def _read_folder(folder: Path, column: str, naming: Naming, root: Path) -> Listing:
    if not folder.is_dir():
        raise ConfigError("path", "is no folder: for a parquet file set source=parquet", str(folder))
    files = [path.relative_to(folder).as_posix() for path in _files(folder, root)]
    present = {name for name in files if name.lower().endswith(IMAGE_SUFFIXES)}
    unread = [name for name in files if name.lower().endswith(UNREAD)]
    if not present:
        others = f": {len(unread)} are of formats that are not read, first {unread[0]}" if unread else ""
        raise ConfigError("path", f"holds no images ({', '.join(IMAGE_SUFFIXES)}){others}", str(folder))
    metadata = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(metadata) > 1:
        raise ValueError(f"{folder} holds both {' and '.join(METADATA)}: keep one")
    listing = Listing(unread=sorted(unread, key=_natural))
    used: set[str] = set()
    if metadata:
        rows = sorted(_rows(metadata[0], column, root), key=lambda row: _natural(row[0]))
        listing.names = [name for name, _ in rows if (folder / name).is_file()]
        if not listing.names:
            raise ValueError(f"{metadata[0]}: none of its {len(rows)} files exists; file_name is relative to {folder}")
        listed = {name for name, _ in rows}
        listing.missing = [name for name, _ in rows if not (folder / name).is_file()]
        listing.unlisted = sorted(present - listed, key=_natural)
        texts = [text for name, text in rows if (folder / name).is_file()]
    else:
        listing.names = sorted(present, key=_natural)
        beside = [_sidecar(folder / name) for name in listing.names]
        used = {path.relative_to(folder).as_posix() for path, _ in beside if path is not None}
        texts = [text for _, text in beside]
    listing.spare = sorted(
        (name for name in files if name.lower().endswith(SIDECARS) and name not in used), key=_natural
    )
    repeated = _kohya(folder, listing.names, naming.kohya, bool(metadata))
    source = "metadata" if metadata else "text file"
    for name, text in zip(listing.names, texts, strict=True):
        times, words = repeated.get(name, (1, ""))
        origin, caption = _caption(name, text, source, words, naming)
        listing.texts.append(caption)
        listing.origins.append(origin)
        listing.repeats.append(times)
    return listing


def _caption(name: str, written: str, origin: str, folder_words: str, naming: Naming) -> tuple[str, str]:
    """Returns the origin of an image's caption, and the caption: one written for this image comes first."""
    named = name_caption(Path(name).stem) if naming.file_names else ""
    captions = {origin: written, "file name": named, "folder name": folder_words}
    captions["instance prompt"] = naming.instance_prompt or ""
    return next(((origin, text) for origin, text in captions.items() if text.strip()), ("none", ""))


def _kohya(folder: Path, names: list[str], enabled: bool | None, listed: bool) -> dict[str, tuple[int, str]]:
    """Returns (repeats, class words) by image if all images are in folders N_name."""
    if enabled is False:
        return {}
    parsed = {name: repeated_folder(name.split("/")[0]) if "/" in name else None for name in names}
    repeated = {name: pair for name, pair in parsed.items() if pair is not None}
    outside = next((name for name, pair in parsed.items() if pair is None), None)
    if enabled and (listed or outside is not None):
        why = "it has a metadata file" if listed else f"{outside} is in none"
        raise ConfigError(
            "kohya_folders", f"{folder} does not consist of folders N_name, such as 10_sks dog: {why}", enabled
        )
    return {} if listed or outside is not None else repeated


def _files(folder: Path, root: Path) -> Iterator[Path]:
    for top, _, files in os.walk(folder):
        for name in files:
            path = Path(top, name)
            if not name.startswith(".") and name.lower().endswith((*IMAGE_SUFFIXES, *UNREAD, *SIDECARS)):
                _inside(folder, path, str(path), root)
                yield path


def _rows(metadata: Path, column: str, root: Path) -> list[tuple[str, str]]:
    """Returns the checked (file_name, caption) of every line."""
    rows = []
    for where, row in _csv_rows(metadata) if metadata.suffix == ".csv" else _jsonl_rows(metadata):
        for key in ("file_name", column):
            if key not in row:
                keys = ", ".join(row)
                if key != column:
                    raise ValueError(f"{where}: no {key!r}; its keys: {keys}")
                others = [f"; set {name!r}" for name in CAPTION_COLUMNS if name in row]
                hint = others[0] if others else ""
                raise ConfigError("caption_column", f"{where} has no such key; its keys: {keys}{hint}", column)
            if not isinstance(row[key], str):
                raise ValueError(f"{where}: {key!r} is {row[key]!r}, not a string")
        _inside(metadata.parent, metadata.parent / row["file_name"], f"{where}: file_name {row['file_name']!r}", root)
        rows.append((Path(row["file_name"]).as_posix(), row[column]))
    return rows


def _jsonl_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is no JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: an object with file_name is needed, not {line[:60]!r}")
        yield f"{path}, line {number}", row


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(_text(path).splitlines(keepends=True))
    for row in reader:
        if None in row:
            raise ValueError(f"{path}, line {reader.line_num}: more fields than its header (quote commas)")
        yield f"{path}, line {reader.line_num}", row


def _sidecar(image: Path) -> tuple[Path | None, str]:
    """Returns the text file beside an image and the caption in it, or (None, "")."""
    files = [path for path in map(image.with_suffix, SIDECARS) if path.is_file()]
    if len(files) > 1:
        raise ValueError(f"{image} has two captions, {' and '.join(path.name for path in files)}: keep one")
    return (files[0], _text(files[0]).strip()) if files else (None, "")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error


def _inside(folder: Path, path: Path, label: str, root: Path) -> None:
    if not path.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{label} leads out of {folder}: images must be inside the data folder")


def _natural(name: str) -> tuple[list[tuple[bool, int, str]], str]:
    """Returns a sort key by which digits compare as numbers; the name itself breaks ties."""
    parts = re.findall(r"\d+|\D+", name.lower())
    return [(False, int(part), "") if part.isdecimal() else (True, 0, part) for part in parts], name
