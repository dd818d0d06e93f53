"""`t2i generate PROMPT...`: images of prompts in a folder."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from t2i.cli.messages import warnings_as_messages
from t2i.cli.options import Device, Model, given_settings, option
from t2i.errors import ConfigError
from t2i.pipeline.find import Reading, find_model
from t2i.pipeline.jobs import Job, read_jobs, read_prompts, repeat, with_seeds
from t2i.pipeline.settings import MODEL, OUTPUT, RUN, TEXT

Option = typer.Option


def generate(
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT...", help="One image each, or --count")] = None,
    negative: Annotated[str | None, option("negative")] = None,
    count: Annotated[int, Option("-c", "--count", help="Images per prompt", rich_help_panel=TEXT)] = 1,
    prompts_file: Annotated[
        Path | None,
        Option(
            help="One prompt a line, after those given, UTF-8; # begins a comment; .jsonl: an object a line",
            rich_help_panel=TEXT,
        ),
    ] = None,
    interpolate: Annotated[
        int | None,
        Option(metavar="N", help="N frames between each prompt and the next, all of one noise", rich_help_panel=TEXT),
    ] = None,
    prompt_syntax: Annotated[str | None, option("prompt_syntax")] = None,
    long_prompts: Annotated[bool | None, option("long_prompts")] = None,
    clip_skip: Annotated[int | None, option("clip_skip")] = None,
    from_: Annotated[
        Path | None,
        Option("--from", metavar="FILE.png", help="Repeat this image; other flags override it", rich_help_panel=TEXT),
    ] = None,
    steps: Annotated[int | None, option("steps")] = None,
    cfg: Annotated[float | None, option("cfg")] = None,
    guidance_rescale: Annotated[float | None, option("guidance_rescale")] = None,
    guidance_interval: Annotated[str | None, option("guidance_interval")] = None,
    solver: Annotated[str | None, option("solver")] = None,
    spacing: Annotated[str | None, option("spacing")] = None,
    sigmas: Annotated[str | None, option("sigmas")] = None,
    eta: Annotated[float | None, option("eta")] = None,
    seed: Annotated[int | None, option("seed")] = None,
    variation_seed: Annotated[int | None, option("variation_seed")] = None,
    variation_strength: Annotated[float | None, option("variation_strength")] = None,
    size: Annotated[str | None, option("size")] = None,
    init_image: Annotated[Path | None, option("image")] = None,
    strength: Annotated[float | None, option("strength")] = None,
    mask: Annotated[Path | None, option("mask")] = None,
    model: Model = None,
    variant: Annotated[
        str | None, Option(help="Variant of the model's weights, as fp16; plain if omitted", rich_help_panel=MODEL)
    ] = None,
    revision: Annotated[
        str | None, Option(help="Branch, tag or commit of a hub repository", rich_help_panel=MODEL)
    ] = None,
    config: Annotated[
        Path | None,
        Option(metavar="DIR", help="Diffusers folder with the JSON configs of a single file", rich_help_panel=MODEL),
    ] = None,
    prediction_type: Annotated[str | None, option("prediction_type")] = None,
    embedding: Annotated[list[Path] | None, option("embeddings")] = None,
    lora: Annotated[list[str] | None, option("loras")] = None,
    vae: Annotated[Path | None, option("vae")] = None,
    vae_tile: Annotated[int | None, option("vae_tile")] = None,
    attention: Annotated[str | None, option("attention")] = None,
    out: Annotated[
        Path, Option("-o", "--out", help="Folder of the images; nothing in it is overwritten", rich_help_panel=OUTPUT)
    ] = Path("outputs"),
    metadata: Annotated[bool, Option(help="Write the settings into the images", rich_help_panel=OUTPUT)] = True,
    resume: Annotated[
        bool,
        Option("--resume", help="Skip what --out holds already of --prompts-file X.jsonl", rich_help_panel=OUTPUT),
    ] = False,
    preview_every: Annotated[
        int | None,
        Option(metavar="N", help="Write a preview to preview.png in --out every N steps", rich_help_panel=OUTPUT),
    ] = None,
    device: Device = None,
    dtype: Annotated[str | None, option("dtype")] = None,
    engine: Annotated[str | None, option("engine")] = None,
    batch_size: Annotated[
        int, Option(help="Images at a time; up to rounding, they do not depend on it", rich_help_panel=RUN)
    ] = 8,
) -> None:
    """Generate images from prompts, with their settings inside."""
    options = given_settings(locals())
    reading = Reading(variant, revision, config, options.pop("prediction_type", None))
    if preview_every is not None and preview_every < 1:
        raise ConfigError("--preview-every", "give the number of steps, at least 1", preview_every)
    job = Job(prompts or [], options, count, interpolate)
    if from_ is not None:
        job, model = repeat(job, from_, model)
    lines = prompts_file is not None and prompts_file.suffix == ".jsonl"
    if resume and not lines:
        raise ValueError("--resume continues a --prompts-file of JSON lines, X.jsonl: give one")
    rows = read_jobs(prompts_file, job) if prompts_file is not None and lines else []
    if prompts_file is not None and not lines:
        job = replace(job, prompts=job.prompts + read_prompts(prompts_file))
    if not job.prompts and not rows:
        raise ValueError("no prompt: give PROMPT..., --prompts-file FILE or --from FILE.png")
    if resume and "seed" not in job.options and (job.prompts or not all("seed" in row.options for row in rows)):
        raise ValueError("--resume identifies images by their seeds: give --seed, or a seed in every line")
    if interpolate is not None and (rows or len(job.prompts) < 2 or interpolate < 1):
        raise ConfigError("--interpolate", "give at least 1 frame, and 2 prompts or more", interpolate)
    jobs = with_seeds([job, *rows] if job.prompts else rows, job.options.get("seed"))
    model = find_model(model)
    from t2i.pipeline.run_jobs import Session, run_jobs

    with warnings_as_messages():
        done = run_jobs(Session(model, out, device, batch_size, metadata, resume, preview_every, reading), jobs)
    typer.echo("\n".join(done))
