"""Every picture of a data set looked at before anything is trained on it: what is usable, what is lost, what is odd."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from t2i.data.data_config import DataConfig, config_for
from t2i.data.findings import LOST, NOTED, Finding, find_faults, look_at_all, said_of_sizes
from t2i.data.folder import FolderSource
from t2i.data.open import open_source
from t2i.data.source import Source, Subset
from t2i.files import printable

MAX_LOST = 0.05
EXAMPLES = 3


class TokenCounter(NamedTuple):
    """How a text encoder measures captions: the tokens of each, and how many it reads."""

    count: Callable[[list[str]], list[int]]
    limit: int
    name: str


class Example(NamedTuple):
    """A usable picture: its row in the source, the size that it has upright, its caption, and tokens if counted."""

    row: int
    name: str
    width: int
    height: int
    caption: str
    tokens: int | None


@dataclass(frozen=True)
class Check:
    """What was found; `source` has the usable rows alone, `opened` all, `base` also the excluded ones.

    `rows` tells the first row in `opened` of each picture.
    """

    config: DataConfig
    total: int
    findings: list[Finding]
    sizes: dict[str, Any]
    captions: dict[str, Any]
    examples: list[Example]
    source: Source
    opened: Source
    base: Source
    rows: dict[str, int]
    max_lost: float
    notes: list[str]

    @property
    def counts(self) -> dict[str, int]:
        """How many of each kind of finding, none left out."""
        found = Counter(finding.kind for finding in self.findings)
        return {kind: found[kind] for kind in (*LOST, *NOTED)}

    @property
    def lost(self) -> int:
        """Pictures that are not trained on."""
        return len({finding.name for finding in self.findings if finding.kind in LOST})

    @property
    def usable(self) -> int:
        """Pictures that are trained on, each counted once."""
        return self.total - self.lost

    @property
    def ok(self) -> bool:
        """Whether no more than the stated share is lost, and something is left."""
        return self.usable > 0 and self.lost <= self.max_lost * self.total

    @property
    def verdict(self) -> str:
        """One sentence."""
        share = f"{self.lost} of {self.total} pictures are lost"
        if not self.ok:
            return f"{share}, more than {self.max_lost:g} of them: mend or remove them, or allow more with --max-lost"
        return f"{self.usable} of {self.total} pictures are usable" + (f"; {share}" if self.lost else "")

    def lines(self) -> list[str]:
        """What was found, for a terminal."""
        found = [f"  {n} {({**LOST, **NOTED})[kind]}{_few(self.of_kind(kind))}" for kind, n in self.counts.items() if n]
        return [printable(line) for line in [self.verdict, *found, *self.size_lines(), *self.caption_lines()]]

    def of_kind(self, kind: str) -> list[Finding]:
        """The findings of one kind."""
        return [finding for finding in self.findings if finding.kind == kind]

    def size_lines(self) -> list[str]:
        """The sizes, in lines."""
        s = self.sizes
        if not s:
            return []
        lines = [f"sizes: {s['distinct']}, short side {s['least']} to {s['most']}, median {s['median']:g}"]
        if (at := s["at"]) is not None:
            lines.append(
                f"at {at['width']}x{at['height']}: {at['exact']} as they are, {at['reduced']} reduced, "
                f"{at['enlarged']} enlarged; {at['cropped']} cropped, by {at['cropped_share']:.0%} of a picture on "
                f"average, {at['worst_share']:.0%} at most"
            )
        return lines

    def caption_lines(self) -> list[str]:
        """The captions, in lines."""
        c = self.captions
        origins = ", ".join(f"{name} {n}" for name, n in c["origins"].items())
        lines = [f"captions: {c['distinct']} different; from: {origins}"]
        if (t := c["tokens"]) is not None:
            at = ", ".join(f"{key} {t[key]:g}" for key in ("p50", "p90", "p99", "max"))
            lines.append(f"tokens by {t['encoder']}, which reads {t['limit']}: {at}; {t['cut']} are longer")
        return lines + self.notes


def check_folder(
    data: str | Path | DataConfig,
    *,
    size: tuple[int, int] | None = None,
    words: TokenCounter | None = None,
    max_lost: float = MAX_LOST,
    quiet: bool = True,
    **keys: Any,
) -> Check:
    """Look at every picture of `data`, which `config_for` opens with `keys` (instance_prompt=, caption_column=, ..).

    `size`: (width, height) of training; `words`: the text encoder's. Pictures without any caption are a ValueError.
    """
    if not 0 <= max_lost <= 1:
        raise ValueError(f"max_lost = {max_lost:g}: the share of pictures that may be lost is 0 to 1")
    config = data if isinstance(data, DataConfig) else config_for(data, **keys)
    lenient = config.model_copy(update={"allow_empty_captions": True})
    opened = open_source(lenient)
    base = opened if config.exclude is None else open_source(lenient.model_copy(update={"exclude": None}))
    texts = opened.texts()
    rows: dict[str, int] = {}
    for i in range(len(opened)):
        rows.setdefault(opened[i].key, i)
    findings = _files(base)
    if not config.allow_empty_captions:
        bare = [name for name, i in rows.items() if not texts[i].strip()]
        if len(bare) == len(rows):
            way = "" if config.source == "parquet" else ", or give --instance-prompt 'a photo of sks dog'"
            raise ValueError(f"{config.path}: none of the {len(bare)} pictures has a caption: write them{way}")
        findings += [Finding("captionless", name) for name in bare]
    looks = look_at_all(opened, rows, config.background, quiet)
    findings += find_faults(looks, size, notes := [])
    lost = {finding.name for finding in findings if finding.kind in LOST}
    used = [name for name in rows if name not in lost]
    tokens = None if words is None else words.count([texts[rows[name]] for name in used])
    if words is not None and tokens is not None:
        findings += [
            Finding("caption_cut", name, f"{n} tokens, {words.limit} are read")
            for name, n in zip(used, tokens, strict=True)
            if n > words.limit
        ]
    kinds = list(LOST) + list(NOTED)
    outside = {finding.name for finding in findings if finding.kind in LOST} - rows.keys()
    usable = set(used)
    return Check(
        config=config,
        total=len(rows) + len(outside),
        findings=sorted(findings, key=lambda finding: kinds.index(finding.kind)),
        sizes=said_of_sizes([looks[name] for name in used], size),
        captions=_captions([texts[rows[name]] for name in used], opened, tokens, words),
        examples=_examples(used, rows, texts, looks, tokens),
        source=Subset(opened, [i for i in range(len(opened)) if opened[i].key in usable], "unusable"),
        opened=opened,
        base=base,
        rows=rows,
        max_lost=max_lost,
        notes=notes + _repeats(base),
    )


def _files(source: Source) -> list[Finding]:
    """What was found beside the rows; only a folder has such."""
    if not isinstance(source, FolderSource):
        return []
    there = source.listing
    lists = {
        "missing": there.missing,
        "unlisted": there.unlisted,
        "unread_format": there.unread,
        "spare_text": there.spare,
    }
    return [Finding(kind, name) for kind, names in lists.items() for name in names]


def _captions(texts: list[str], source: Source, tokens: list[int] | None, words: TokenCounter | None) -> dict[str, Any]:
    told = None
    if words is not None and tokens:
        p50, p90, p99 = np.percentile(tokens, [50, 90, 99], method="inverted_cdf").tolist()
        told = {"encoder": words.name, "limit": words.limit, "p50": p50, "p90": p90, "p99": p99, "max": max(tokens)}
        told["cut"] = sum(n > words.limit for n in tokens)
    origins = dict(source.report.origins) or {"caption column": len(texts)}
    return {"distinct": len(set(texts)), "origins": origins, "tokens": told}


def _examples(
    used: list[str], rows: dict[str, int], texts: list[str], looks: dict[str, Any], tokens: list[int] | None
) -> list[Example]:
    """The first, the last and one between."""
    places = sorted({round(k * (len(used) - 1) / (EXAMPLES - 1)) for k in range(EXAMPLES)}) if used else []
    return [
        Example(
            rows[used[i]],
            used[i],
            looks[used[i]].width,
            looks[used[i]].height,
            texts[rows[used[i]]],
            None if tokens is None else tokens[i],
        )
        for i in places
    ]


def _repeats(source: Source) -> list[str]:
    if not isinstance(source, FolderSource):
        return []
    folders: Counter[tuple[str, int]] = Counter()
    for name, n in zip(source.listing.names, source.listing.repeats, strict=True):
        if n > 1 or source.report.repeats:
            folders[(name.split("/")[0], n)] += 1
    if not folders:
        return []
    said = ", ".join(f"{name} ({pictures} pictures)" for (name, _), pictures in folders.items())
    return [f"repeated as the folders' names ask: {said}; only the ratio of the numbers matters"]


def _few(findings: list[Finding]) -> str:
    first = [f"{f.name} ({f.why})" if f.why else f.name for f in findings[:3]]
    return f": {', '.join(first)}" + (f" and {len(findings) - 3} more" if len(findings) > 3 else "")
