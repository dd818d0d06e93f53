"""Runs jobs: opens their model, checks every request before the first is drawn, and writes images batch by batch."""

import warnings
from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from t2i.data.decode import UnreadableImage, decode
from t2i.engine import check_engine, default_engine
from t2i.errors import RunFailed
from t2i.files import read_bytes, sha256, write_png
from t2i.interop.lora import lora_files, merge_lora
from t2i.nn.attention import set_attention_backend
from t2i.pipeline.find import Reading, weights_of
from t2i.pipeline.jobs import Job
from t2i.pipeline.load import hashed_files, load_vae, locate, unet_files
from t2i.pipeline.metadata import to_texts
from t2i.pipeline.outputs import ImageFolder, resumed, settings_key
from t2i.pipeline.pipeline import Pipeline
from t2i.pipeline.request import Request, check_counts
from t2i.pipeline.resolved import PreparedRequest, ResolvedRequest
from t2i.pipeline.settings import SETTINGS
from t2i.progress import counted, progress, say
from t2i.report.grid import image_grid
from t2i.text.inversion import add_embedding

PREVIEW = "preview.png"
DEFAULT_READING = Reading()


@dataclass(frozen=True)
class Session:
    """The options that all jobs share."""

    model: Path
    out: Path
    device: str | None = None
    batch_size: int = 8
    metadata: bool = True
    resume: bool = False
    preview_every: int | None = None
    reading: Reading = DEFAULT_READING


@dataclass(frozen=True)
class ResolvedJob:
    """A job as a checked request, with the settings that each of its images records."""

    job: Job
    request: ResolvedRequest
    settings: list[dict[str, Any]]


def run_jobs(session: Session, jobs: list[Job]) -> list[str]:
    """Samples and writes the images of all jobs; returns lines about them. Finished images stay if the run fails."""
    pipeline, made_by = open_pipeline(session, jobs[0])
    work = [resolve_job(pipeline, made_by, job, session) for job in jobs]
    with resumed(session.out) if session.resume else nullcontext({}) as present:
        work = missing(pipeline, work, present, session.out)
        if not work:
            return [f"{session.out}: nothing is left to do"]
        with work[0].job.located():
            prepared = pipeline.prepare(work[0].request)  # before the first image: a fault leaves nothing behind
        warn_truncated(prepared)
        seed, count = work[0].settings[0]["seed"], sum(len(one.settings) for one in work)
        say(f"seed {seed}, {counted(count, 'image')}")
        images = ImageFolder(session.out)
        last = images.folder
        steps = sum(len(one.request.plan.timesteps) * len(one.request.batches) for one in work)
        try:
            with progress("steps", steps) as report:
                step = _Step(session, images.folder, report)
                for i, one in enumerate(work):
                    if i:
                        with one.job.located():
                            prepared = pipeline.prepare(one.request)
                        warn_truncated(prepared)
                    drawn = chain.from_iterable(pipeline.run(prepared, callback=step))
                    for image, settings in zip(drawn, one.settings, strict=True):
                        last = images.add(image, settings, metadata=session.metadata)
        except KeyboardInterrupt:
            say(f"interrupted; {images.next - images.first} of {count} images are in {images.folder}")
            raise
        except torch.OutOfMemoryError as error:
            raise RunFailed(f"out of memory: lower --batch-size or --size ({str(error).splitlines()[0]})") from None
    first = f"{images.first:05}-{seed}.png"
    lines = [f"{images.folder}: {first if count == 1 else f'{first} to {last.name}'}, seed {seed}"]
    if (grid := images.grid()) is not None:
        shown = len(images.shown)
        lines.append(f"{grid}" + (f" (the first {shown} of {count})" if shown < count else ""))
    return lines


def resolve_job(pipeline: Pipeline, made_by: dict[str, Any], job: Job, session: Session) -> ResolvedJob:
    """Returns a job as a checked request; raises where its settings are more text than an image holds."""
    with job.located():
        request = pipeline.resolve(request_of(job, session.batch_size))
        settings = settings_of(request, job, made_by)
        for one in settings[request.copies - 1 :: request.copies] if session.metadata else ():
            to_texts(one)  # of each prompt the last image, whose seed is the longest
    return ResolvedJob(job, request, settings)


