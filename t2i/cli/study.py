"""`t2i study ...`: experiments with models as numbers with intervals, figures and a page."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from t2i.cli.messages import warnings_as_messages
from t2i.errors import ConfigError
from t2i.pipeline.find import SHIPPED, find_model
from t2i.progress import say

app = typer.Typer(help="Experiments with models: numbers with intervals, figures, a page.", no_args_is_help=True)
Option = typer.Option


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
        raise ConfigError(
            "reference", "nothing to sample: give --reference FILE.parquet or FOLDER, or --prompt three times or more"
        )
    from t2i.evaluation.generated import Sampling
    from t2i.evaluation.reference import ReferenceImages, open_reference
    from t2i.evaluation.run import open_model
    from t2i.evaluation.variance_report import check_new, compare_variances
    from t2i.training.distributed import process_state

    sampling = Sampling(None if cfg is None else (cfg,), "ddpm", steps, seed, None, batch_size)
    with warnings_as_messages():
        check_new(out)
        subject = open_model(find_model(model), sampling, "float32", device or str(process_state().device))
        for text in subject.pipeline.report:
            say(f"model: {text}")
        images = None if reference is None else open_reference(reference, subject.size)
        if images is not None and not isinstance(images, ReferenceImages):
            raise ConfigError("reference", "statistics hold no images: give a folder or a parquet file", str(reference))
        command = shlex.join(["t2i", *sys.argv[1:]])
        table = compare_variances(subject, images, prompt or [], captions, count, judged, draws, out, command)
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    for line in table:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    typer.echo(f"{out}: metrics.json, results.csv, sigma.png, report.html")


@app.command("text-encoder")
def text_encoder(
    recipe: Annotated[Path, typer.Argument(help="a YAML recipe, for example configs/study/scenes.yaml")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value overrides of the recipe")] = None,
    plan: Annotated[bool, Option("--plan", help="print runs, sizes and hours; reads only the recipe")] = False,
) -> None:
    """Study the effect of the text encoder's size and the U-Net's: train, sample and measure all on equal terms.

    The same command resumes an interrupted study; several processes of it share the runs.
    """
    from t2i.config import load_recipe
    from t2i.study.recipe import StudyRecipe

    values = load_recipe(recipe, overrides or [], StudyRecipe)
    if plan:
        from t2i.study.plan import plan_lines

        for line in plan_lines(values):
            typer.echo(line)
        return
    from t2i.study.results import REPORT
    from t2i.study.run import study

    with warnings_as_messages():
        done = study(values)
    folder = values.folder / REPORT
    typer.echo(f"{folder}: complete; this process did {len(done)} stages")
    report(folder)


@app.command("report")
def report(
    folder: Annotated[Path, typer.Argument(help="a study's folder, or one with its rows: results.csv, study.json")],
) -> None:
    """Write a study's report from its rows: report.html, and its figures as PNGs."""
    from t2i.study.report import write

    with warnings_as_messages():
        lines = write(folder)
    for line in lines:
        typer.echo(line)
