"""What is measured of what, by what: the pictures and the reference of an evaluation, and what a number depends on."""

import warnings
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from t2i import randomness
from t2i.data.scenes import LEAST_PIXELS, parse_caption
from t2i.data.transforms import TRANSFORM
from t2i.evaluation.anchors import LADDER
from t2i.evaluation.clip_score import Judge
from t2i.evaluation.contestants import Finished, Model
from t2i.evaluation.features import Features
from t2i.evaluation.frechet import Reference, check_dims
from t2i.evaluation.measures import OF_FEATURES, Groups, groups_of, reference_of
from t2i.evaluation.picture_sets import PictureSet, gathered, real, through, under_noise
from t2i.evaluation.prdc import NEAREST
from t2i.evaluation.protocol import Protocol, prompts_hash
from t2i.evaluation.reference import ReferencePictures, check_reference
from t2i.evaluation.stats import save_reference
from t2i.evaluation.store import Store

REAL, VAE = "real", "vae"
SHOWN = 8  # pictures of each guidance on the page


@dataclass
class Setting:
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
        self._check_enough()
        if "skills" in self.metrics:
            if size[0] != size[1] or size[0] < LEAST_PIXELS:
                raise ValueError(f"--metrics skills: scenes are read from squares of {LEAST_PIXELS} pixels, not {size}")
            for prompt in dict.fromkeys(prompts):
                parse_caption(prompt)
        if "vlb" in self.metrics:
            if isinstance(self.contestant, Finished):
                raise ValueError("--metrics vlb: a bound is of a model, and these are pictures: give the model with -m")
            if isinstance(self.reference, Reference) or not all(c.strip() for c in self.captions):
                raise ValueError("--metrics vlb: a bound is of captioned pictures: give a reference that has them all")
        if isinstance(self.reference, ReferencePictures) and self.reference.size != size:
            raise ValueError(f"the reference is read at {self.reference.size}, the pictures have {size}")

    def _check_enough(self) -> None:
        """Neighbours and kernels need some pictures on both sides, whichever group of prompts is left out."""
        prompts, largest = len(self.contestant.prompts), int(torch.bincount(self.groups[0]).max())
        fewest = min(prompts - largest, len(self.captions)) if self.captions else prompts - largest
        for metric, least in (("prdc", NEAREST + 1), ("kid", 2)):
            if metric in self.metrics and fewest < least:
                raise ValueError(
                    f"--metrics {metric}: needs {least} pictures on both sides whichever group of prompts is left out, "
                    f"and here are {fewest}: give more (--n, --reference), or take {metric} out"
                )

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

    @property
    def by_features(self) -> bool:
        """Whether any metric looks at features."""
        return any(metric in OF_FEATURES for metric in self.metrics)

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


def anchor_sets(reference: ReferencePictures, contestant: Model | Finished, batch: int) -> dict[str, PictureSet]:
    """The reference's pictures, through the model's autoencoder, and under noise."""
    found = {REAL: real(reference, batch)}
    if isinstance(contestant, Model):
        found[VAE] = through(reference, contestant.pipeline.autoencoder, contestant.vae, batch)
    return found | {f"noise {std:g}": under_noise(reference, std, batch) for std in LADDER}


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
