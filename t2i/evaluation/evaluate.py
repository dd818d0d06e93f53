"""An evaluation from end to end: pictures, features and scores in stages that ranks share, then every number."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from torch import Tensor

from t2i.evaluation.anchor_rows import anchor_rows
from t2i.evaluation.anchors import shuffled
from t2i.evaluation.bound_rows import bound_rows
from t2i.evaluation.clip_score import Judge, own_family
from t2i.evaluation.contestants import STAGE, Model, cut_off
from t2i.evaluation.jackknife import Replicates, group_by, mean_of
from t2i.evaluation.measures import PARTS, measure
from t2i.evaluation.picture_sets import PictureSet, gathered
from t2i.evaluation.prdc import NEAREST
from t2i.evaluation.protocol import Protocol, prompts_hash
from t2i.evaluation.reference import ReferencePictures
from t2i.evaluation.rows import Row
from t2i.evaluation.scoring import Scorer, cosines_of, skill_rows, skills_of
from t2i.evaluation.setting import SHOWN, Setting
from t2i.evaluation.store import Task, fill, rank

Judged = tuple[float | None, str | None, Tensor, list[str]]  # guidance, anchor, scores, captions


class Evaluation(Setting):
    """A setting, carried out; nothing is drawn before `check` is through."""

    @cached_property
    def scorers(self) -> list[Scorer]:
        """What scores every picture against its prompt."""
        found = [cosines_of(self.judge)] if "clip" in self.metrics and self.judge is not None else []
        return found + ([skills_of()] if "skills" in self.metrics else [])

    def run(self, quiet: bool = False) -> list[Row] | None:
        """Every number; None on all ranks but the first."""
        fill(self.store, STAGE, self.drawing(), quiet)
        if self.by_features:
            every = [*self.sets.values(), *self.anchors.values()]
            fill(self.store, "features", [t for s in every for t in s.feature_tasks(self.features)], quiet)
        for scorer in self.scorers:
            fill(self.store, scorer.stage, [t for _, _, s, c in self.judged(scorer) for t in scorer.tasks(s, c)], quiet)
        if rank()[0]:
            return None
        rows = self._of_features() + self._of_scores()
        if self.anchored and self.by_features and isinstance(self.reference, ReferencePictures):
            rows += anchor_rows(self)
        if "vlb" in self.metrics:
            rows += bound_rows(self, quiet)
        return rows

    def drawing(self) -> list[Task]:
        """The pictures to draw: those of the sheet alone where no metric looks at any."""
        if not isinstance(self.contestant, Model):
            return []
        return self.contestant.tasks(None if self.by_features or self.scorers else SHOWN)

    def judged(self, scorer: Scorer) -> Sequence[tuple[float | None, str | None, PictureSet, list[str]]]:
        """(guidance, anchor, pictures, captions) of everything that is scored against captions."""
        prompts, anchored = self.contestant.prompts, self.anchored
        found = [(g, None, pictures, prompts) for g, pictures in self.sets.items()]
        others = shuffled(prompts) if anchored else []
        found += [(g, "shuffled captions", pictures, others) for g, pictures in self.sets.items() if anchored]
        if anchored and len(set(self.captions)) > 1 and all(scorer.reads(c) for c in self.captions):
            found += [
                (None, name, self.anchors[name], self.captions) for name in ("real", "vae") if name in self.anchors
            ]
        return found

    def _of_features(self) -> list[Row]:
        if not self.by_features:
            return []
        found: dict[float | None, dict[str, Replicates]] = {}
        for g, pictures in self.sets.items():
            texts = prompts_hash([*self.contestant.prompts, "", *self.captions])
            key = (pictures.key, self.features.fingerprint, self.reference_hash, texts)
            sample = self.features_of(pictures)
            found[g] = measure(self.store, self.metrics, sample, self.real_features, self.gaussian, self.groups, *key)
        return self._rows(found, {g: self.protocol(g) for g in found})

    def _rows(
        self, found: dict[float | None, dict[str, Replicates]], protocols: dict[float | None, Protocol], **extra: Any
    ) -> list[Row]:
        """A row a number, and the differences of every pair of guidances on the same prompts and noise."""
        rows = []
        for g, numbers in found.items():
            rows += [
                Row.of(m, replicates.estimate(), protocols[g], **self._how(m), **extra)
                for m, replicates in numbers.items()
            ]
        guidances = list(found)
        pairs = [(a, b) for i, a in enumerate(guidances) for b in guidances[i + 1 :]]
        for a, b in pairs:
            for metric, replicates in found[b].items():
                change = replicates.minus(found[a][metric]).estimate()
                rows.append(Row.of(f"{metric}_difference", change, protocols[b], than_cfg=a, **extra))
        return rows

    def _how(self, metric: str) -> dict[str, Any]:
        """How a number came about: which sides the jackknife left groups out of, the neighbours that were looked at."""
        if metric == "fd":
            return {"resampled": "the pictures" if self.groups[1] is None else "both sides"}
        return {"nearest": NEAREST} if metric in PARTS else {}

    def _of_scores(self) -> list[Row]:
        rows = []
        for scorer in self.scorers:
            arrays = [
                (g, anchor, gathered(self.store, scorer.stage, scorer.tasks(s, c), "scores"), c)
                for g, anchor, s, c in self.judged(scorer)
            ]
            if scorer.judge is not None:
                rows += self._of_judge(scorer.judge, arrays)
            else:
                for g, anchor, scores, captions in arrays:
                    rows += skill_rows(scores, captions, self.score_protocol(g, anchor, captions), anchor)
        return rows

    def score_protocol(self, g: float | None, anchor: str | None, captions: Sequence[str], **more: Any) -> Protocol:
        """What a score of captions depends on."""
        drawn = self.drawn(g) | {"prompts": prompts_hash(captions)}
        if anchor in ("real", "vae"):
            drawn = {"prompts": drawn["prompts"], "reference": self.reference_hash, "dtype": drawn["dtype"]}
        return Protocol(n=len(captions), size=self.contestant.size, **drawn, **more)

    def _of_judge(
        self, judge: Judge, arrays: Sequence[tuple[float | None, str | None, Tensor, list[str]]]
    ) -> list[Row]:
        known = self.contestant.pipeline.text_encoder if isinstance(self.contestant, Model) else None
        family = "the text encoder of these pictures is not known" if known is None else own_family(judge, known)
        extra = {"judge_family": family} if family else {}
        if family:
            self.notes.append(f"the judge of the CLIP score, {judge.name}, may favour this model: {family}")
        if cut := cut_off(judge.encoder, self.contestant.prompts):
            self.notes.append(f"{len(cut)} prompts were cut to fit the judge's {judge.encoder.max_tokens} tokens")
        named = f"{judge.name}@{judge.fingerprint[:8]}"
        found: dict[float | None, dict[str, Replicates]] = {}
        protocols: dict[float | None, Protocol] = {}
        rows = []
        for g, anchor, scores, captions in arrays:
            replicates = mean_of(scores[:, 0], group_by(captions) if anchor in ("real", "vae") else self.groups[0])
            protocol = self.score_protocol(g, anchor, captions, judge=named)
            if anchor is None:
                found[g], protocols[g] = {"clip_score": replicates}, protocol
            else:
                rows.append(Row.of("clip_score", replicates.estimate(), protocol, anchor=anchor, **extra))
        return self._rows(found, protocols, **extra) + rows
