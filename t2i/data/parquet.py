"""Parquet files with an image column and a caption column."""

import hashlib
import threading
from bisect import bisect_right
from collections import OrderedDict
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from t2i.data.source import Record, Report, captions_in, check_captions, fingerprint
from t2i.errors import ConfigError
from t2i.files import sha256

HELD_BYTES = 2 << 30  # row groups kept in memory, as Arrow buffers


class ParquetSource:
    """Rows of parquet files in file order; images are read by row group, the latest groups stay in memory."""

    def __init__(self, paths: list[Path], image_column: str, caption_column: str, allow_empty_captions: bool = False):
        self._paths = paths
        self._columns = image_column, caption_column
        self._images: list[str] = []  # the leaf column with the bytes, a file
        self._groups: list[tuple[int, int]] = []  # (file, row group) in row order
        captions: list[list[str]] = []
        sizes = []
        for number, path in enumerate(paths):
            with _open(path) as file:
                self._images.append(_image_leaf(file.schema_arrow, image_column, path))
                captions += _captions(file, caption_column, path)
                for group in range(file.num_row_groups):
                    self._groups.append((number, group))
                    sizes.append(file.metadata.row_group(group).num_rows)
        self._starts = list(accumulate(sizes, initial=0))
        if not captions:
            raise ConfigError("path", f"no rows in {', '.join(map(str, paths))}")
        most = max(map(len, captions))  # an image with a list of captions has a row for each, as in FolderSource
        self._rows = [row for row in range(len(captions)) for _ in range(most)]
        self._texts = [texts[k % len(texts)] for texts in captions for k in range(most)]
        empty = check_captions(self._texts, lambda i: f"row {self._rows[i]}", allow_empty_captions)
        self.report = Report(rows=len(self._texts), empty_captions=empty, repeats=len(self._texts) - len(captions))
        self._held: OrderedDict[int, Any] = OrderedDict()
        self._held_bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, i: int) -> Record:
        return Record(f"row {self._rows[i]}", self._texts[i], lambda: self._read(self._rows[i]))

    def texts(self) -> list[str]:
        return list(self._texts)

    def contents(self) -> list[str]:
        """Returns the SHA-256 of each row's image; reads every image."""
        digests: dict[int, str] = {}
        for row in self._rows:
            if row not in digests:
                try:
                    digests[row] = hashlib.sha256(self._read(row)).hexdigest()
                except ValueError:  # no bytes: reported when the image is read
                    digests[row] = f"row {row}"
        return [digests[row] for row in self._rows]

    def fingerprint(self) -> str:
        return fingerprint(["parquet", *self._columns], self._texts, [sha256(path) for path in self._paths])

    def _read(self, i: int) -> bytes:
        place = bisect_right(self._starts, i) - 1
        data = self._group(place)[i - self._starts[place]].as_py()
        if data is None:
            raise ValueError(f"row {i}: no image bytes in column {self._columns[0]!r} (a path alone is not followed)")
        return data

    def _group(self, place: int) -> Any:
        with self._lock:
            if place in self._held:
                self._held.move_to_end(place)
                return self._held[place]
            number, group = self._groups[place]
            with _open(self._paths[number]) as file:
                try:
                    table = file.read_row_group(group, columns=[self._images[number]])
                except (OSError, pa.ArrowException) as error:
                    raise ValueError(f"{self._paths[number]}: row group {group} is damaged ({error})") from None
                column = table.column(0).combine_chunks()
            if pa.types.is_struct(column.type):
                column = column.field("bytes")
            self._held[place] = column
            self._held_bytes += column.nbytes
            while self._held_bytes > HELD_BYTES and len(self._held) > 1:
                self._held_bytes -= self._held.popitem(last=False)[1].nbytes
            return column


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, memory_map=True)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} is no parquet file: {error}") from error


def _field(schema: pa.Schema, key: str, name: str, path: Path) -> pa.Field:
    if name not in schema.names:
        raise ConfigError(key, f"is no column of {path}; its columns: {', '.join(schema.names)}", name)
    return schema.field(name)


def _image_leaf(schema: pa.Schema, name: str, path: Path) -> str:
    kind = _field(schema, "image_column", name, path).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return f"{name}.bytes"
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return name
    raise ConfigError("image_column", f"is {kind} in {path}: binary, or a struct with `bytes`, is needed", name)


def _captions(file: pq.ParquetFile, name: str, path: Path) -> list[list[str]]:
    _field(file.schema_arrow, "caption_column", name, path)
    try:
        texts = file.read(columns=[name]).column(0).to_pylist()
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: column {name!r} is damaged ({error})") from None
    return [captions_in(value, f"{path}, row {row}: column {name!r}") for row, value in enumerate(texts)]
