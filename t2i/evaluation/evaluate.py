"""An evaluation from end to end: pictures, features and scores in stages that ranks share, then every number."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from t2i import randomness
from t2i.data.scenes import LEAST_PIXELS, said
from t2i.data.transforms import TRANSFORM
from t2i.evaluation.anchor_rows import anchor_rows, anchor_sets
from t2i.evaluation.anchors import shuffled
from t2i.evaluation.bound_rows import bound_rows
from t2i.evaluation.clip_score import Judge, own_family
from t2i.evaluation.contestants import STAGE, Finished, Model, cut_off
from t2i.evaluation.features import Features
from t2i.evaluation.frechet import Reference, check_dims
from t2i.evaluation.jackknife import Replicates, group_by, mean_of
from t2i.evaluation.measures import OF_FEATURES, PARTS, Groups, groups_of, measure, reference_of
from t2i.evaluation.picture_sets import PictureSet, gathered, real
from t2i.evaluation.prdc import NEAREST
from t2i.evaluation.protocol import Protocol, prompts_hash
from t2i.evaluation.reference import ReferencePictures, check_reference
from t2i.evaluation.rows import Row
from t2i.evaluation.scoring import Scorer, cosines_of, skill_rows, skills_of
from t2i.evaluation.stats import save_reference
from t2i.evaluation.store import Store, fill, rank

Judged = tuple[float | None, str | None, Tensor, list[str]]  # guidance, anchor, scores, captions


@dataclass
class Evaluation:
    """What is measured of what, by what; nothing is drawn before `check` is through."""

    contestant: Model | Finished
    reference: ReferencePictures | Reference
    reference_name: str
    metrics: tuple[str, ...]
    features: Features
    judge: Judge | None
    store: Store
    batch: int
    anchored: bool = True
    notes: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Refuse what cannot be measured."""
        prompts, size = self.contestant.prompts, self.contestant.size
        self.groups  # noqa: B018  # refuses a single prompt
        if isinstance(self.reference, Reference):
            if left := [m for m in self.metrics if m in OF_FEATURES and m != "fd"]:
                raise ValueError(
                    f"--metrics {','.join(left)}: statistics of a reference hold its moments alone, which fd needs; "
                    "give the reference's pictures"
                )
            self.notes += check_reference(self.reference, self.protocol(None))
            check_dims(self.features.dim, self.reference.dim)
        if self.by_features and (shared := len(set(prompts) & set(self.captions))):
            self.notes.append(
                f"{shared} prompts are captions of the reference: both sides show the same things, which makes their "
                "distance smaller than that of strangers; FD∞ has it taken out, KID may fall below 0"
            )
        if "skills" in self.metrics:
            if size[0] != size[1] or size[0] < LEAST_PIXELS:
                raise ValueError(f"--metrics skills: scenes are read from squares of {LEAST_PIXELS} pixels, not {size}")
            for prompt in dict.fromkeys(prompts):
                said(prompt)
        if "vlb" in self.metrics:
            if isinstance(self.contestant, Finished):
                raise ValueError("--metrics vlb: a bound is of a model, and these are pictures: give the model with -m")
            if isinstance(self.reference, Reference) or not all(c.strip() for c in self.captions):
                raise ValueError("--metrics vlb: a bound is of captioned pictures: give a reference that has them all")
        if isinstance(self.reference, ReferencePictures) and self.reference.size != size:
            raise ValueError(f"the reference is read at {self.reference.size}, the pictures have {size}")

    @cached_property
    def groups(self) -> Groups:
        """The group of every picture, and of the reference's: all pictures of a prompt share one."""
        return groups_of(self.contestant.prompts, self.captions or None)

    @cached_property
    def captions(self) -> list[str]:
        """The reference's, one a picture; none of statistics."""
        return [] if isinstance(self.reference, Reference) else self.reference.captions

    @cached_property
    def sets(self) -> dict[float | None, PictureSet]:
        """The pictures to judge, by guidance."""
        one = self.contestant
        return one.sets(self.store) if isinstance(one, Model) else one.sets(self.batch)

    @cached_property
    def anchors(self) -> dict[str, PictureSet]:
        """The real pictures and what is made of them."""
        if isinstance(self.reference, Reference):
            return {}
        if not self.anchored:
            return {"real": real(self.reference, self.batch)}
        return anchor_sets(self.reference, self.contestant, self.batch)

    @cached_property
    def scorers(self) -> list[Scorer]:
        """What scores every picture against its prompt."""
        found = [cosines_of(self.judge)] if "clip" in self.metrics and self.judge is not None else []
        return found + ([skills_of()] if "skills" in self.metrics else [])

    def run(self, quiet: bool = False) -> list[Row] | None:
        """Every number; None on all ranks but the first."""
        if isinstance(self.contestant, Model):
            fill(self.store, STAGE, self.contestant.tasks(), quiet)
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

    @property
    def by_features(self) -> bool:
        """Whether any metric looks at features."""
        return any(metric in OF_FEATURES for metric in self.metrics)

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

    def protocol(self, guidance: float | None, *, n: int | None = None, n_ref: int | None = None) -> Protocol:
        """What a number from features depends on."""
        one, reference = self.contestant, self.reference
        pictures = reference if isinstance(reference, ReferencePictures) else None
        many = n_ref if n_ref is not None else len(pictures) if pictures else reference.n  # pyright: ignore
        return Protocol(
            n=len(one.prompts) if n is None else n,
            n_ref=many,
            features=self.features.name,
            fingerprint=self.features.fingerprint,
            resize=self.features.resize,
            size=one.size,
            preparation=pictures.preparation if pictures else f"{TRANSFORM}, on white",
            reference=self.reference_hash,
            verified=self.features.verified,
            **self.drawn(guidance),
        )

    def drawn(self, guidance: float | None) -> dict[str, Any]:
        """What the pictures depend on."""
        one = self.contestant
        return {
            "prompts": prompts_hash(one.prompts),
            "model": one.fingerprint,
            "text_encoder": one.text_encoder,
            "solver": one.solver,
            "steps": one.steps,
            "guidance": guidance,
            "seeds": one.seeds,
            "dtype": one.dtype,
        }

    @cached_property
    def reference_hash(self) -> str:
        """Of the reference's pixels; of what its statistics say, else of the statistics."""
        if isinstance(self.reference, ReferencePictures):
            return self.reference.hash
        said = dict(self.reference.identity).get("reference")
        return said or prompts_hash([repr(self.reference.mean.tolist()), repr(self.reference.trace)])

    def features_of(self, pictures: PictureSet) -> Tensor:
        """The features of pictures, which the stage has left."""
        return gathered(self.store, "features", pictures.feature_tasks(self.features))

    @cached_property
    def real_features(self) -> Tensor | None:
        """Those of the reference's pictures."""
        return self.features_of(self.anchors["real"]) if self.anchors else None

    @cached_property
    def gaussian(self) -> Reference:
        """The reference's moments; written down as statistics that a later evaluation may be given."""
        if isinstance(self.reference, Reference):
            return self.reference
        assert self.real_features is not None
        identity = self.protocol(None).identity()
        found = reference_of(self.real_features, identity)
        path = self.store.folder / f"reference-{self.reference_hash[:8]}-{self.features.fingerprint[:8]}.npz"
        if not path.is_file():
            save_reference(found, path)
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


def choose_prompts(captions: list[str], n: int | None) -> tuple[list[str], list[int]]:
    """`n` captions (all by default) in an order that is drawn once, over and over; and whose they are.

    Those of fewer are the first of those of more, so that more pictures add to those that are there.
    """
    rows = [i for i, caption in enumerate(captions) if caption.strip()]
    if not rows:
        raise ValueError("the reference has no captions to draw: give --prompts FILE, one a line")
    if len(rows) < len(captions):
        warnings.warn(f"{len(captions) - len(rows)} of {len(captions)} captions are empty: not drawn", stacklevel=2)
    order = randomness.permutation(len(rows), 0, "prompts").tolist()
    chosen = [rows[order[i % len(rows)]] for i in range(n or len(rows))]
    return [captions[i] for i in chosen], chosen
