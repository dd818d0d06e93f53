"""A folder of images, captioned by one metadata file, by a text file beside each image, or by names."""

import csv
import json
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from t2i.data.captions import name_caption, repeated_folder
from t2i.data.source import Record, Report, captions_in, check_captions, fingerprint
from t2i.errors import ConfigError
from t2i.files import read_bytes, sha256

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
UNREAD = (
    *(".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".psd", ".xcf", ".tga", ".ico", ".ppm", ".pgm"),
    *(".exr", ".dng", ".cr2", ".nef", ".arw"),
)  # images of formats that are not read
METADATA = ("metadata.jsonl", "metadata.csv")
OTHER_METADATA = ("metadata.json", "metadata.tsv", "metadata.parquet")
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

    Training counts steps, not epochs, so only the ratio of kohya's N matters: an image has N rows, divided by the
    greatest common divisor. An image with a list of captions has a row for each; where some have fewer, theirs repeat,
    so that every image is drawn equally often and its captions in turn.
    """

    def __init__(
        self,
        folders: list[Path],
        caption_column: str = "text",
        allow_empty_captions: bool = False,
        naming: Naming | None = None,
    ):
        self.folders, self.listing = folders, Listing()
        files: list[Path] = []
        for number, folder in enumerate(folders):
            content = _read_folder(folder, caption_column, naming or Naming())
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
            repeats=len(self._files) - len(set(self._files)),
            origins=tuple(Counter(listing.origins).items()),
        )

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, i: int) -> Record:
        return Record(self._names[i], self._texts[i], lambda: read_bytes(self._files[i]))

    def texts(self) -> list[str]:
        return list(self._texts)

    def path_of(self, name: str) -> Path:
        """Returns the path of a file of the listing, used in a row or not."""
        if len(self.folders) == 1:
            return self.folders[0] / name
        number, _, file = name.partition(":")
        return self.folders[int(number)] / file

    def fingerprint(self) -> str:
        return fingerprint(["folder"], self._names, self._texts, self.contents())

    def contents(self) -> list[str]:
        hashes = {file: sha256(file) if file.is_file() else str(file) for file in dict.fromkeys(self._files)}
        return [hashes[file] for file in self._files]


def _read_folder(folder: Path, column: str, naming: Naming) -> Listing:
    if not folder.is_dir():
        raise ConfigError("path", "is no folder: for a parquet file set source=parquet", str(folder))
    files = list(_files(folder))
    present = {name for name in files if name.lower().endswith(IMAGE_SUFFIXES)}
    unread = [name for name in files if name.lower().endswith(UNREAD)]
    if not present:
        others = f": {len(unread)} are of formats that are not read, first {unread[0]}" if unread else ""
        if (folder / "state.json").is_file() and any(folder.glob("*.arrow")):
            others = ": it is a folder of Dataset.save_to_disk; write it with Dataset.to_parquet, and give that file"
        raise ConfigError("path", f"holds no images ({', '.join(IMAGE_SUFFIXES)}){others}", str(folder))
    metadata = _metadata(folder, files)
    listing = Listing(unread=sorted(unread, key=_natural))
    used: set[str] = set()
    if metadata:
        pairs = [pair for file in metadata for pair in _rows(folder, file, column, files)]
        rows = sorted(pairs, key=lambda row: _natural(row[0]))
        listing.names = [name for name, _ in rows if (folder / name).is_file()]
        if not listing.names:
            problem = f"none of its {len(rows)} files exists; file_name is relative to {metadata[0].parent}"
            raise ValueError(f"{metadata[0]}: {problem}")
        listed = {name for name, _ in rows}
        listing.missing = [name for name, _ in rows if not (folder / name).is_file()]
        listing.unlisted = sorted(present - listed, key=_natural)
        texts = [text for name, text in rows if (folder / name).is_file()]
    else:
        listing.names = sorted(present, key=_natural)
        beside = _sidecars(folder, listing.names, files)
        used = {name for name, _ in beside}
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


def _files(folder: Path) -> Iterator[str]:
    """Yields the names of images, captions and metadata in `folder` and its folders, links included, hidden ones not.

    Raises a ValueError for metadata of a kind that is not read.
    """
    seen: set[str] = set()
    for top, folders, files in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(top))
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and name != "__MACOSX" and os.path.realpath(Path(top, name)) not in seen
        ]
        for name in files:
            place = Path(top, name)
            if name.lower() in OTHER_METADATA:
                raise ValueError(f"{place}: not read: write its rows as metadata.jsonl or metadata.csv")
            if not name.startswith(".") and name.lower().endswith((*IMAGE_SUFFIXES, *UNREAD, *SIDECARS, *METADATA)):
                yield place.relative_to(folder).as_posix()


def _metadata(folder: Path, files: list[str]) -> list[Path]:
    """Returns the metadata files of a folder and of the folders in it, the top one first."""
    metadata = sorted((name for name in files if Path(name).name in METADATA), key=lambda name: (name.count("/"), name))
    for (_, first), (parent, second) in pairwise((Path(name).parent, name) for name in metadata):
        if Path(first).parent == parent:
            raise ValueError(f"{folder} holds both {second} and {first}: keep one")
    return [folder / name for name in metadata]


def _rows(folder: Path, metadata: Path, column: str, files: list[str]) -> list[tuple[str, str]]:
    """Returns the checked (name, caption) of every line; a list of captions gives a pair for each of them."""
    rows: list[tuple[str, list[str]]] = []
    spellings = {_spelling(name): name for name in files}
    for where, row in _csv_rows(metadata) if metadata.suffix == ".csv" else _jsonl_rows(metadata):
        for key in ("file_name", column):
            if key not in row:
                keys = ", ".join(row)
                if key != column:
                    raise ValueError(f"{where}: no {key!r}; its keys: {keys}")
                others = [f"; set {name!r}" for name in CAPTION_COLUMNS if name in row]
                hint = others[0] if others else ""
                raise ConfigError("caption_column", f"{where} has no such key; its keys: {keys}{hint}", column)
        if not isinstance(row["file_name"], str):
            raise ValueError(f"{where}: 'file_name' is {row['file_name']!r:.100}, not a string")
        inside = os.path.normpath(metadata.parent.relative_to(folder) / row["file_name"].replace("\\", "/"))
        if os.path.isabs(inside) or inside.split(os.sep)[0] == ".." or "\0" in inside:
            raise ValueError(f"{where}: file_name {row['file_name']!r:.200} leads out of {folder}")
        rows.append((spellings.get(_spelling(inside), inside), captions_in(row[column], f"{where}: {column!r}")))
    most = max((len(texts) for _, texts in rows), default=1)
    lists = most > 1
    return [(name, texts[k % len(texts)]) for name, texts in rows for k in range(most if lists else 1)]


def _spelling(name: str) -> str:
    """Returns a name by which the spellings of a file on different systems are the same."""
    return unicodedata.normalize("NFC", name).casefold()


def _jsonl_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        if number == 1 and line.lstrip().startswith("["):
            raise ValueError(f"{path}: a JSON array; write one object a line, without brackets and commas around them")
        try:
            row = json.loads(line)
        except RecursionError:
            raise ValueError(f"{path}, line {number} is nested too deeply") from None
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is no JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: an object with file_name is needed, not {line[:60]!r}")
        yield f"{path}, line {number}", row


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(_text(path).splitlines(keepends=True))
    try:
        for row in reader:
            if None in row:
                raise ValueError(f"{path}, line {reader.line_num}: more fields than its header (quote commas)")
            yield f"{path}, line {reader.line_num}", row
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from None


def _sidecars(folder: Path, images: list[str], files: list[str]) -> list[tuple[str, str]]:
    """Returns the name of the text file beside each image, x.txt or x.png.txt, and its caption; two "" without one."""
    beside: dict[str, list[str]] = {}
    for name in files:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in SIDECARS:
            beside.setdefault(stem, []).append(name)
    pairs = []
    for image in images:
        names = beside.get(os.path.splitext(image)[0], []) + beside.get(image, [])
        if len(names) > 1:
            raise ValueError(
                f"{folder / image} has two captions, {' and '.join(sorted(names, reverse=True))}: keep one"
            )
        pairs.append((names[0], _text(folder / names[0]).strip()) if names else ("", ""))
    return pairs


def _text(path: Path) -> str:
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error


def _natural(name: str) -> tuple[list[tuple[bool, int, str]], str]:
    """Returns a sort key by which digits compare as numbers; the name itself breaks ties."""
    parts = re.findall(r"\d+|\D+", name.lower())
    return [(False, int(part), "") if part.isdecimal() else (True, 0, part) for part in parts], name
