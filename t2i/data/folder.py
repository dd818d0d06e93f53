"""A folder of pictures, captioned by one metadata file, by a text file beside each picture, or by names."""

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
from t2i.files import sha256

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
UNREAD = (
    *(".jfif", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".psd", ".xcf", ".tga", ".ico", ".ppm", ".pgm"),
    *(".exr", ".dng", ".cr2", ".nef", ".arw"),
)  # pictures of formats that are not read
METADATA = ("metadata.jsonl", "metadata.csv")
SIDECARS = (".txt", ".caption")
CAPTION_COLUMNS = ("text", "caption", "captions", "prompt", "tags")  # what others call it


@dataclass(frozen=True)
class Naming:
    """Where captions come from that stand in no file; `kohya` None: where all pictures lie in folders N_name."""

    file_names: bool = False
    kohya: bool | None = None
    instance_prompt: str | None = None


@dataclass
class Listing:
    """What lies in a folder; the first four go together, a row a picture."""

    names: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)  # of the texts
    repeats: list[int] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # listed in the metadata, not on disk
    unlisted: list[str] = field(default_factory=list)  # on disk, not listed in the metadata
    unread: list[str] = field(default_factory=list)  # pictures in formats that are not read
    spare: list[str] = field(default_factory=list)  # text files that caption no picture

    def add(self, other: "Listing", prefix: str) -> None:
        """Another folder's rows after these."""
        for what in ("names", "missing", "unlisted", "unread", "spare"):
            getattr(self, what).extend(prefix + name for name in getattr(other, what))
        for what in ("texts", "origins", "repeats"):
            getattr(self, what).extend(getattr(other, what))


class FolderSource:
    """Pictures of the folders in natural order (2.png before 10.png), with the captions of each folder.

    `root`: where links may lead beside the folder itself. Training counts steps, not epochs, so of kohya's N only the
    ratio matters: the rows of a picture are N over the greatest common divisor.
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
            found = _read_folder(folder, caption_column, naming or Naming(), root or folder)
            files += [folder / name for name in found.names]
            self.listing.add(found, "" if len(folders) == 1 else f"{number}:")
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
        """Where a file of the listing lies, be it in a row or not."""
        if len(self.folders) == 1:
            return self.folders[0] / name
        number, _, rest = name.partition(":")
        return self.folders[int(number)] / rest

    def fingerprint(self) -> str:
        hashes = {file: sha256(file) for file in dict.fromkeys(self._files)}
        return fingerprint(["folder"], self._names, self._texts, map(hashes.__getitem__, self._files))


def _read_folder(folder: Path, column: str, naming: Naming, root: Path) -> Listing:
    if not folder.is_dir():
        raise ValueError(f"data.path = {str(folder)!r} is no folder: for a parquet file set data.source=parquet")
    files = [path.relative_to(folder).as_posix() for path in _files(folder, root)]
    present = {name for name in files if name.lower().endswith(IMAGE_SUFFIXES)}
    unread = [name for name in files if name.lower().endswith(UNREAD)]
    if not present:
        others = f": {len(unread)} are there that are not read, first {unread[0]}" if unread else ""
        raise ValueError(f"data.path = {str(folder)!r} holds no pictures ({', '.join(IMAGE_SUFFIXES)}){others}")
    metadata = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(metadata) > 1:
        raise ValueError(f"{folder} holds both {' and '.join(METADATA)}: keep one")
    found = Listing(unread=sorted(unread, key=_natural))
    used: set[str] = set()
    if metadata:
        rows = sorted(_rows(metadata[0], column, root), key=lambda row: _natural(row[0]))
        found.names = [name for name, _ in rows if (folder / name).is_file()]
        if not found.names:
            raise ValueError(f"{metadata[0]}: none of its {len(rows)} files exists; file_name is relative to {folder}")
        listed = {name for name, _ in rows}
        found.missing = [name for name, _ in rows if not (folder / name).is_file()]
        found.unlisted = sorted(present - listed, key=_natural)
        texts = [text for name, text in rows if (folder / name).is_file()]
    else:
        found.names = sorted(present, key=_natural)
        beside = [_sidecar(folder / name) for name in found.names]
        used = {path.relative_to(folder).as_posix() for path, _ in beside if path is not None}
        texts = [text for _, text in beside]
    found.spare = sorted((name for name in files if name.lower().endswith(SIDECARS) and name not in used), key=_natural)
    repeated = _kohya(folder, found.names, naming.kohya, bool(metadata))
    source = "metadata" if metadata else "text file"
    for name, text in zip(found.names, texts, strict=True):
        times, words = repeated.get(name, (1, ""))
        origin, caption = _caption(name, text, source, words, naming)
        found.texts.append(caption)
        found.origins.append(origin)
        found.repeats.append(times)
    return found


def _caption(name: str, written: str, source: str, words: str, naming: Naming) -> tuple[str, str]:
    """Where a picture's caption comes from, and the caption: what is written for it alone comes first."""
    named = name_caption(Path(name).stem) if naming.file_names else ""
    given = {source: written, "file name": named, "folder name": words, "instance prompt": naming.instance_prompt or ""}
    return next(((origin, text) for origin, text in given.items() if text.strip()), ("none", ""))


