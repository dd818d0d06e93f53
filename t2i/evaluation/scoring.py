"""Scores of single images against their captions, batch by batch: a judge's cosines, or skills read from scenes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
from jaxtyping import Int, UInt8
from torch import Tensor

from t2i.data.scenes import parse_caption
from t2i.evaluation.clip_score import Judge
from t2i.evaluation.image_sets import ImageSet
from t2i.evaluation.jackknife import ratio_of
from t2i.evaluation.protocol import Protocol
from t2i.evaluation.rows import Row
from t2i.evaluation.scene_parser import MEANING, VERSION, Part, aggregate, score_all
from t2i.evaluation.store import Task, digest

SKILL = "skill_"  # begins the metric's name


@dataclass(frozen=True)
class Scorer:
    """Computes numbers for each image and its caption; `key` identifies the scorer."""

    stage: str
    key: str
    scores: Callable[[UInt8[Tensor, "b 3 h w"], list[str]], np.ndarray]
    judge: Judge | None = None

    def reads(self, caption: str) -> bool:
        """Returns True if the scorer can score images against this caption."""
        if self.judge is not None:
            return bool(caption.strip())
        try:
            return bool(parse_caption(caption))
        except ValueError:
            return False

    def tasks(self, images: ImageSet, captions: Sequence[str]) -> list[Task]:
        """Returns one task a batch that computes its scores."""

        def task(part: range, key: str) -> Task:
            texts = [captions[i] for i in part]
            return Task(
                digest(self.key, key, texts), len(part), lambda: {"scores": self.scores(images.read(part), texts)}
            )

        return [task(part, key) for part, key in zip(images.parts, images.keys, strict=True)]


def cosine_scorer(judge: Judge) -> Scorer:
    """Returns the scorer of the cosine of each image and its caption."""

    def scores(pixels: UInt8[Tensor, "b 3 h w"], texts: list[str]) -> np.ndarray:
        return judge.cosines(pixels, texts)[0][:, None].numpy()

    return Scorer("cosines", judge.fingerprint, scores, judge)


def skill_scorer() -> Scorer:
    """Returns the scorer of (hits, count) of every skill an image; captions are those of the built-in scenes."""

    def scores(pixels: UInt8[Tensor, "b 3 h w"], texts: list[str]) -> np.ndarray:
        parts = [[skills.get(name, Part(0, 0)) for name in MEANING] for skills in score_all(pixels, texts)]
        return np.array(parts, np.int64)

    return Scorer("skills", f"skills {VERSION} {','.join(MEANING)}", scores)


def skill_rows(
    scores: Int[Tensor, "n k 2"],
    captions: Sequence[str],
    protocol: Protocol,
    anchor: str | None,
    groups: Int[Tensor, " n"] | None = None,
) -> list[Row]:
    """Returns a row a skill that any caption asks for; with replicates over `groups` where they are given."""
    each = [
        {name: Part(*pair) for name, pair in zip(MEANING, image, strict=True) if pair[1]} for image in scores.tolist()
    ]
    extra = {} if anchor is None else {"anchor": anchor}
    return [
        Row(
            metric=f"{SKILL}{name}",
            value=rate.value,
            protocol=protocol,
            se=rate.se if isfinite(rate.se) else None,
            ci95=rate.ci95,
            method="Wilson, of independent prompts",
            extra={"out_of": rate.n, **extra},
            replicates=None if groups is None else ratio_of(scores[:, k, 0].double(), scores[:, k, 1].double(), groups),
        )
        for k, (name, rate) in enumerate(aggregate(each, captions).items())
        if rate.n
    ]
