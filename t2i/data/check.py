"""Checks every image of a data set before training: usable, lost and noteworthy ones."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from t2i.data.data_config import DataConfig, config_for
from t2i.data.findings import LOST, NOTED, Finding, find_faults, scan_images, size_statistics
from t2i.data.folder import FolderSource
from t2i.data.open import open_source
from t2i.data.source import Source, Subset
from t2i.errors import ConfigError
from t2i.files import printable

MAX_LOST = 0.05
EXAMPLES = 3


class TokenCounter(NamedTuple):
    """The token counts of captions by a text encoder, and the number of tokens that it reads."""

    count: Callable[[list[str]], list[int]]
    limit: int
    name: str


class Example(NamedTuple):
    """A usable image: its row in the source, its upright size, its caption, and its tokens if they were counted."""

    row: int
    name: str
    width: int
    height: int
    caption: str
    tokens: int | None


@dataclass(frozen=True)
class Check:
    """The result of a check: `source` has the usable rows only, `opened` all, `base` also the excluded ones.

    `rows` has the first row in `opened` of each image.
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
        """Returns the number of findings of every kind."""
        counts = Counter(finding.kind for finding in self.findings)
        return {kind: counts[kind] for kind in (*LOST, *NOTED)}

    @property
    def lost(self) -> int:
        """Returns the number of images that are not trained on."""
        return len({finding.name for finding in self.findings if finding.kind in LOST})

    @property
    def usable(self) -> int:
        """Returns the number of images that are trained on, each counted once."""
        return self.total - self.lost

    @property
    def ok(self) -> bool:
        """True if at most the fraction `max_lost` is lost, and some images are usable."""
        return self.usable > 0 and self.lost <= self.max_lost * self.total

    @property
    def verdict(self) -> str:
        """Returns the result in one sentence."""
        lost = f"{self.lost} of {self.total} images are lost"
        if not self.ok:
            return f"{lost}, more than {self.max_lost:g} of them: repair or remove them, or allow more with --max-lost"
        return f"{self.usable} of {self.total} images are usable" + (f"; {lost}" if self.lost else "")

    def lines(self) -> list[str]:
        """Returns the results as lines for a terminal."""
        counts = [
            f"  {n} {({**LOST, **NOTED})[kind]}{_few(self.of_kind(kind))}" for kind, n in self.counts.items() if n
        ]
        return [printable(line) for line in [self.verdict, *counts, *self.size_lines(), *self.caption_lines()]]

    def of_kind(self, kind: str) -> list[Finding]:
        """Returns the findings of one kind."""
        return [finding for finding in self.findings if finding.kind == kind]

    def size_lines(self) -> list[str]:
        """Returns the sizes as lines of text."""
        s = self.sizes
        if not s:
            return []
        lines = [f"sizes: {s['distinct']}, short side {s['least']} to {s['most']}, median {s['median']:g}"]
        if (at := s["at"]) is not None:
            lines.append(
                f"at {at['width']}x{at['height']}: {at['exact']} as they are, {at['reduced']} reduced, "
                f"{at['enlarged']} enlarged; {at['cropped']} cropped, by {at['cropped_share']:.0%} of an image on "
                f"average, {at['worst_share']:.0%} at most"
            )
        return lines

    def caption_lines(self) -> list[str]:
        """Returns the captions' statistics as lines of text."""
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
    """Checks every image of `data`, which `config_for` opens with `keys` (instance_prompt=, caption_column=, ...).

    `size` is the (width, height) of training, `words` the text encoder's token counter. Raises a ValueError if no image
    has a caption.
    """
    if not 0 <= max_lost <= 1:
        raise ConfigError("max_lost", "the fraction of images that may be lost is 0 to 1", max_lost)
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
            raise ValueError(f"{config.path}: none of the {len(bare)} images has a caption: write them{way}")
        findings += [Finding("captionless", name) for name in bare]
    scans = scan_images(opened, rows, config.background, quiet)
    findings += find_faults(scans, size, notes := [])
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
        sizes=size_statistics([scans[name] for name in used], size),
        captions=_captions([texts[rows[name]] for name in used], opened, tokens, words),
        examples=_examples(used, rows, texts, scans, tokens),
        source=Subset(opened, [i for i in range(len(opened)) if opened[i].key in usable], "unusable"),
        opened=opened,
        base=base,
        rows=rows,
        max_lost=max_lost,
        notes=notes + _repeats(base) + _several(opened),
    )


def _files(source: Source) -> list[Finding]:
    """Returns the findings about files that are in no row; only folders have them."""
    if not isinstance(source, FolderSource):
        return []
    listing = source.listing
    lists = {"missing": listing.missing, "unlisted": listing.unlisted}
    lists |= {"unread_format": listing.unread, "spare_text": listing.spare}
    return [Finding(kind, name) for kind, names in lists.items() for name in names]


def _captions(texts: list[str], source: Source, tokens: list[int] | None, words: TokenCounter | None) -> dict[str, Any]:
    statistics = None
    if words is not None and tokens:
        p50, p90, p99 = np.percentile(tokens, [50, 90, 99], method="inverted_cdf").tolist()
        statistics = {"encoder": words.name, "limit": words.limit, "p50": p50, "p90": p90, "p99": p99}
        statistics |= {"max": max(tokens), "cut": sum(n > words.limit for n in tokens)}
    origins = dict(source.report.origins) or {"caption column": len(texts)}
    return {"distinct": len(set(texts)), "origins": origins, "tokens": statistics}


def _examples(
    used: list[str], rows: dict[str, int], texts: list[str], scans: dict[str, Any], tokens: list[int] | None
) -> list[Example]:
    """Returns the first usable image, the last one and one between."""
    places = sorted({round(k * (len(used) - 1) / (EXAMPLES - 1)) for k in range(EXAMPLES)}) if used else []
    return [
        Example(
            rows[used[i]],
            used[i],
            scans[used[i]].width,
            scans[used[i]].height,
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
        if max(source.listing.repeats) > 1:
            folders[(name.split("/")[0], n)] += 1
    if not folders:
        return []
    counts = ", ".join(f"{name} ({n} images)" for (name, _), n in folders.items())
    return [f"repeated as the folders' names ask: {counts}; only the ratio of the numbers matters"]


def _several(source: Source) -> list[str]:
    """Returns notes on images with several captions, and on rows that repeat an image and its caption."""
    if not source.report.repeats:
        return []
    captions: dict[str, list[str]] = {}
    for i, text in enumerate(source.texts()):
        captions.setdefault(source[i].key, []).append(text)
    several = [name for name, texts in captions.items() if len(set(texts)) > 1]
    notes = [f"{len(several)} images have several captions, first {several[0]}; they take turns"] if several else []
    again = [name for name, texts in captions.items() if len(set(texts)) < len(texts)]
    if again and not (isinstance(source, FolderSource) and max(source.listing.repeats) > 1):  # not as kohya's N asks
        notes.append(f"{len(again)} images are listed more than once with the same caption, first {again[0]}")
    return notes


def _few(findings: list[Finding]) -> str:
    first = [f"{f.name} ({f.why})" if f.why else f.name for f in findings[:3]]
    return f": {', '.join(first)}" + (f" and {len(findings) - 3} more" if len(findings) > 3 else "")
