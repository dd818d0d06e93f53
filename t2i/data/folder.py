"""A folder of pictures, captioned by one metadata file or by a text file beside each picture."""

import csv
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from t2i.data.record import Record, Report, check_captions, file_hash, fingerprint

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
METADATA = ("metadata.jsonl", "metadata.csv")
SIDECARS = (".txt", ".caption")


class FolderSource:
    """Pictures of the folders in natural order (2.png before 10.png), with the captions of each folder."""

    def __init__(self, folders: list[Path], caption_column: str = "text", allow_empty_captions: bool = False):
        self._names: list[str] = []
        self._files: list[Path] = []
        self._texts: list[str] = []
        missing = unlisted = 0
        for number, folder in enumerate(folders):
            names, texts, lost, extra = _read_folder(folder, caption_column)
            self._names += [name if len(folders) == 1 else f"{number}:{name}" for name in names]
            self._files += [folder / name for name in names]
            self._texts += texts
            missing, unlisted = missing + lost, unlisted + extra
        empty = check_captions(self._texts, self._names.__getitem__, allow_empty_captions)
        self.report = Report(len(self._texts) + missing, missing=missing, unlisted=unlisted, empty_captions=empty)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, i: int) -> Record:
        return Record(self._names[i], self._texts[i], self._files[i].read_bytes)

    def texts(self) -> list[str]:
        return list(self._texts)

    def fingerprint(self) -> str:
        return fingerprint(["folder"], self._names, self._texts, map(file_hash, self._files))


def _read_folder(folder: Path, column: str) -> tuple[list[str], list[str], int, int]:
    """Names in natural order, captions, how many are listed but missing, how many are there but unlisted."""
    if not folder.is_dir():
        raise ValueError(f"data.path = {str(folder)!r} is no folder: for a parquet file set data.source=parquet")
    present = {path.relative_to(folder).as_posix() for path in _pictures(folder)}
    if not present:
        raise ValueError(f"data.path = {str(folder)!r} holds no pictures ({', '.join(PICTURES)})")
    metadata = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(metadata) > 1:
        raise ValueError(f"{folder} holds both {' and '.join(METADATA)}: keep one")
    if not metadata:
        names = sorted(present, key=_natural)
        return names, [_sidecar(folder / name) for name in names], 0, 0
    rows = sorted(_rows(metadata[0], column), key=lambda row: _natural(row[0]))
    found = [row for row in rows if (folder / row[0]).is_file()]
    if not found:
        raise ValueError(f"{metadata[0]}: none of its {len(rows)} files exists; file_name is relative to {folder}")
    names, texts = [name for name, _ in found], [text for _, text in found]
    return names, texts, len(rows) - len(found), len(present - set(names))


def _pictures(folder: Path) -> Iterator[Path]:
    for root, _, files in os.walk(folder):
        for name in files:
            path = Path(root, name)
            if path.suffix.lower() in PICTURES and not name.startswith("."):
                _inside(folder, path, str(path))
                yield path


def _rows(metadata: Path, column: str) -> list[tuple[str, str]]:
    """(file_name, caption) of every line, checked."""
    rows = []
    for where, row in _csv_rows(metadata) if metadata.suffix == ".csv" else _jsonl_rows(metadata):
        for key in ("file_name", column):
            if key not in row:
                raise ValueError(f"{where}: no {key!r}; its keys: {', '.join(row)}")
            if not isinstance(row[key], str):
                raise ValueError(f"{where}: {key!r} is {row[key]!r}, not a string")
        _inside(metadata.parent, metadata.parent / row["file_name"], f"{where}: file_name {row['file_name']!r}")
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


def _sidecar(picture: Path) -> str:
    """The caption beside a picture; "" where there is none."""
    found = [path for path in map(picture.with_suffix, SIDECARS) if path.is_file()]
    if len(found) > 1:
        raise ValueError(f"{picture} has two captions, {' and '.join(path.name for path in found)}: keep one")
    return _text(found[0]).strip() if found else ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error


def _inside(folder: Path, path: Path, said: str) -> None:
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{said} leads out of {folder}: pictures must lie inside the data folder")


def _natural(name: str) -> tuple[list[tuple[bool, int, str]], str]:
    """Digits compare as numbers; the name itself breaks ties."""
    parts = re.findall(r"\d+|\D+", name.lower())
    return [(False, int(part), "") if part.isdecimal() else (True, 0, part) for part in parts], name
