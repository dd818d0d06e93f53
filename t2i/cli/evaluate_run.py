"""Carries out `t2i evaluate`: opens and checks everything, runs the engine, writes the output folder."""

import shlex
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import typer

from t2i.data.transforms import to_float, to_pixels
from t2i.errors import ConfigError
from t2i.evaluation.clip_score import open_judge
from t2i.evaluation.evaluate import evaluate, image_tasks
from t2i.evaluation.evaluation import Evaluation, choose_prompts
from t2i.evaluation.features import open_features
from t2i.evaluation.figures import debiased
from t2i.evaluation.frechet import Reference
from t2i.evaluation.generated import ModelSamples, Sampling, SavedSamples, is_saved, native_sizes
from t2i.evaluation.measures import FEATURE_METRICS, PARTS, local_name, metrics_of
from t2i.evaluation.reference import ReferenceImages, open_reference
from t2i.evaluation.report import Page, write
from t2i.evaluation.rows import Row, read_rows
from t2i.evaluation.store import Store
from t2i.files import read_json
from t2i.pipeline import Pipeline
from t2i.pipeline.find import SHIPPED, find_model
from t2i.pipeline.jobs import read_prompts
from t2i.progress import progress, say
from t2i.report.grid import LabelledGrid
from t2i.training.distributed import process_state

PRINTED = (*FEATURE_METRICS, *PARTS, "clip_score", "skill_binding", "caption_info")
FEATURES = Path("checkpoints/features")
SHOWN_SIDE = 128  # pixels: small images are enlarged to about this width on the page


@dataclass(frozen=True, kw_only=True)
class Command:
    """The options of `t2i evaluate`; None: the default."""

    model: Path | None
    reference: Path
    out: Path
    n: int | None
    guidances: tuple[float, ...] | None
    metrics: tuple[str, ...]
    features: str | None
    judge: str | None
    solver: str | None
    steps: int | None
    seed: int
    size: tuple[int, int] | None
    prompts: Path | None
    caption_column: str
    image_column: str
    anchors: bool
    variance: bool
    batch_size: int
    device: str | None
    dtype: str


def run(command: Command) -> None:
    """Evaluates, and writes the results."""
    quiet = not process_state().is_main_process
    notes: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)

        def show(message: Warning | str, *_: Any, **__: Any) -> None:
            if str(message) not in notes:
                notes.append(str(message))
                if not quiet:
                    say(str(message))

        warnings.showwarning = show
        subject, evaluation, origins = prepare(command, quiet)
        evaluation.notes = notes
        evaluation.check(subject)
        if (lost := _check_folder(command.out, subject, evaluation)) and not quiet:
            say(f"{command.out}: its numbers of {', '.join(lost)} are replaced; another folder (-o) would keep them")
        if isinstance(subject, ModelSamples) and not quiet:
            count = sum(task.count for task in image_tasks(subject, evaluation))
            calls = subject.evaluations * count // (len(subject.prompts) * len(subject.guidances))
            say(f"{count} images, {calls} evaluations of the U-Net unless they are stored already")
        try:
            rows = evaluate(subject, evaluation, quiet)
        except KeyboardInterrupt:
            if not quiet:
                say(f"interrupted; finished parts are in {evaluation.store.folder}: the same command resumes")
            raise
        if rows is None:
            return
        names = write(rows, command.out, page(command, subject, evaluation, origins))
    for row in rows:
        if "anchor" not in row.extra and row.metric in PRINTED:
            typer.echo(line(row))
    typer.echo(f"{command.out}: {', '.join(names)}")


def line(row: Row) -> str:
    """Formats a row for the terminal."""
    guidance = row.protocol.guidance
    parts = [row.label, "" if guidance is None else f"cfg {guidance:g}", str(row.extra.get("variance", ""))]
    value = f"{row.value:.4f}" + ("" if row.se is None else f" ± {row.se:.4f}")
    limit = "" if row.value_inf is None else f"(FD∞ {debiased(row):.4f})"
    return "  ".join(part for part in (*parts, value, limit) if part)


def prepare(command: Command, quiet: bool) -> tuple[ModelSamples | SavedSamples, Evaluation, list[int] | None]:
    """Opens everything; also returns the index of each prompt's reference image if prompts are its captions."""
    device = command.device or str(process_state().device)
    place = find_model(command.model)
    vae = None
    if is_saved(place):
        subject = _saved_samples(command, place)
    else:
        sampling = Sampling(
            command.guidances, command.solver, command.steps, command.seed, command.size, command.batch_size
        )
        subject = open_subject(place, sampling, command.dtype, device, quiet)
        vae = subject.pipeline.autoencoder
    with progress("reading the reference:", 1, quiet=quiet) as report:
        reference = open_reference(command.reference, subject.size, command.caption_column, command.image_column)
        report(1)
    origins = None
    if isinstance(subject, ModelSamples):
        prompts, origins = _prompts(command, reference)
        subject.set_prompts(prompts)
    if command.features is not None and not set(command.metrics) & set(FEATURE_METRICS):
        warnings.warn(f"--features has no effect on --metrics {','.join(command.metrics)}", stacklevel=2)
    features = open_features(command.features or f"local:{_shipped(FEATURES, 'features')}", vae, subject.size)
    features.name = local_name(features.name)
    judge = None
    if "clip" in command.metrics:
        judge = open_judge(command.judge or f"local:{_shipped(FEATURES, 'judge')}+{_shipped(SHIPPED, 'judge')}")
        judge.name = local_name(judge.name)
        judge.to(device)
    elif command.judge is not None:
        raise ConfigError("judge", "has no effect without the metric clip: add it to --metrics", command.judge)
    evaluation = Evaluation(
        reference,
        command.metrics,
        features.to(device),
        judge,
        Store(command.out / "cache"),
        command.batch_size,
        baselines=command.anchors,
        shuffled=command.anchors,
        variance=command.variance,
    )
    return subject, evaluation, origins


