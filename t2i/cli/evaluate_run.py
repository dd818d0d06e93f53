"""`t2i evaluate` carried out: everything opened and checked, then the stages, then what is left in the folder."""

import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import typer

from t2i.cli.generate_options import SHIPPED, find_model, read_prompts, say
from t2i.data.transforms import to_float, to_pixels
from t2i.evaluation.clip_score import Judge, open_judge
from t2i.evaluation.contestants import Finished, Model, Sampling, is_finished, native_sizes
from t2i.evaluation.evaluate import Evaluation
from t2i.evaluation.features import Features, open_features
from t2i.evaluation.figures import shown
from t2i.evaluation.frechet import Reference
from t2i.evaluation.measures import OF_FEATURES, PARTS, local_name, metrics_of
from t2i.evaluation.reference import ReferencePictures, open_reference
from t2i.evaluation.report import Page, write
from t2i.evaluation.rows import Row, read_rows
from t2i.evaluation.setting import SHOWN, choose_prompts
from t2i.evaluation.store import Store
from t2i.files import read_json
from t2i.pipeline import Pipeline
from t2i.progress import progress
from t2i.report.grid import LabelledGrid
from t2i.training.distributed import process_state

FLAGS = {"num_inference_steps": "--steps", "guidance_scale": "--cfg", "height = ": "--size: height = "}
FLAGS |= {"width = ": "--size: width = ", "give height": "give --size", "give width": "give --size"}
SAID = (*OF_FEATURES, *PARTS, "clip_score", "skill_binding", "caption_info")  # on the terminal
FEATURES = Path("checkpoints/features")
SHOWN_SIDE = 128  # about how wide a small picture is on the page


@dataclass(frozen=True, kw_only=True)
class Command:
    """What is asked for; None: by default."""

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
    batch_size: int
    device: str | None
    dtype: str


def run(command: Command) -> None:
    """Evaluate, and write what came out."""
    quiet = not process_state().is_main_process
    notes: list[str] = []
    with warnings.catch_warnings(), _as_flags():
        warnings.simplefilter("always", UserWarning)

        def show(message: Warning | str, *_: Any, **__: Any) -> None:
            if str(message) not in notes:
                notes.append(str(message))
                if not quiet:
                    say(str(message))

        warnings.showwarning = show
        evaluation, origins = prepare(command, quiet)
        evaluation.notes = notes
        evaluation.check()
        gone = _check_folder(command.out, evaluation)
        if gone and not quiet:
            say(f"{command.out}: its numbers of {', '.join(gone)} are replaced; another folder (-o) would keep them")
        if isinstance(evaluation.contestant, Model) and not quiet:
            one = evaluation.contestant
            many, asked = sum(task.count for task in evaluation.drawing()), len(one.prompts) * len(one.guidances)
            calls = one.evaluations * many // asked
            say(f"{many} pictures, {calls} evaluations of the U-Net where nothing is there already")
        try:
            rows = evaluation.run(quiet)
        except KeyboardInterrupt:
            if not quiet:
                say(f"interrupted; what is finished is in {evaluation.store.folder}: the same command goes on")
            raise
        if rows is None:
            return
        names = write(rows, command.out, page(command, evaluation, origins))
    for row in rows:
        if "anchor" not in row.extra and row.metric in SAID:
            typer.echo(line(row))
    typer.echo(f"{command.out}: {', '.join(names)}")


def line(row: Row) -> str:
    """A row for the terminal."""
    g = row.protocol.guidance
    found = f"{row.label}  " + ("" if g is None else f"cfg {g:g}  ")
    found += f"{row.extra['variance']}  " if "variance" in row.extra else ""
    found += f"{row.value:.4f}" + ("" if row.se is None else f" ± {row.se:.4f}")
    return found + ("" if row.value_inf is None else f"  (FD∞ {shown(row):.4f})")


def prepare(command: Command, quiet: bool) -> tuple[Evaluation, list[int] | None]:
    """Everything opened; and which of the reference's pictures each prompt belongs to."""
    device = command.device or str(process_state().device)
    place = find_model(command.model)
    if is_finished(place):
        contestant, pipeline = _finished(command, place), None
    else:
        pipeline = Pipeline.from_pretrained(place)
        for said in pipeline.report if not quiet else ():
            say(f"model: {said}")
        sampling = Sampling(
            command.guidances, command.solver, command.steps, command.seed, command.size, command.batch_size
        )
        name = place.resolve().name if place.exists() else str(place)
        contestant = Model(pipeline, name, sampling, command.dtype)
        pipeline.to(device, getattr(torch, command.dtype))
    reference = _reference(command, contestant, quiet)
    origins = None
    if isinstance(contestant, Model):
        prompts, origins = _prompts(command, reference)
        contestant.ask(prompts)
    features = _features(command, pipeline, contestant.size, device)
    judge = _judge(command, device)
    name = command.reference.resolve().name
    store = Store(command.out / "cache")
    evaluation = Evaluation(
        contestant, reference, name, command.metrics, features, judge, store, command.batch_size, command.anchors
    )
    return evaluation, origins


def _finished(command: Command, place: Path) -> Finished:
    given = {"--cfg": command.guidances, "--solver": command.solver, "--steps": command.steps, "--size": command.size}
    given |= {"--prompts": command.prompts, "--seed": command.seed or None}
    if strange := [flag for flag, value in given.items() if value is not None]:
        raise ValueError(f"{place} holds pictures, which are drawn already: {', '.join(strange)} means nothing here")
    found = Finished(place, command.n)
    if command.reference.is_dir() and not any(command.reference.glob("*.parquet")):
        sizes = native_sizes(command.reference)
        if sizes != {found.size}:
            theirs = ", ".join(f"{w}x{h}" for w, h in sorted(sizes)[:4])
            raise ValueError(
                f"{place} holds pictures of {found.size[0]}x{found.size[1]}, {command.reference} of {theirs}: two "
                "folders of unlike sizes do not compare; resize one, or give the model with -m"
            )
    return found


