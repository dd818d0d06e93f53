"""Orders of `t2i generate` carried out: the model loaded, every request checked, pictures written batch by batch."""

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import typer
from PIL import Image

from t2i.cli.generate_options import Order, Reading, say, weights_of
from t2i.cli.generate_request import only, request_of, settings_key, settings_of, written_in
from t2i.errors import ConfigError, RunFailed
from t2i.files import sha256, write_png
from t2i.interop.lora import lora_files, merge_lora
from t2i.nn.attention import set_attention_backend
from t2i.pipeline import Pipeline
from t2i.pipeline.job import Job, Resolved
from t2i.pipeline.load import hashed_files, load_vae, locate
from t2i.pipeline.outputs import Pictures
from t2i.progress import progress
from t2i.report.grid import image_grid
from t2i.text.inversion import add_embedding

# The pipeline's arguments by the names that they have here; plain words only where they are one of them.
FLAGS = {
    "num_images_per_prompt": "--count",
    "num_inference_steps": "--steps",
    "guidance_scale": "--cfg",
    "guidance_rescale": "--guidance-rescale",
    "guidance_interval": "--guidance-interval",
    "variation_seeds": "--variation-seed",
    "variation_strength": "--variation-strength",
    "batch_size": "--batch-size",
    "seeds: ": "--seed: ",
    "strength is": "--strength is",
    "mask is": "--mask is",
    "an image: give image": "a picture: give --init-image",
    "inpainting: give image and mask": "inpainting: give --init-image and --mask",
    "inpainting: give mask": "inpainting: give --mask",
    **{f"{word} = ": f"--{word} = " for word in ("solver", "eta", "device", "strength", "spacing", "sigmas")},
}
_NAMES = re.compile(rf"(?<![\w-])(?:{'|'.join(FLAGS)})")
PREVIEW = "preview.png"
AS_IT_IS = Reading()


@dataclass(frozen=True)
class Session:
    """What is the same for every order."""

    model: Path
    out: Path
    device: str | None
    batch_size: int
    metadata: bool
    resume: bool
    preview_every: int | None
    reading: Reading = AS_IT_IS


def run(session: Session, orders: list[Order]) -> None:
    """Carry out the orders; messages call everything as the flags do."""
    with warnings.catch_warnings(), _as_flags():
        warnings.simplefilter("always", UserWarning)
        said: set[str] = set()

        def show(message: Warning | str, *_: Any, **__: Any) -> None:
            if str(message) not in said:
                said.add(str(message))
                say(str(message))

        warnings.showwarning = show
        _run(session, orders)


def _run(session: Session, orders: list[Order]) -> None:
    pipeline, made_by = _open(session, orders[0])
    asked: list[tuple[Order, Resolved]] = []
    written = written_in(session.out) if session.resume else set()
    skipped = 0
    for order in orders:
        with _at(order.where):
            found = pipeline.resolve(request_of(order, session.batch_size))
            if session.resume:
                keys = [settings_key(settings_of(found, k, order, made_by)) for k in range(found.count)]
                left = [k for k, key in enumerate(keys) if key not in written]
                skipped += found.count - len(left)
                if len(left) < found.count:
                    found = pipeline.resolve(only(found.request, left)) if left else None
        if found is not None:
            asked.append((order, found))
    if session.resume:
        say(f"{skipped} {'picture is' if skipped == 1 else 'pictures are'} in {session.out} already: left out")
    if not asked:
        typer.echo(f"{session.out}: nothing is left to do")
        return
    _draw(session, pipeline, made_by, asked)


def _draw(session: Session, pipeline: Pipeline, made_by: dict[str, Any], asked: list[tuple[Order, Resolved]]) -> None:
    """Sample and write every picture; what is finished stays, whatever happens."""
    with _at(asked[0][0].where):
        job = pipeline.prepare(asked[0][1])  # before the folder is made: a fault in a prompt leaves nothing behind
    seeds, count = job.seeds, sum(found.count for _, found in asked)
    assert seeds is not None
    _say_truncated(job)
    say(f"seed {seeds[0]}, {count} {'picture' if count == 1 else 'pictures'}")
    pictures = Pictures(session.out)
    last = pictures.folder
    try:
        with progress("steps", sum(len(found.timesteps) * len(found.batches) for _, found in asked)) as report:
            step = _Step(session, pictures, report)
            for i, (order, found) in enumerate(asked):
                if i:
                    with _at(order.where):
                        job = pipeline.prepare(found)
                    _say_truncated(job)
                drawn = (picture for batch in pipeline.run(job, callback=step) for picture in batch)
                for k, picture in enumerate(drawn):
                    last = pictures.add(picture, settings_of(job, k, order, made_by), metadata=session.metadata)
    except KeyboardInterrupt:
        say(f"interrupted; {pictures.next - pictures.first} of {count} pictures are in {pictures.folder}")
        raise
    except torch.OutOfMemoryError as error:
        raise RunFailed(f"out of memory: lower --batch-size or --size ({str(error).splitlines()[0]})") from None
    _report(pictures, last, count, seeds[0])


