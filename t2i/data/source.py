"""Sources of captioned images: their protocol, their report, subsets and the split for validation."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from t2i.errors import ConfigError, check_text
from t2i.randomness import permutation

MIN_SPLIT = 4  # images
DERIVED = {  # captions that are in no file, by origin
    "file name": "images captioned by their names",
    "folder name": "images captioned by their folders' names",
    "instance prompt": "images with the instance prompt",
}


class Record(NamedTuple):
    """One captioned image; `read` returns the encoded bytes."""

    key: str
    text: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Report:
    """The rows of a source by their use: nothing is left out silently."""

    rows: int
    excluded: int = 0  # by the exclude list
    others: int = 0  # not in the list `only`
    apart: int = 0  # in the other part of a split
    missing: int = 0  # listed in the metadata, not on disk
    unlisted: int = 0  # on disk, not listed in the metadata
    empty_captions: int = 0  # allowed, and used
    repeats: int = 0  # rows that repeat the image of another row
    unusable: int = 0  # left out by a check
    origins: tuple[tuple[str, int], ...] = ()  # of captions, with the number of images

    @property
    def used(self) -> int:
        return self.rows - self.excluded - self.others - self.apart - self.missing - self.unusable

    def __str__(self) -> str:
        counts = {
            "left out by the exclude list": self.excluded,
            "not in the list of `only`": self.others,
            "in the other part of the split": self.apart,
            "listed but missing on disk": self.missing,
            "images on disk that the metadata does not list": self.unlisted,
            "left out as unusable": self.unusable,
            "with an empty caption": self.empty_captions,
            "repeat the image of another row": self.repeats,
            **{DERIVED[origin]: n for origin, n in self.origins if origin in DERIVED},
        }
        return ", ".join([f"{self.used} of {self.rows} rows used", *(f"{n} {use}" for use, n in counts.items() if n)])


@runtime_checkable
class Source(Protocol):
    """Captioned images, numbered from 0 in a fixed order."""

    report: Report

    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> Record: ...
    def texts(self) -> list[str]: ...
    def contents(self) -> list[str]:
        """Returns a key of each row's image; rows of the same image have the same key."""
        ...

    def fingerprint(self) -> str: ...


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

    def contents(self) -> list[str]:
        contents = self._source.contents()
        return [contents[i] for i in self._kept]

    def fingerprint(self) -> str:
        return fingerprint(["subset", self._source.fingerprint()], map(str, self._kept))


def split(source: Source, seed: int, held_out: int | None = None) -> tuple[Source, Source]:
    """Returns training and validation rows: every 20th image (2 to 512 of them), or `held_out` images, are held out."""
    keys = source.contents()  # the rows of an image stay together: an image that is trained on must not validate
    images = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    n = len(images)
    if n < MIN_SPLIT:
        raise ConfigError("validation.path", f"{n} images are too few to hold some out for validation: name others")
    held = set(permutation(n, seed, "validation").tolist()[: held_out or min(max(2, n // 20), 512)])
    apart = [images[key] in held for key in keys]
    train, validation = ([i for i, out in enumerate(apart) if out is side] for side in (False, True))
    return Subset(source, train, "apart"), Subset(source, validation, "apart")


def fingerprint(*parts: Iterable[str]) -> str:
    """Returns the SHA-256 over the strings of each part, with their lengths, so that no two lists collide."""
    digest = hashlib.sha256()
    for part in parts:
        for text in part:
            data = text.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "little") + data)
        digest.update(b"\xff" * 8)
    return digest.hexdigest()


def captions_in(value: Any, where: str) -> list[str]:
    """Returns the captions of a row: a string, a list of strings, or null for none; raises a ValueError otherwise."""
    texts: list[Any] = value if isinstance(value, list) and value else ["" if value is None or value == [] else value]
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"{where} is {value!r:.100}, neither a string nor a list of strings")
        check_text(text, where)
    return texts


def check_captions(texts: list[str], name_of: Callable[[int], str], allow_empty: bool) -> int:
    """Returns the number of empty captions; raises a ConfigError unless they are allowed."""
    empty = [i for i, text in enumerate(texts) if not text.strip()]
    if empty and not allow_empty:
        first = ", ".join(name_of(i) for i in empty[:5])
        raise ConfigError(
            "allow_empty_captions",
            f"{len(empty)} of {len(texts)} captions are missing or empty (first: {first}): write them, remove the "
            "images, or set this key to true",
            False,
        )
    return len(empty)
