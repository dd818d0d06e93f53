"""Pictures scored one by one against their captions, in batches that the store keeps: a judge's cosines, skills."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from t2i.data.scenes import parse_caption
from t2i.evaluation.clip_score import Judge
from t2i.evaluation.picture_sets import PictureSet
from t2i.evaluation.protocol import Protocol
from t2i.evaluation.rows import Row
from t2i.evaluation.scene_parser import MEANING, VERSION, Part, aggregate, score_all
from t2i.evaluation.store import Task, digest


@dataclass(frozen=True)
class Scorer:
    """A row of numbers for each picture and its caption; `key` tells the scorer."""

    stage: str
    key: str
    scores: Callable[[UInt8[Tensor, "b 3 h w"], list[str]], np.ndarray]
    judge: Judge | None = None

    def reads(self, caption: str) -> bool:
        """Whether a caption says anything to it."""
        if self.judge is not None:
            return bool(caption.strip())
        try:
            return bool(parse_caption(caption))
        except ValueError:
            return False

    def tasks(self, pictures: PictureSet, captions: Sequence[str]) -> list[Task]:
        """The scores of every batch."""

        def task(part: range, key: str) -> Task:
            texts = [captions[i] for i in part]
            return Task(
                digest(self.key, key, texts), len(part), lambda: {"scores": self.scores(pictures.read(part), texts)}
            )

        return [task(part, key) for part, key in zip(pictures.parts, pictures.keys, strict=True)]


def cosines_of(judge: Judge) -> Scorer:
    """The cosine of each picture and its caption."""

    def scores(pixels: UInt8[Tensor, "b 3 h w"], texts: list[str]) -> np.ndarray:
        return judge.cosines(pixels, texts)[0][:, None].numpy()

    return Scorer("cosines", judge.fingerprint, scores, judge)


def skills_of() -> Scorer:
    """(hits, out of) of every skill a picture, whose captions are the built-in scenes'."""

    def scores(pixels: UInt8[Tensor, "b 3 h w"], texts: list[str]) -> np.ndarray:
        parts = [[skills.get(name, Part(0, 0)) for name in MEANING] for skills in score_all(pixels, texts)]
        return np.array(parts, np.int64)

    return Scorer("skills", f"skills {VERSION} {','.join(MEANING)}", scores)


def skill_rows(scores: Tensor, captions: Sequence[str], protocol: Protocol, anchor: str | None) -> list[Row]:
    """A row a skill that any caption asks for."""
    each = [
        {name: Part(*pair) for name, pair in zip(MEANING, picture, strict=True) if pair[1]}
        for picture in scores.tolist()
    ]
    extra = {} if anchor is None else {"anchor": anchor}
    return [
        Row(
            metric=f"skill_{name}",
            value=rate.value,
            protocol=protocol,
            se=rate.se if isfinite(rate.se) else None,
            ci95=rate.ci95,
            method="Wilson, of independent prompts",
            extra={"out_of": rate.n, **extra},
        )
        for name, rate in aggregate(each, captions).items()
        if rate.n
    ]