def _reference(command: Command, contestant: Model | Finished, quiet: bool) -> ReferencePictures | Reference:
    with progress("reading the reference:", 1, quiet=quiet) as report:
        found = open_reference(
            command.reference, contestant.size, caption_column=command.caption_column, image_column=command.image_column
        )
        report(1)
    return found


def _prompts(command: Command, reference: ReferencePictures | Reference) -> tuple[list[str], list[int] | None]:
    if command.prompts is not None:
        given = read_prompts(command.prompts)
        return [given[i % len(given)] for i in range(command.n or len(given))], None
    if isinstance(reference, Reference):
        raise ValueError(f"{command.reference}: statistics hold no captions to draw: give --prompts FILE, one a line")
    return choose_prompts(reference.captions, command.n)


def _features(command: Command, pipeline: Pipeline | None, size: tuple[int, int], device: str) -> Features:
    if command.features is not None and not set(command.metrics) & set(OF_FEATURES):
        warnings.warn(f"--features means nothing to --metrics {','.join(command.metrics)}: not used", stacklevel=2)
    name = command.features or f"local:{_shipped(FEATURES, '--features')}"
    found = open_features(name, None if pipeline is None else pipeline.autoencoder, size)
    found.name = local_name(found.name)
    return found.to(device)


def _judge(command: Command, device: str) -> Judge | None:
    if "clip" not in command.metrics:
        if command.judge is not None:
            raise ValueError("--judge means nothing without the metric clip: add it to --metrics")
        return None
    name = command.judge or f"local:{_shipped(FEATURES, '--judge')}+{_shipped(SHIPPED, '--judge')}"
    found = open_judge(name)
    found.name = local_name(found.name)
    return found.to(device)


def _shipped(folder: Path, flag: str) -> Path:
    """A folder of the project, under the current one or next to the package."""
    import t2i

    for place in (folder, Path(t2i.__file__).parent.parent / folder):
        if place.is_dir():
            return place
    raise ValueError(f"{folder} is neither here nor next to the package: give {flag}")


def _check_folder(out: Path, evaluation: Evaluation) -> list[str]:
    """Refuse to write over the numbers of something else; of the same model and reference, what would be lost."""
    path = out / "metrics.json"
    if not path.is_file():
        return []
    said = read_json(path).get("settings", {})
    for key, value in _identity(evaluation).items():
        if isinstance(said, dict) and said.get(key) != value:
            raise ValueError(f"{out} holds the numbers of another {key} ({said.get(key)}): give another folder with -o")
    return sorted(metrics_of(read_rows(out)) - set(evaluation.metrics))


def _identity(evaluation: Evaluation) -> dict[str, str]:
    one = evaluation.contestant
    return {"model": f"{one.name}, {(one.fingerprint or 'unknown')[:16]}", "reference": evaluation.reference_hash[:16]}


def page(command: Command, evaluation: Evaluation, origins: list[int] | None) -> Page:
    """What the page says, and the sheet of samples."""
    one = evaluation.contestant
    protocol = evaluation.protocol(None)
    many = "" if protocol.n_ref is None else f" of {protocol.n_ref} pictures"
    how = ", ".join(str(part) for part in (one.solver, f"{one.steps} steps" if one.steps else None) if part)
    summary = (
        f"{len(one.prompts)} pictures at each guidance, {how or 'drawn before'}, against {evaluation.reference_name}"
    )
    said = {key: value for key, value in protocol.model_dump(mode="json").items() if value is not None}
    said |= {"model": one.name} | _identity(evaluation)
    said |= {"size": f"{one.size[0]}x{one.size[1]}", "batch": str(evaluation.batch), "torch": torch.__version__}
    title = f"Evaluation of {one.name}"
    told = {key: str(value) for key, value in said.items()}
    words = shlex.join(["t2i", *sys.argv[1:]])
    return Page(title, summary + many + ".", evaluation.notes, told, words, samples(evaluation, origins))


def samples(evaluation: Evaluation, origins: list[int] | None) -> tuple[LabelledGrid, list[Any]]:
    """The first pictures of each guidance, beside the reference's own where the prompts are its captions."""
    one, reference = evaluation.contestant, evaluation.reference
    rows = range(min(SHOWN, len(one.prompts)))
    width, height = one.size
    times = max(1, round(SHOWN_SIDE / max(one.size)))
    columns = {("as drawn" if g is None else f"cfg = {g:g}"): s.read(rows) for g, s in evaluation.sets.items()}
    if origins is not None and isinstance(reference, ReferencePictures):
        columns = {"reference": reference.read([origins[i] for i in rows])} | columns
    drawn = {name: to_pixels(to_float(pixels)) for name, pixels in columns.items()}
    size = (width * times, height * times)
    names = tuple(one.prompts[i] for i in rows)
    sheet = LabelledGrid("Samples: one prompt and one noise a row", size, tuple(columns), names)
    return sheet, [drawn[name][i].resize(size, 0) for i in rows for name in drawn]


@contextmanager
def _as_flags() -> Iterator[None]:
    """Messages call the pipeline's arguments as the flags do."""
    try:
        yield
    except ValueError as error:
        message = str(error)
        for name, flag in FLAGS.items():
            message = message.replace(name, flag)
        raise ValueError(message) from None
