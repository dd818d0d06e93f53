"""The evaluation engine: images, features and scores in stages that ranks share, then one row for each number."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from t2i.evaluation.baselines import SHUFFLED, baseline_rows, baseline_sets, shuffled
from t2i.evaluation.bound import latent_bound
from t2i.evaluation.clip_score import Judge, own_family
from t2i.evaluation.evaluation import Evaluation
from t2i.evaluation.generated import STAGE, ModelSamples, Subject, truncated
from t2i.evaluation.image_sets import ImageSet, gathered
from t2i.evaluation.jackknife import group_by, mean_of
from t2i.evaluation.measures import PARTS, measure
from t2i.evaluation.prdc import NEAREST
from t2i.evaluation.protocol import Protocol, prompts_hash
from t2i.evaluation.reference import ReferenceImages
from t2i.evaluation.rows import Row, differences
from t2i.evaluation.scoring import SKILL, Scorer, skill_rows
from t2i.evaluation.store import Task, digest, fill, is_main_rank
from t2i.evaluation.variance import variance_rows

BOUND_KEYS = ("variance", "unit", "conditioning", "dims", "draws", "truncated", "t")


def evaluate(subject: Subject, evaluation: Evaluation, quiet: bool = False) -> list[Row] | None:
    """Computes every metric of the subject's images; returns None on all ranks but the first.

    What the store already holds is read. Rows of the images themselves carry the replicates of their jackknife.
    """
    store, every = evaluation.store, subject.image_sets(evaluation.store, evaluation.batch)
    sample = {g: images.part(0, len(subject.prompts), evaluation.batch) for g, images in every.items()}
    baselines = baseline_sets(subject, evaluation)
    fill(store, STAGE, image_tasks(subject, evaluation), quiet)
    if evaluation.uses_features:
        sets = [*sample.values(), *baselines.values()]
        fill(store, "features", [t for images in sets for t in images.feature_tasks(evaluation.features)], quiet)
    scored = {scorer: _scored(scorer, subject, evaluation, every, sample, baselines) for scorer in evaluation.scorers}
    for scorer, sets in scored.items():
        fill(store, scorer.stage, [t for s in sets for t in scorer.tasks(s.images, s.captions)], quiet)
    statistics = None
    if evaluation.variance and isinstance(subject, ModelSamples):
        statistics = variance_rows(subject, evaluation, quiet)
    if not is_main_rank():
        return None
    rows = _feature_rows(subject, evaluation, sample) if evaluation.uses_features else []
    for scorer, sets in scored.items():
        rows += _score_rows(scorer, subject, evaluation, sets)
    if evaluation.baselines and evaluation.uses_features and isinstance(evaluation.reference, ReferenceImages):
        rows += baseline_rows(subject, evaluation, baselines)
    if "vlb" in evaluation.metrics:
        rows += _bound_rows(subject, evaluation, quiet)
    return rows + (statistics or [])


def image_tasks(subject: Subject, evaluation: Evaluation) -> list[Task]:
    """Returns the images to generate: only the first ones, for the page, where no metric needs any."""
    if not isinstance(subject, ModelSamples):
        return []
    return subject.tasks(None if evaluation.uses_features or evaluation.scorers else evaluation.shown)


def _feature_rows(subject: Subject, evaluation: Evaluation, sample: dict[float | None, ImageSet]) -> list[Row]:
    """Returns the rows of the metrics that use features, and their differences between guidances."""
    groups = evaluation.groups(subject)
    how: dict[str, dict[str, Any]] = {name: {"nearest": NEAREST} for name in PARTS}
    how["fd"] = {"resampled": "the pictures" if groups[1] is None else "both sides"}
    texts = prompts_hash([*subject.prompts, "", *evaluation.captions])
    rows = []
    for guidance, images in sample.items():
        key = (images.key, evaluation.features.fingerprint, evaluation.reference_hash, texts)
        features, real = evaluation.features_of(images), evaluation.real_features
        numbers = measure(evaluation.store, evaluation.metrics, features, real, evaluation.moments, groups, *key)
        protocol = evaluation.protocol(subject, guidance)
        rows += [Row.of(name, number, protocol, **how.get(name, {})) for name, number in numbers.items()]
    return rows + differences(rows)


class Scored(NamedTuple):
    """Images that are scored against captions: the subject's, those of a baseline, or those for one skill alone."""

    guidance: float | None
    images: ImageSet
    captions: list[str]
    anchor: str | None = None
    skill: str | None = None


def _scored(
    scorer: Scorer,
    subject: Subject,
    evaluation: Evaluation,
    every: dict[float | None, ImageSet],
    sample: dict[float | None, ImageSet],
    baselines: dict[str, ImageSet],
) -> list[Scored]:
    """Returns all images that a scorer scores."""
    prompts, captions = subject.prompts, evaluation.captions
    sets = [Scored(g, images, prompts) for g, images in sample.items()]
    if evaluation.shuffled:
        permuted = shuffled(prompts)
        sets += [Scored(g, images, permuted, SHUFFLED) for g, images in sample.items()]
    if evaluation.baselines and len(set(captions)) > 1 and all(scorer.reads(caption) for caption in captions):
        sets += [Scored(None, baselines[name], captions, name) for name in ("real", "vae") if name in baselines]
    for guidance, images in every.items() if scorer.judge is None else ():
        start = len(prompts)
        for skill, texts in subject.extra.items():
            if texts:
                part = images.part(start, start + len(texts), evaluation.batch)
                sets.append(Scored(guidance, part, texts, skill=skill))
                start += len(texts)
    return sets