@dataclass
class _Step:
    """What happens after each step: progress, and a preview where one is asked for."""

    session: Session
    pictures: Pictures
    report: Callable[[int], None]
    done: int = 0

    def __call__(self, pipeline: Pipeline, index: int, _timestep: int, tensors: dict[str, Any]) -> None:
        self.done += 1
        self.report(self.done)
        every = self.session.preview_every
        if every and (index + 1) % every == 0:
            _preview(pipeline, tensors["latents"], self.pictures.folder)


def _preview(pipeline: Pipeline, latents: torch.Tensor, folder: Path) -> None:
    factor = pipeline.autoencoder.factor
    small = pipeline.preview(latents)
    sheet = image_grid([p.resize((p.width * factor, p.height * factor), Image.Resampling.BICUBIC) for p in small])
    write_png(folder / PREVIEW, sheet)


def _open(session: Session, order: Order) -> tuple[Pipeline, dict[str, Any]]:
    """The pipeline as all orders have it, and what its pictures say of it."""
    options, model, how = order.options, session.model, session.reading
    device = session.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = options.get("dtype", "float32")
    place = locate(model, variant=how.variant, revision=how.revision)
    if how.config is None and (config := order.made_with.get("model_config")) is not None and place.is_file():
        raise ValueError(f"{order.made_with['file']}: its model was read by the files of {config!r}; give --config DIR")
    prediction = how.prediction or (order.made_with.get("prediction_type") if place.is_file() else None)
    pipeline = Pipeline.from_pretrained(place, variant=how.variant, config=how.config, prediction_type=prediction)
    for line in pipeline.report:
        say(f"model: {line}")
    name = model.resolve().name if model.is_dir() else model.name if model.is_file() else str(model)
    digest = sha256(*hashed_files(place, how.variant))
    made_by = {"model": name, "model_sha256": digest, "dtype": dtype, "rng": "cpu"}
    made_by |= {} if how.config is None else {"model_config": how.config.resolve().name}
    made_by |= {} if prediction is None else {"prediction_type": prediction}
    if options.get("vae") is not None:
        pipeline = _with_vae(pipeline, options["vae"])
        made_by |= {"vae": options["vae"].name, "vae_sha256": sha256(*weights_of(options["vae"]))}
    embeddings = options.get("embeddings", [])
    for file in embeddings:
        say(add_embedding(pipeline.text_encoder, file))
    if embeddings:
        made_by["embeddings"] = [[file.name, sha256(file)] for file in embeddings]
    for file, weight in (loras := options.get("loras", [])):
        say(merge_lora(pipeline.networks, file, weight))
    if loras:
        made_by["loras"] = [[file.resolve().name, sha256(*lora_files(file)), weight] for file, weight in loras]
    pipeline.to(device, getattr(torch, dtype))
    if (tile := options.get("vae_tile")) is not None:
        pipeline.enable_vae_tiling(tile)
        made_by["vae_tile"] = tile
    if (backend := options.get("attention", "sdpa")) != "sdpa":
        set_attention_backend(pipeline.generator.unet, backend)
        made_by["attention"] = backend
    if order.made_with:
        file, wanted = order.made_with["file"], order.made_with["model_sha256"]
        if wanted is None:
            say(f"{file}: another program's picture; {made_by['model']!r} draws it its own way")
        elif wanted != made_by["model_sha256"]:
            say(f"{file}: was made with other weights than those of {made_by['model']!r}: another picture comes out")
    return pipeline, made_by


def _with_vae(pipeline: Pipeline, path: Path) -> Pipeline:
    """The pipeline with another VAE: a folder of its own, or weights by its own VAE's config."""
    vae, report = load_vae(path, pipeline.autoencoder)
    for line in report:
        say(f"vae: {line}")
    parts = (pipeline.scheduler, pipeline.defaults, pipeline.report)
    return Pipeline(pipeline.text_encoder, pipeline.generator, vae, *parts)


def _report(pictures: Pictures, last: Path, count: int, seed: int | None) -> None:
    """Where the pictures are."""
    grid, first = pictures.grid(), f"{pictures.first:05}-{seed}.png"
    names = first if count == 1 else f"{first} to {last.name}"
    typer.echo(f"{pictures.folder}: {names}, seed {seed}")
    if grid is not None:
        shown = len(pictures.shown)
        typer.echo(f"{grid}" + (f" (the first {shown} of {count})" if shown < count else ""))


def _say_truncated(job: Job) -> None:
    assert isinstance(job.prompts, list)
    for prompt, rest in dict(zip(job.prompts, job.texts.truncated, strict=True)).items():
        if rest:
            say(f"prompt {prompt!r} is too long, these words are left out: {rest!r}")
    if rest := job.texts.negative_truncated[0]:
        say(f"negative prompt {job.request.negative_prompt!r} is too long, these words are left out: {rest!r}")


@contextmanager
def _at(where: str) -> Iterator[None]:
    """Faults of an order name the line that it comes from."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}" if where else str(error)) from None


@contextmanager
def _as_flags() -> Iterator[None]:
    """Messages call the pipeline's arguments as the flags do."""
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        raise ValueError(_NAMES.sub(lambda found: FLAGS[found[0]], str(error))) from None