def open_subject(place: Path, sampling: Sampling, dtype: str, device: str | None, quiet: bool = False) -> ModelSamples:
    """Opens a model, on a device and in a dtype."""
    pipeline = Pipeline.from_pretrained(place)
    for text in pipeline.report if not quiet else ():
        say(f"model: {text}")
    name = place.resolve().name if place.exists() else str(place)
    subject = ModelSamples(pipeline, name, sampling, dtype)
    pipeline.to(device or str(process_state().device), getattr(torch, dtype))
    return subject


def _saved_samples(command: Command, place: Path) -> SavedSamples:
    options = {"cfg": command.guidances, "solver": command.solver, "steps": command.steps, "size": command.size}
    options |= {"prompts": command.prompts, "seed": command.seed or None}
    if given := [f"--{name}" for name, value in options.items() if value is not None]:
        raise ConfigError("model", f"holds generated images, on which {', '.join(given)} has no effect", str(place))
    subject = SavedSamples(place, command.n)
    if command.reference.is_dir() and not any(command.reference.glob("*.parquet")):
        sizes = native_sizes(command.reference)
        if sizes != {subject.size}:
            others = ", ".join(f"{w}x{h}" for w, h in sorted(sizes)[:4])
            raise ConfigError(
                "reference",
                f"its images have {others}, those of {place} {subject.size[0]}x{subject.size[1]}: two folders of "
                "unlike sizes do not compare; resize one, or give the model with -m",
                str(command.reference),
            )
    return subject


def _prompts(command: Command, reference: ReferenceImages | Reference) -> tuple[list[str], list[int] | None]:
    if command.prompts is not None:
        given = read_prompts(command.prompts)
        return [given[i % len(given)] for i in range(command.n or len(given))], None
    if isinstance(reference, Reference):
        raise ConfigError(
            "reference", "statistics hold no captions to use as prompts: give --prompts FILE", str(command.reference)
        )
    return choose_prompts(reference.captions, command.n)


def _shipped(folder: Path, key: str) -> Path:
    """Returns a folder of the project, under the current folder or next to the package."""
    import t2i

    for place in (folder, Path(t2i.__file__).parent.parent / folder):
        if place.is_dir():
            return place
    raise ConfigError(key, f"its default {folder} is neither in the current folder nor next to the package: give one")


def _check_folder(out: Path, subject: ModelSamples | SavedSamples, evaluation: Evaluation) -> list[str]:
    """Raises if a folder holds numbers of another model or reference; returns the metrics that would be lost."""
    path = out / "metrics.json"
    if not path.is_file():
        return []
    settings = read_json(path).get("settings", {})
    for key, value in _identity(subject, evaluation).items():
        if isinstance(settings, dict) and settings.get(key) != value:
            raise ConfigError(
                "out",
                f"holds the numbers of another {key} ({settings.get(key)}): give another folder with -o",
                str(out),
            )
    return sorted(metrics_of(read_rows(out)) - set(evaluation.metrics))


def _identity(subject: ModelSamples | SavedSamples, evaluation: Evaluation) -> dict[str, str]:
    model = f"{subject.name}, {(subject.fingerprint or 'unknown')[:16]}"
    return {"model": model, "reference": evaluation.reference_hash[:16]}


def page(
    command: Command, subject: ModelSamples | SavedSamples, evaluation: Evaluation, origins: list[int] | None
) -> Page:
    """Returns what the page shows beside the rows: settings, notes, samples."""
    protocol = evaluation.protocol(subject, None)
    count = "" if protocol.n_ref is None else f" of {protocol.n_ref} images"
    how = ", ".join(str(x) for x in (subject.solver, subject.steps and f"{subject.steps} steps") if x)
    reference = command.reference.resolve().name
    summary = f"{len(subject.prompts)} images at each guidance, {how or 'saved'}, against {reference}{count}."
    settings = {key: value for key, value in protocol.model_dump(mode="json").items() if value is not None}
    settings |= _identity(subject, evaluation)
    settings |= {"size": f"{subject.size[0]}x{subject.size[1]}", "batch": evaluation.batch, "torch": torch.__version__}
    return Page(
        f"Evaluation of {subject.name}",
        summary,
        evaluation.notes,
        {key: str(value) for key, value in settings.items()},
        shlex.join(["t2i", *sys.argv[1:]]),
        samples(subject, evaluation, origins),
    )


def samples(
    subject: ModelSamples | SavedSamples, evaluation: Evaluation, origins: list[int] | None
) -> tuple[LabelledGrid, list[Any]]:
    """Returns the first images of each guidance, beside the reference's own where the prompts are its captions."""
    reference, rows = evaluation.reference, range(min(evaluation.shown, len(subject.prompts)))
    sets = subject.image_sets(evaluation.store, evaluation.batch)
    columns = {("as saved" if g is None else f"cfg = {g:g}"): images.read(rows) for g, images in sets.items()}
    if origins is not None and isinstance(reference, ReferenceImages):
        columns = {"reference": reference.read([origins[i] for i in rows])} | columns
    images = {name: to_pixels(to_float(pixels)) for name, pixels in columns.items()}
    images |= {name: column[: len(rows)] for name, column in evaluation.columns.items()}
    times = max(1, round(SHOWN_SIDE / max(subject.size)))
    size = (subject.size[0] * times, subject.size[1] * times)
    prompts = tuple(subject.prompts[i] for i in rows)
    grid = LabelledGrid("Samples: one prompt and one noise a row", size, tuple(images), prompts)
    return grid, [images[name][i].resize(size, 0) for i in rows for name in images]
