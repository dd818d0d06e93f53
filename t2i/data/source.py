"""What every source of captioned pictures offers."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from t2i.randomness import permutation

MIN_SPLIT = 4

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


class Subset:
    """The rows `kept` of a source, in its order; `why` is the entry of the report that counts the others."""

    def __init__(
        self, source: Source, kept: list[int], why: Literal["excluded", "others", "apart", "unusable"] = "excluded"
    ):
        self._source, self._kept = source, kept
        self.report = replace(source.report, **{why: getattr(source.report, why) + len(source) - len(kept)})

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, i: int) -> Record:
        return self._source[self._kept[i]]

    def texts(self) -> list[str]:
        texts = self._source.texts()
        return [texts[i] for i in self._kept]

    def fingerprint(self) -> str:
        return fingerprint(["subset", self._source.fingerprint()], map(str, self._kept))


def split(source: Source, seed: int, held_out: int | None = None) -> tuple[Source, Source]:
    """A source without a validation set in two: training rows, and those of every 20th picture (2 to 512) set apart."""
    # A picture's repeats stay together: one that is trained on is no validation.
    keys = [source[i].key for i in range(len(source))] if source.report.repeats else list(range(len(source)))
    pictures = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    n = len(pictures)
    if n < MIN_SPLIT:
        raise ValueError(f"{n} pictures are too few to set some apart for validation: name others with validation.path")
    held = set(permutation(n, seed, "validation").tolist()[: held_out or min(max(2, n // 20), 512)])
    apart = [pictures[key] in held for key in keys]
    train, validation = ([i for i, out in enumerate(apart) if out is wanted] for wanted in (False, True))
    return Subset(source, train, "apart"), Subset(source, validation, "apart")