def missing(pipeline: Pipeline, work: list[ResolvedJob], present: Collection[str], out: Path) -> list[ResolvedJob]:
    """Returns the jobs without the images whose `settings_key` is present, which are counted in a message."""
    remaining, total = [], sum(len(one.settings) for one in work)
    for one in work:
        images = [k for k, settings in enumerate(one.settings) if settings_key(settings) not in present]
        if 0 < len(images) < len(one.settings):
            with one.job.located():
                request = pipeline.resolve(select(one.request.request, images))
            one = ResolvedJob(one.job, request, [one.settings[k] for k in images])
        if images:
            remaining.append(one)
    if done := total - sum(len(one.settings) for one in remaining):
        say(f"{out} holds {done} of {counted(total, 'image')} already: not drawn again")
    return remaining


def open_pipeline(session: Session, job: Job) -> tuple[Pipeline, dict[str, Any]]:
    """Returns the pipeline of all jobs, and the settings of its images that describe it.

    It is the session's model with the VAE, embeddings, LoRAs and dtype of the job.
    """
    options, model, reading = job.options, session.model, session.reading
    device = session.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = options.get("dtype", "float32")
    place = locate(model, variant=reading.variant, revision=reading.revision)
    if reading.config is None and (config := job.made_with.get("model_config")) is not None and place.is_file():
        raise ValueError(f"{job.made_with['file']}: its model was read by the files of {config!r}; give --config DIR")
    prediction = reading.prediction or (job.made_with.get("prediction_type") if place.is_file() else None)
    pipeline = Pipeline.from_pretrained(
        place, variant=reading.variant, config=reading.config, prediction_type=prediction
    )
    for line in pipeline.report:
        say(f"model: {line}")
    name = model.resolve().name if model.is_dir() else model.name if model.is_file() else str(model)
    digest = sha256(*hashed_files(place, reading.variant))
    made_by = {"model": name, "model_sha256": digest, "dtype": dtype, "rng": "cpu"}
    made_by |= {} if reading.config is None else {"model_config": reading.config.resolve().name}
    made_by |= {} if prediction is None else {"prediction_type": prediction}
    if (path := options.get("vae")) is not None:
        vae, report = load_vae(path, pipeline.autoencoder)
        for line in report:
            say(f"vae: {line}")
        parts = (pipeline.scheduler, pipeline.defaults, pipeline.report)
        pipeline = Pipeline(pipeline.text_encoder, pipeline.generator, vae, *parts)
        made_by |= {"vae": path.name, "vae_sha256": sha256(*weights_of(path))}
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
    if (engine := check_engine(options.get("engine") or default_engine())) != "torch":
        pipeline.use_engine(engine)
        made_by["engine"] = engine
    if job.made_with:
        file, digest = job.made_with["file"], job.made_with["model_sha256"]
        if digest is None:
            say(f"{file}: an image of another program; {made_by['model']!r} draws it its own way")
        elif digest == made_by["model_sha256"]:
            pass
        elif digest == sha256(*unet_files(place, reading.variant)):
            say(f"{file}: records the U-Net alone, which is that of {made_by['model']!r}; the other parts may differ")
        else:
            say(f"{file}: was made with other weights than those of {made_by['model']!r}: another image comes out")
    return pipeline, made_by


def request_of(job: Job, batch_size: int) -> Request:
    """Returns the request of a job."""
    options = job.options
    prompts, towards, copies = job.prompts, None, range(job.count)
    frames = (len(prompts) - 1) * (job.interpolate + 1) + 1 if job.interpolate else len(prompts)
    check_counts(Request(num_images_per_prompt=job.count, batch_size=batch_size), frames)
    seeds = [options["seed"] + k for k in range(frames * job.count)]
    if job.interpolate:
        between = [i / (job.interpolate + 1) for i in range(job.interpolate + 1)]
        frames = [(a, (b, fraction) if fraction else None) for a, b in pairwise(prompts) for fraction in between]
        frames.append((prompts[-1], None))
        prompts, towards = [prompt for prompt, _ in frames], [aim for _, aim in frames]
        seeds = [options["seed"] + c for _ in frames for c in copies]
    elif "towards" in options:
        towards = [(options["towards"][0], options["towards"][1])] * len(prompts)
    arguments = {
        setting.parameter: options[name]
        for name, setting in SETTINGS.items()
        if setting.parameter is not None and name in options
    }
    if "variation_seed" in options:
        arguments["variation_seeds"] = [options["variation_seed"] + k for k in range(len(seeds))]
        seeds = [options["seed"]] * len(seeds)
    width, height = map(int, options["size"].split("x")) if "size" in options else (None, None)
    arguments |= {
        "prompt": prompts,
        "seeds": seeds,
        "towards": towards,
        "num_images_per_prompt": job.count,
        "height": height,
        "width": width,
        "batch_size": batch_size,
        "image": _read_image(options.get("image"), "image", "white"),
        "mask_image": _read_image(options.get("mask"), "mask", "black"),
        "guidance_interval": tuple(options.get("guidance_interval", (0.0, 1.0))),
    }
    return Request(**arguments)


