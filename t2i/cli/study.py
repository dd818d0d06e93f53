"""`t2i study ...`: experiments with models as numbers with intervals, figures and a page."""

import shlex
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Annotated

import typer

from t2i.cli.study_runs import report, text_encoder
from t2i.pipeline.find import SHIPPED, find_model
from t2i.progress import say

app = typer.Typer(help="Experiments with models: numbers with intervals, figures, a page.", no_args_is_help=True)
Option = typer.Option
app.command("text-encoder")(text_encoder)
app.command("report")(report)


@app.command("sigma")
def sigma(
    out: Annotated[
        Path, Option("-o", "--out", help="new folder for metrics.json, results.csv, sigma.png, report.html")
    ],
    model: Annotated[
        Path | None,
        Option("-m", "--model", help=f"a model's folder, a single file or a hub name; default: the shipped {SHIPPED}"),
    ] = None,
    reference: Annotated[
        Path | None,
        Option(help="captioned images, a parquet file or a folder: prompts, statistics of the data, the bound"),
    ] = None,
    prompt: Annotated[
        list[str] | None, Option("-p", "--prompt", help="in place of the reference's captions; repeat for more")
    ] = None,
    captions: Annotated[int, Option(min=3, help="number of captions of the reference to use as prompts")] = 8,
    count: Annotated[int, Option(min=2, help="images for each prompt")] = 4,
    steps: Annotated[int | None, Option(help="default: all of the model's, often 1000, as in Algorithm 2")] = None,
    cfg: Annotated[float | None, Option(help="guidance; default: the model's")] = None,
    seed: Annotated[int, Option(min=0, help="seed of the first image; image k uses seed + k")] = 0,
    judged: Annotated[int, Option(min=0, help="images of the reference in the bound; 0: no bound")] = 64,
    draws: Annotated[int, Option(min=1, help="noise levels at which the bound evaluates each image")] = 64,
    batch_size: Annotated[int, Option(min=1, help="images in a batch")] = 32,
    device: Annotated[str | None, Option(help="cpu, cuda, cuda:1, ...; default: cuda if available")] = None,
) -> None:
    """Compare sigma_t^2 = beta, beta tilde and 0 in Algorithm 2, and DDIM, on the same noise.

    As `t2i evaluate --variance`, for a few prompts and with several images for each. The bound is that of the latents
    in nats a dimension; with sigma = 0 there is none.
    """
    if reference is None and not prompt:
        raise ValueError("nothing to sample: give --reference FILE.parquet or FOLDER, or --prompt three times or more")
    from t2i.cli.evaluate_run import open_subject
    from t2i.data.transforms import to_float, to_pixels
    from t2i.evaluation.evaluate import evaluate
    from t2i.evaluation.evaluation import Evaluation
    from t2i.evaluation.features import LatentFeatures
    from t2i.evaluation.generated import Sampling
    from t2i.evaluation.reference import ReferenceImages, open_reference
    from t2i.evaluation.store import Store
    from t2i.evaluation.variance import DATA, spread, variance_table
    from t2i.evaluation.variance_report import check_new, flat_rows, image_grid, write

    sampling = Sampling(None if cfg is None else (cfg,), "ddpm", steps, seed, None, batch_size)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as cache:
        check_new(out)
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_, **__: say(str(message))
        subject = open_subject(find_model(model), sampling, "float32", device)
        images = None if reference is None else open_reference(reference, subject.size)
        if images is not None and not isinstance(images, ReferenceImages):
            raise ValueError(f"{reference}: statistics hold no images: give a parquet file or a folder with captions")
        rows = [] if images is None or prompt else spread(images, captions)
        prompts = prompt or [images.captions[i] for i in rows] if images else list(prompt or ())
        subject.set_prompts([text for text in prompts for _ in range(count)])
        data = None if images is None else images.select(spread(images, max(judged, 3)))
        evaluation = Evaluation(
            data,
            ("vlb",) if images and judged else (),
            LatentFeatures(subject.pipeline.autoencoder, subject.size),
            None,
            Store(cache),
            batch_size,
            baselines=False,
            shuffled=False,
            shown=0,
            bound_images=data,
            draws=draws,
            variance=True,
        )
        evaluation.check(subject)
        results = evaluate(subject, evaluation)
    assert results is not None
    T, guidance = subject.pipeline.generator.schedule.T, subject.guidances[0]
    columns = evaluation.columns
    if images is not None and rows:
        columns = {DATA: [image for image in to_pixels(to_float(images.read(rows))) for _ in range(count)]} | columns
    settings = {"model": subject.name, "steps": str(steps or T), "guidance": str(guidance), "seed": str(seed)}
    flat = flat_rows(results, prompts, data.captions if data else [], T, seed)
    write(results, flat, image_grid(prompts, count, columns), out, settings, shlex.join(["t2i", *sys.argv[1:]]))
    lines = variance_table(results)
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    for line in lines:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    typer.echo(f"{out}: metrics.json, results.csv, sigma.png, report.html")
