"""Evaluation settings: metrics, reference, features, judge, and the protocol of each result."""

import warnings
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from t2i import randomness
from t2i.data.scenes import LEAST_PIXELS, parse_caption
from t2i.data.transforms import TRANSFORM
from t2i.errors import ConfigError
from t2i.evaluation.bound import DRAWS
from t2i.evaluation.clip_score import Judge
from t2i.evaluation.features import Features
from t2i.evaluation.frechet import Reference, check_dims
from t2i.evaluation.generated import ModelSamples, Subject
from t2i.evaluation.image_sets import ImageSet, gathered
from t2i.evaluation.measures import FEATURE_METRICS, Groups, groups_of, reference_of
from t2i.evaluation.prdc import NEAREST
from t2i.evaluation.protocol import Protocol, prompts_hash
from t2i.evaluation.reference import ReferenceImages, check_reference
from t2i.evaluation.scoring import Scorer, cosine_scorer, skill_scorer
from t2i.evaluation.stats import save_reference
from t2i.evaluation.store import Store

SHOWN = 8  # images of each guidance on the page


@dataclass
class Evaluation:
    """The settings of an evaluation, which `evaluate.evaluate` applies to a subject.

    `paired_captions`: images that share a caption with the reference share a jackknife group with its image.
    """

    reference: ReferenceImages | Reference | None  # None: no metric needs one
    metrics: tuple[str, ...]
    features: Features
    judge: Judge | None
    store: Store
    batch: int
    baselines: bool = True
    shuffled: bool = True  # also score images against each other's captions
    paired_captions: bool = True
    shown: int = SHOWN  # images that are generated for the page even if no metric needs any
    bound_images: ReferenceImages | None = None  # by default the reference's first, as many as there are prompts
    contrast: list[str] | None = None  # other captions of these images: the bound reports by how much they are worse
    draws: int = DRAWS  # noise levels at which the bound evaluates each image
    variance: bool = False  # also sample with each variance of Algorithm 2
    columns: dict[str, list[Image.Image]] = field(default_factory=dict)  # of the page: images that have no guidance
    notes: list[str] = field(default_factory=list)

    def check(self, subject: Subject) -> None:
        """Raises ConfigError for what cannot be measured; nothing is generated before."""
        prompts, size = subject.prompts, subject.size
        groups = self.groups(subject)[0]  # raises for a single prompt
        if isinstance(self.reference, Reference):
            if others := [m for m in self.metrics if m in FEATURE_METRICS and m != "fd"]:
                raise ConfigError(
                    "metrics",
                    "reference statistics hold moments only, which fd needs; give the reference's images",
                    ",".join(others),
                )
            self.notes += check_reference(self.reference, self.protocol(subject, None))
            check_dims(self.features.dim, self.reference.dim)
        if self.uses_features and (shared := len(set(prompts) & set(self.captions))):
            self.notes.append(
                f"{shared} prompts are captions of the reference: both sides show the same content, which makes their "
                "distance smaller than for independent captions; FD∞ corrects for it, KID may fall below 0"
            )
        # Neighbours and kernels need some images on both sides, whichever group of prompts is left out.
        fewest = len(prompts) - int(torch.bincount(groups).max())
        fewest = min(fewest, len(self.captions)) if self.captions else fewest
        for metric, least in (("prdc", NEAREST + 1), ("kid", 2)):
            if metric in self.metrics and fewest < least:
                raise ConfigError(
                    "metrics",
                    f"needs {least} images on both sides whichever group of prompts is left out, and there are "
                    f"{fewest}: give more (--n, --reference), or remove {metric}",
                    metric,
                )
        if "skills" in self.metrics:
            if size[0] != size[1] or size[0] < LEAST_PIXELS:
                raise ConfigError(
                    "metrics", f"scenes are read from squares of {LEAST_PIXELS} pixels or more, not {size}", "skills"
                )
            for prompt in dict.fromkeys(prompts):
                parse_caption(prompt)
        if "vlb" in self.metrics:
            if not isinstance(subject, ModelSamples):
                raise ConfigError("metrics", "a bound needs a model, and these are images: give a model (-m)", "vlb")
            if not self.captions or not all(c.strip() for c in self.captions):
                raise ConfigError("metrics", "a bound needs a reference of images that all have captions", "vlb")
        if self.variance:
            if not isinstance(subject, ModelSamples):
                raise ConfigError("variance", "needs a model, and these are images: give a model (-m)")
            if (count := len(set(prompts))) < 3:
                raise ConfigError("variance", f"{count} different prompts: intervals need 3; give more")
        if isinstance(self.reference, ReferenceImages) and self.reference.size != size:
            raise ValueError(f"the reference is read at {self.reference.size}, the images have {size}")

    def groups(self, subject: Subject) -> Groups:
        """Returns the jackknife group of each image, and of each of the reference's: images of a prompt share one."""
        return groups_of(subject.prompts, self.captions or None if self.paired_captions else None)

    @cached_property
    def captions(self) -> list[str]:
        """The caption of each image of the reference; none for statistics."""
        return self.reference.captions if isinstance(self.reference, ReferenceImages) else []

    @cached_property
    def scorers(self) -> list[Scorer]:
        """The scorers of single images against their prompts."""
        cosines = [cosine_scorer(self.judge)] if "clip" in self.metrics and self.judge is not None else []
        return cosines + ([skill_scorer()] if "skills" in self.metrics else [])

    @property
    def uses_features(self) -> bool:
        """True if any metric uses features."""
        return any(metric in FEATURE_METRICS for metric in self.metrics)

    def protocol(
        self, subject: Subject, guidance: float | None, *, n: int | None = None, n_ref: int | None = None
    ) -> Protocol:
        """Returns the protocol of a number from features."""
        assert self.reference is not None
        total = self.reference.n if isinstance(self.reference, Reference) else len(self.reference)
        return Protocol(
            n=len(subject.prompts) if n is None else n,
            n_ref=total if n_ref is None else n_ref,
            size=subject.size,
            **self._identity,
            **subject.identity(guidance),
        )

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """The fields of a protocol that describe the features and the reference."""
        reference, preparation = self.reference, f"{TRANSFORM}, on white"
        if isinstance(reference, ReferenceImages):
            preparation = reference.preparation
        return {
            "features": self.features.name,
            "fingerprint": self.features.fingerprint,
            "resize": self.features.resize,
            "preparation": preparation,
            "reference": self.reference_hash,
            "verified": self.features.verified,
        }

    def compared(self, subject: Subject) -> dict[str, str]:
        """Returns the settings that all numbers of one output folder share."""
        model = f"{subject.name}, {(subject.fingerprint or 'unknown')[:16]}"
        return {"model": model, "reference": self.reference_hash[:16]}

    def score_protocol(
        self, subject: Subject, guidance: float | None, anchor: str | None, captions: list[str], **more: Any
    ) -> Protocol:
        """Returns the protocol of a score against captions."""
        identity = subject.identity(guidance) | {"prompts": prompts_hash(captions)}
        if anchor in ("real", "vae"):
            dtype = identity.get("dtype")
            identity = {"prompts": identity["prompts"], "reference": self.reference_hash, "dtype": dtype}
        return Protocol(n=len(captions), size=subject.size, **identity, **more)

    @cached_property
    def reference_hash(self) -> str:
        """The hash of the reference's pixels: recorded by its statistics, else that of the statistics."""
        if isinstance(self.reference, ReferenceImages):
            return self.reference.hash
        assert self.reference is not None
        recorded = dict(self.reference.identity).get("reference")
        return recorded or prompts_hash([repr(self.reference.mean.tolist()), repr(self.reference.trace)])

    def features_of(self, images: ImageSet) -> Tensor:
        """Returns the features of images, which the stage "features" has stored."""
        return gathered(self.store, "features", images.feature_tasks(self.features))

    @cached_property
    def real_images(self) -> ImageSet | None:
        """The reference's images; None for statistics."""
        if not isinstance(self.reference, ReferenceImages):
            return None
        return ImageSet.of(len(self.reference), self.batch, self.reference.read, "reference", self.reference.hash)

    @cached_property
    def real_features(self) -> Tensor | None:
        """The features of the reference's images, which the stage "features" has stored."""
        return None if self.real_images is None else self.features_of(self.real_images)

    @cached_property
    def moments(self) -> Reference:
        """The reference's moments; they are written as statistics that later evaluations can be given."""
        if isinstance(self.reference, Reference):
            return self.reference
        assert self.reference is not None and self.real_features is not None
        identity = Protocol(n=0, size=self.reference.size, **self._identity).identity()
        reference = reference_of(self.real_features, identity)
        path = self.store.folder / f"reference-{self.reference_hash[:8]}-{self.features.fingerprint[:8]}.npz"
        if not path.is_file():
            save_reference(reference, path)
        return reference


def choose_prompts(captions: list[str], n: int | None) -> tuple[list[str], list[int]]:
    """Returns `n` captions (all by default) in a seeded order, repeated as often as needed, and their indices.

    The first of a larger n are those of a smaller one, so that a larger evaluation extends a smaller one.
    """
    rows = [i for i, caption in enumerate(captions) if caption.strip()]
    if not rows:
        raise ConfigError("prompts", "the reference has no captions to use as prompts: give --prompts FILE, one a line")
    if len(rows) < len(captions):
        warnings.warn(f"{len(captions) - len(rows)} of {len(captions)} captions are empty: not used", stacklevel=2)
    order = randomness.permutation(len(rows), 0, "prompts").tolist()
    chosen = [rows[order[i % len(rows)]] for i in range(n or len(rows))]
    return [captions[i] for i in chosen], chosen