def select(request: Request, images: list[int]) -> Request:
    """Returns a resolved request for some of its images."""
    copies = request.num_images_per_prompt

    def chosen(values: Any, share: int = 1) -> Any:
        return None if values is None else [values[k // share] for k in images]

    return replace(
        request,
        prompt=chosen(request.prompt, copies),
        towards=chosen(request.towards, copies),
        seeds=chosen(request.seeds),
        variation_seeds=chosen(request.variation_seeds),
        num_images_per_prompt=1,
    )


def _read_image(path: Path | None, setting: str, background: str) -> Image.Image | None:
    if path is None:
        return None
    flag = SETTINGS[setting].flag
    try:
        return decode(read_bytes(path), background)
    except UnreadableImage as error:
        raise ValueError(f"{flag} {path}: {error}") from None


def settings_of(resolved: ResolvedRequest, job: Job, made_by: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the settings of each image; those at their defaults are left out."""
    request, files = resolved.request, dict[str, Any]()
    assert resolved.seeds is not None and not isinstance(request.variation_seeds, int)
    for name in ("image", "mask"):
        if (path := job.options.get(name)) is not None:
            files |= {name: path.name, f"{name}_sha256": sha256(path)}
    shared = {s.name: getattr(request, s.parameter) for s in SETTINGS.values() if s.parameter is not None}
    shared |= {
        "negative": request.negative_prompt or "",
        "size": f"{resolved.width}x{resolved.height}",
        "guidance_interval": list(request.guidance_interval),
        "image": None,
        "mask": None,
    } | files
    images = []
    for k in range(resolved.count):
        aim = None if request.towards is None else request.towards[k // resolved.copies]
        values = shared | {
            "prompt": resolved.prompts[k // resolved.copies],
            "seed": resolved.seeds[k],
            "towards": None if aim is None else [*aim],
            "variation_seed": None if request.variation_seeds is None else request.variation_seeds[k],
        }
        images.append({name: value for name, value in values.items() if value != SETTINGS[name].default} | made_by)
    return images


def warn_truncated(prepared: PreparedRequest) -> None:
    """Warns of the prompts that do not fit the text encoder, with the words that are left out."""
    texts, request = prepared.texts, prepared.request
    kinds = ["prompt"] * len(prepared.prompts) + ["negative prompt"]
    prompts = [*prepared.prompts, request.negative_prompt]
    cut = zip(kinds, prompts, [*texts.truncated, texts.negative_truncated[0]], strict=True)
    for kind, prompt, words in cut:
        if words:
            warnings.warn(f"{kind} {prompt!r} is too long, these words are left out: {words!r}", stacklevel=2)


@dataclass
class _Step:
    """The callback after each step: it reports progress, and writes a preview every `preview_every` steps."""

    session: Session
    folder: Path
    report: Callable[[int], None]
    done: int = 0

    def __call__(self, pipeline: Pipeline, index: int, _timestep: int, tensors: dict[str, Any]) -> None:
        self.done += 1
        self.report(self.done)
        every = self.session.preview_every
        if every and (index + 1) % every == 0:
            factor = pipeline.autoencoder.factor
            small = pipeline.preview(tensors["latents"])
            large = [p.resize((p.width * factor, p.height * factor), Image.Resampling.BICUBIC) for p in small]
            write_png(self.folder / PREVIEW, image_grid(large))
