"""`t2i evaluate` below its command line: opens the subject and the networks, and checks the output folder."""

import warnings
from pathlib import Path

import torch

import t2i
from t2i.errors import ConfigError
from t2i.evaluation.clip_score import Judge, open_judge
from t2i.evaluation.evaluate import image_tasks
from t2i.evaluation.evaluation import Evaluation, choose_prompts
from t2i.evaluation.features import Features, open_features
from t2i.evaluation.frechet import Reference
from t2i.evaluation.generated import ModelSamples, Sampling, SavedSamples, native_sizes
from t2i.evaluation.measures import FEATURE_METRICS, local_name, metrics_of
from t2i.evaluation.reference import ReferenceImages
from t2i.evaluation.rows import read_rows
from t2i.files import check_writable, read_json
from t2i.pipeline import Pipeline

FEATURES = Path("checkpoints/features")  # of the project: by default the features, and the image tower of the judge
JUDGE_TEXT = Path("checkpoints/glyphs")  # by default the text tower of the judge

Samples = ModelSamples | SavedSamples


def open_model(place: Path, sampling: Sampling, dtype: str, device: str) -> ModelSamples:
    """Opens a model on a device in a dtype; `subject.pipeline.report` lists what was inferred or ignored."""
    pipeline = Pipeline.from_pretrained(place)
    name = place.resolve().name if place.exists() else str(place)
    subject = ModelSamples(pipeline, name, sampling, dtype)
    pipeline.to(device, getattr(torch, dtype))
    return subject


def open_saved(folder: Path, n: int | None, reference: Path, sampling: Sampling, prompts: Path | None) -> SavedSamples:
    """Opens saved images; raises ConfigError for settings without effect and for images of other sizes as reference."""
    options = {"cfg": sampling.guidances, "solver": sampling.solver, "steps": sampling.steps, "size": sampling.size}
    options |= {"prompts": prompts, "seed": sampling.seed or None}
    if given := [f"--{name}" for name, value in options.items() if value is not None]:
        raise ConfigError("model", f"holds generated images, on which {', '.join(given)} has no effect", str(folder))
    subject = SavedSamples(folder, n)
    if reference.is_dir() and not any(reference.glob("*.parquet")):
        sizes = native_sizes(reference)
        if sizes != {subject.size}:
            others = ", ".join(f"{w}x{h}" for w, h in sorted(sizes)[:4])
            raise ConfigError(
                "reference",
                f"its images have {others}, those of {folder} {subject.size[0]}x{subject.size[1]}: two folders of "
                "unlike sizes do not compare; resize one, or give the model with -m",
                str(reference),
            )
    return subject


def set_prompts(
    subject: ModelSamples, prompts: list[str] | None, reference: ReferenceImages | Reference, n: int | None
) -> list[int] | None:
    """Sets the prompts: those given, repeated to `n`, or the captions of the reference, whose indices are returned."""
    if prompts is not None:
        subject.set_prompts([prompts[i % len(prompts)] for i in range(n or len(prompts))])
        return None
    if isinstance(reference, Reference):
        raise ConfigError("reference", "statistics hold no captions to use as prompts: give --prompts FILE")
    chosen, origins = choose_prompts(reference.captions, n)
    subject.set_prompts(chosen)
    return origins


def open_networks(
    features: str | None, judge: str | None, metrics: tuple[str, ...], subject: Samples, device: str
) -> tuple[Features, Judge | None]:
    """Opens the features and, for the metric clip, the judge by name; None: those of the project."""
    if features is not None and not set(metrics) & set(FEATURE_METRICS):
        warnings.warn(f"--features has no effect on --metrics {','.join(metrics)}", stacklevel=2)
    vae = subject.pipeline.autoencoder if isinstance(subject, ModelSamples) else None
    network = open_features(features or f"local:{_shipped(FEATURES, 'features')}", vae, subject.size)
    network.name = local_name(network.name)
    if "clip" not in metrics:
        if judge is not None:
            raise ConfigError("judge", "has no effect without the metric clip: add it to --metrics", judge)
        return network.to(device), None
    opened = open_judge(judge or f"local:{_shipped(FEATURES, 'judge')}+{_shipped(JUDGE_TEXT, 'judge')}")
    opened.name = local_name(opened.name)
    return network.to(device), opened.to(device)


def _shipped(folder: Path, key: str) -> Path:
    """Returns a folder of the project, under the current folder or next to the package."""
    for place in (folder, Path(t2i.__file__).parent.parent / folder):
        if place.is_dir():
            return place
    raise ConfigError(key, f"its default {folder} is neither in the current folder nor next to the package: give one")


def check_folder(out: Path, subject: Samples, evaluation: Evaluation) -> list[str]:
    """Raises if a folder is read-only or holds the numbers of another model or reference; returns messages."""
    check_writable(out)
    messages = []
    if (path := out / "metrics.json").is_file():
        try:
            settings, rows = read_json(path).get("settings", {}), read_rows(path)
        except ValueError as error:
            raise ConfigError(
                "out", f"{error}; delete this file, and the same command computes the numbers again", str(out)
            ) from None
        for key, value in evaluation.compared(subject).items():
            if isinstance(settings, dict) and settings.get(key) != value:
                raise ConfigError(
                    "out",
                    f"holds the numbers of another {key} ({settings.get(key)}): give another folder with -o",
                    str(out),
                )
        if lost := sorted(metrics_of(rows) - set(evaluation.metrics)):
            messages.append(
                f"{out}: its numbers of {', '.join(lost)} are replaced; another folder (-o) would keep them"
            )
    if isinstance(subject, ModelSamples):
        count = sum(task.count for task in image_tasks(subject, evaluation))
        calls = subject.evaluations * count // (len(subject.prompts) * len(subject.guidances))
        messages.append(f"{count} images, {calls} evaluations of the U-Net unless they are stored already")
    return messages