def _score_rows(scorer: Scorer, subject: Subject, evaluation: Evaluation, sets: Sequence[Scored]) -> list[Row]:
    """Returns the rows of a scorer; those of a CLIP score begin with the differences between guidances."""
    if scorer.judge is None:
        return [row for images in sets for row in _skill_rows(scorer, subject, evaluation, images)]
    extra = _judge_notes(scorer.judge, subject, evaluation)
    name = f"{scorer.judge.name}@{scorer.judge.fingerprint[:8]}"
    rows, baselines = [], []
    for guidance, images, captions, anchor, _ in sets:
        scores = gathered(evaluation.store, scorer.stage, scorer.tasks(images, captions), "scores")
        protocol = evaluation.score_protocol(subject, guidance, anchor, captions, judge=name)
        groups = group_by(captions) if anchor in ("real", "vae") else evaluation.groups(subject)[0]
        score = mean_of(scores[:, 0], groups)
        if anchor is None:
            rows.append(Row.of("clip_score", score, protocol, **extra))
        else:
            baselines.append(Row.of("clip_score", score, protocol, anchor=anchor, **extra))
    return rows + differences(rows, **extra) + baselines


def _skill_rows(scorer: Scorer, subject: Subject, evaluation: Evaluation, images: Scored) -> list[Row]:
    """Returns the rows of skills: of `subject.extra` those that have prompts of their own, else all others."""
    scores = gathered(evaluation.store, scorer.stage, scorer.tasks(images.images, images.captions), "scores")
    protocol = evaluation.score_protocol(subject, images.guidance, images.anchor, images.captions)
    groups = evaluation.groups(subject)[0] if images.anchor is None and images.skill is None else None
    rows = {
        row.metric.removeprefix(SKILL): row
        for row in skill_rows(scores, images.captions, protocol, images.anchor, groups)
    }
    if images.skill is not None:
        return [row for name, row in rows.items() if name == images.skill]
    return [row for name, row in rows.items() if name not in subject.extra]


def _judge_notes(judge: Judge, subject: Subject, evaluation: Evaluation) -> dict[str, str]:
    """Notes what may bias the judge of the CLIP score; returns the mark that its rows carry."""
    known = subject.pipeline.text_encoder if isinstance(subject, ModelSamples) else None
    family = "the text encoder of these images is not known" if known is None else own_family(judge, known)
    if family:
        evaluation.notes.append(f"the judge of the CLIP score, {judge.name}, may favour this model: {family}")
    if cut := truncated(judge.encoder, subject.prompts):
        evaluation.notes.append(f"{len(cut)} prompts were cut to fit the judge's {judge.encoder.max_tokens} tokens")
    return {"judge_family": family} if family else {}


def _bound_rows(subject: Subject, evaluation: Evaluation, quiet: bool) -> list[Row]:
    """Returns the rows of the bound of captioned images: no guidance, sampler or judge is part of it."""
    images = evaluation.bound_images or evaluation.reference
    assert isinstance(subject, ModelSamples) and isinstance(images, ReferenceImages)
    n = len(images) if evaluation.bound_images else min(len(subject.prompts), len(images))
    captions, seed, contrast = images.captions[:n], subject.sampling.seed, evaluation.contrast

    def make() -> dict[str, np.ndarray]:
        report = latent_bound(
            subject.pipeline,
            images.batch,
            captions,
            draws=evaluation.draws,
            seed=seed,
            batch_size=evaluation.batch,
            contrast=contrast,
            quiet=quiet,
        )
        return {"rows": np.array(json.dumps(report.rows()))}

    where = (subject.dtype, subject.pipeline.device.type, *([contrast] if contrast else []))
    key = digest("bound", subject.fingerprint, images.hash, captions, seed, evaluation.draws, evaluation.batch, *where)
    flat: list[dict[str, Any]] = json.loads(str(evaluation.store.arrays("bound", Task(key, n, make))["rows"]))
    protocol = Protocol(
        n=n,
        size=images.size,
        preparation=images.preparation,
        reference=images.hash,
        prompts=prompts_hash(captions),
        model=subject.fingerprint,
        text_encoder=subject.text_encoder,
        seeds=str(seed),
        dtype=subject.dtype,
    )
    return [
        Row(
            metric=row["metric"],
            value=row["value"],
            protocol=protocol,
            se=row["se"],
            ci95=tuple(row["ci95"]),
            method="jackknife by caption",
            extra={name: row[name] for name in BOUND_KEYS if name in row},
        )
        for row in flat
    ]
