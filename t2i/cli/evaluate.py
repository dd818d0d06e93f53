"""`t2i evaluate -m MODEL --reference IMAGES -o DIR`: distances, scores and bounds, with intervals and baselines."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from t2i.cli.messages import warnings_as_messages
from t2i.cli.options import check_dtype, parse_size
from t2i.errors import ConfigError
from t2i.pipeline.find import SHIPPED, find_model
from t2i.pipeline.jobs import read_prompts
from t2i.progress import progress, say

Option = typer.Option


def evaluate(
    reference: Annotated[
        Path,
        Option(help="captioned images, a folder or FILE.parquet; or statistics of features, FILE.npz (for fd only)"),
    ],
    out: Annotated[
        Path, Option("-o", "--out", help="folder for numbers, the page and the cache that an interrupted run resumes")
    ],
    model: Annotated[
        Path | None,
        Option(
            "-m",
            "--model",
            help=f"a model's folder, a single file, a hub name, or a folder of images; default: the shipped {SHIPPED}",
        ),
    ] = None,
    n: Annotated[int | None, Option("--n", min=2, help="images at each guidance; default: one a caption")] = None,
    cfg: Annotated[
        str | None, Option(metavar="A,B,..", help="guidances, all on the same noise; default: the model's")
    ] = None,
    metrics: Annotated[str, Option(help="some of fd, kid, prdc, cmmd, clip, skills, vlb")] = "fd,kid,prdc",
    features: Annotated[
        str | None,
        Option(
            help="inception:FILE (FID), dinov2:ID, clip:ID, openclip:ARCH/PRETRAINED, local:DIR, vae-latent; "
            "default: the shipped local:checkpoints/features"
        ),
    ] = None,
    judge: Annotated[
        str | None,
        Option(help="for the metric clip: clip:ID, openclip:ARCH/PRETRAINED, local:IMAGE+TEXT; default: the shipped"),
    ] = None,
    variance: Annotated[
        bool,
        Option(
            "--variance",
            help="also compare sigma^2 = beta, beta tilde and 0 in Algorithm 2, and DDIM, at the first guidance",
        ),
    ] = False,
    solver: Annotated[str | None, Option(help="ddim, dpm++2m, euler-a, ...; default: the model's")] = None,
    steps: Annotated[
        int | None, Option(help="default: the model's; for --variance all of the model's, often 1000")
    ] = None,
    seed: Annotated[int, Option(min=0, help="seed of the first image; image k uses seed + k")] = 0,
    size: Annotated[str | None, Option(metavar="WxH", help="default: the size that the model was trained at")] = None,
    prompts: Annotated[
        Path | None, Option(metavar="FILE", help="one prompt a line; default: the reference's captions")
    ] = None,
    caption_column: Annotated[str, Option(help="column of captions in the reference")] = "text",
    image_column: Annotated[str, Option(help="column of images in a parquet reference")] = "image",
    anchors: Annotated[
        bool, Option(help="also measure halves of the reference, reconstructions, noise and shuffled captions")
    ] = True,
    batch_size: Annotated[int, Option(min=1, help="images in a batch")] = 32,
    device: Annotated[str | None, Option(help="cpu, cuda, cuda:1, ...; default: cuda if available")] = None,
    dtype: Annotated[str | None, Option(help="the model's: fp32, bf16 or fp16; default: fp32")] = None,
) -> None:
    """Measure a model against reference images. The same command resumes an interrupted run.

    Under torchrun or `accelerate launch` the ranks share the work; the numbers are the same.
    """
    from t2i.evaluation.evaluate import evaluate as compute
    from t2i.evaluation.evaluation import Evaluation
    from t2i.evaluation.generated import Sampling, SavedSamples, is_saved
    from t2i.evaluation.measures import parse_metrics
    from t2i.evaluation.reference import open_reference
    from t2i.evaluation.report import page_of, printed_lines, write
    from t2i.evaluation.run import check_folder, open_model, open_networks, open_saved, set_prompts
    from t2i.evaluation.store import Store
    from t2i.training.distributed import process_state

    guidances, chosen, (width, height) = parse_guidances(cfg), parse_metrics(metrics), parse_size(size)
    pixels = None if width is None or height is None else (width, height)
    sampling = Sampling(guidances, solver, steps, seed, pixels, batch_size)
    device, quiet = device or str(process_state().device), not process_state().is_main_process
    report: Callable[[str], None] = (lambda text: None) if quiet else say
    with warnings_as_messages(quiet) as notes:
        if is_saved(place := find_model(model)):
            subject, origins = open_saved(place, n, reference, sampling, prompts), None
        else:
            subject = open_model(place, sampling, check_dtype(dtype) or "float32", device)
            for text in subject.pipeline.report:
                report(f"model: {text}")
        with progress("reading the reference:", 1, quiet=quiet) as done:
            real = open_reference(reference, subject.size, caption_column, image_column)
            done(1)
        if not isinstance(subject, SavedSamples):
            origins = set_prompts(subject, None if prompts is None else read_prompts(prompts), real, n)
        networks = open_networks(features, judge, chosen, subject, device)
        evaluation = Evaluation(
            real,
            chosen,
            *networks,
            Store(out / "cache"),
            batch_size,
            baselines=anchors,
            shuffled=anchors,
            variance=variance,
            notes=notes,
        )
        evaluation.check(subject)
        for text in check_folder(out, subject, evaluation):
            report(text)
        try:
            rows = compute(subject, evaluation, quiet)
        except KeyboardInterrupt:
            report(f"interrupted; finished parts are in {evaluation.store.folder}: the same command resumes")
            raise
        if rows is None:
            return
        command = shlex.join(["t2i", *sys.argv[1:]])
        names = write(rows, out, page_of(subject, evaluation, reference.resolve().name, origins, command))
    for line in [*printed_lines(rows), f"{out}: {', '.join(names)}"]:
        typer.echo(line)


def parse_guidances(text: str | None) -> tuple[float, ...] | None:
    """Parses "1,1.5,2" as numbers, each once."""
    if text is None:
        return None
    try:
        return tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        raise ConfigError("cfg", "give numbers separated by commas, for example 1,1.5,2,4", text) from None
