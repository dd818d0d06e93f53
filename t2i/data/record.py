"""What every source of captioned pictures offers."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

UNWRITTEN = {  # captions that stand in no file, by origin
    "file name": "pictures captioned by their names",
    "folder name": "pictures captioned by their folders' names",
    "instance prompt": "pictures with the instance prompt",
}


class Record(NamedTuple):
    """One captioned picture; `read` gives the encoded bytes."""

    key: str
    text: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Report:
    """What a source found, row by row: nothing is left out silently."""

    rows: int
    excluded: int = 0  # by the exclude list
    others: int = 0  # than `data.only` asks for
    apart: int = 0  # the other part of a split
    missing: int = 0  # listed in the metadata, not on disk
    unlisted: int = 0  # on disk, not listed in the metadata
    empty_captions: int = 0  # allowed, and used
    repeats: int = 0  # rows that are a picture once more, of the rows
    unusable: int = 0  # left out as a check found them
    origins: tuple[tuple[str, int], ...] = ()  # where the captions of how many pictures come from

    @property
    def used(self) -> int:
        return self.rows - self.excluded - self.others - self.apart - self.missing - self.unusable

    def __str__(self) -> str:
        said = {
            "left out by the exclude list": self.excluded,
            "not among those that data.only lists": self.others,
            "in the other part of the split": self.apart,
            "listed but missing on disk": self.missing,
            "pictures on disk that the metadata does not list": self.unlisted,
            "left out as unusable": self.unusable,
            "with an empty caption": self.empty_captions,
            "are pictures repeated as their folders' N asks": self.repeats,
            **{UNWRITTEN[origin]: n for origin, n in self.origins if origin in UNWRITTEN},
        }
        return ", ".join([f"{self.used} of {self.rows} rows used", *(f"{n} {what}" for what, n in said.items() if n)])


@runtime_checkable
class Source(Protocol):
    """Captioned pictures, numbered from 0 in an order that never changes."""

    report: Report

    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> Record: ...
    def texts(self) -> list[str]: ...
    def fingerprint(self) -> str: ...


def fingerprint(*parts: Iterable[str]) -> str:
    """SHA-256 over the strings of each part, with their lengths, so that no two lists collide by joining."""
    digest = hashlib.sha256()
    for part in parts:
        for text in part:
            data = text.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "little") + data)
        digest.update(b"\xff" * 8)
    return digest.hexdigest()


def check_captions(texts: list[str], where: Callable[[int], str], allow_empty: bool) -> int:
    """How many captions are empty; any is an error unless `allow_empty_captions` says otherwise."""
    empty = [i for i, text in enumerate(texts) if not text.strip()]
    if empty and not allow_empty:
        first = ", ".join(where(i) for i in empty[:5])
        raise ValueError(
            f"{len(empty)} of {len(texts)} captions are missing or empty (first: {first}): "
            "write them, take the pictures out, or set data.allow_empty_captions=true"
        )
    return len(empty)