def _kohya(folder: Path, names: list[str], wanted: bool | None, listed: bool) -> dict[str, tuple[int, str]]:
    """(repeats, class words) by picture, where all lie in folders N_name."""
    if wanted is False:
        return {}
    parsed = {name: repeated_folder(name.split("/")[0]) if "/" in name else None for name in names}
    found = {name: pair for name, pair in parsed.items() if pair is not None}
    outside = next((name for name, pair in parsed.items() if pair is None), None)
    if wanted and (listed or outside is not None):
        why = "it has a metadata file" if listed else f"{outside} is in none"
        raise ValueError(f"data.kohya_folders = true: {folder} is no folder of folders N_name, as 10_sks dog: {why}")
    return {} if listed or outside is not None else found


def _files(folder: Path, root: Path) -> Iterator[Path]:
    for top, _, files in os.walk(folder):
        for name in files:
            path = Path(top, name)
            if not name.startswith(".") and name.lower().endswith((*IMAGE_SUFFIXES, *UNREAD, *SIDECARS)):
                _inside(folder, path, str(path), root)
                yield path


def _rows(metadata: Path, column: str, root: Path) -> list[tuple[str, str]]:
    """(file_name, caption) of every line, checked."""
    rows = []
    for where, row in _csv_rows(metadata) if metadata.suffix == ".csv" else _jsonl_rows(metadata):
        for key in ("file_name", column):
            if key not in row:
                others = [name for name in CAPTION_COLUMNS if name in row and key == column]
                hint = f"; set data.caption_column={others[0]}" if others else ""
                raise ValueError(f"{where}: no {key!r}; its keys: {', '.join(row)}{hint}")
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
            raise ValueError(f"{path}, line {number}: wanted an object with file_name, got {line[:60]!r}")
        yield f"{path}, line {number}", row


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(_text(path).splitlines(keepends=True))
    for row in reader:
        if None in row:
            raise ValueError(f"{path}, line {reader.line_num}: more fields than its header (quote commas)")
        yield f"{path}, line {reader.line_num}", row


def _sidecar(picture: Path) -> tuple[Path | None, str]:
    """The text file beside a picture, and the caption in it; "" where there is none."""
    found = [path for path in map(picture.with_suffix, SIDECARS) if path.is_file()]
    if len(found) > 1:
        raise ValueError(f"{picture} has two captions, {' and '.join(path.name for path in found)}: keep one")
    return (found[0], _text(found[0]).strip()) if found else (None, "")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error


def _inside(folder: Path, path: Path, said: str, root: Path) -> None:
    if not path.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{said} leads out of {folder}: pictures must lie inside the data folder")


def _natural(name: str) -> tuple[list[tuple[bool, int, str]], str]:
    """Digits compare as numbers; the name itself breaks ties."""
    parts = re.findall(r"\d+|\D+", name.lower())
    return [(False, int(part), "") if part.isdecimal() else (True, 0, part) for part in parts], name
