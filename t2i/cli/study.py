"""`t2i study WHAT`: experiments with a model, as numbers and a picture."""

import shlex
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from t2i.cli.generate_options import SHIPPED, find_model, say
from t2i.cli.study_runs import report, text_encoder

app = typer.Typer(help="Experiments with a model: numbers with intervals, and a picture.", no_args_is_help=True)
Option = typer.Option
app.command("text-encoder")(text_encoder)
app.command("report")(report)


@app.command("sigma")
def sigma(
    out: Annotated[
        Path, Option("-o", "--out", help="a new folder for metrics.json, results.csv, sigma.png, report.html")
    ],
    model: Annotated[
        Path | None, Option("-m", "--model", help=f"a model's folder; by default the shipped {SHIPPED}")
    ] = None,
    reference: Annotated[
        Path | None,
        Option(help="captioned pictures, a parquet file or a folder: prompts, the data's numbers, the bound"),
    ] = None,
    prompt: Annotated[
        list[str] | None, Option("-p", "--prompt", help="in place of the reference's captions; give it several times")
    ] = None,
    captions: Annotated[int, Option(min=3, help="how many captions of the reference are drawn")] = 8,
    count: Annotated[int, Option(min=2, help="pictures of each prompt")] = 4,
    steps: Annotated[int | None, Option(help="by default all of the model's, 1000 mostly, as in Algorithm 2")] = None,
    cfg: Annotated[float | None, Option(help="guidance; by default the model's")] = None,
    seed: Annotated[int, Option(min=0)] = 0,
    judged: Annotated[int, Option(min=0, help="pictures of the reference in the bound; 0 for none")] = 64,
    draws: Annotated[int, Option(min=1, help="noise levels at which the bound judges each picture")] = 64,
    batch_size: Annotated[int, Option(min=1)] = 32,
    device: Annotated[str | None, Option(help="cpu, cuda, cuda:1, ...; by default cuda where there is one")] = None,
) -> None:
    """Draw with sigma_t^2 = beta, beta tilde and 0 in Algorithm 2, and with DDIM, all from the same noise.

    The bound is that of latents in nats a dimension; with sigma = 0 there is none.
    """
    if reference is None and not prompt:
        raise ValueError("nothing to draw: give --reference FILE.parquet or FOLDER, or --prompt three times or more")
    import torch

    from t2i.evaluation.sigma import Ask, open_reference, study_sigma
    from t2i.evaluation.sigma_sheet import check_new, table, write
    from t2i.pipeline import Pipeline

    check_new(out)
    folder = find_model(model)
    pipeline = Pipeline.from_pretrained(folder)
    pipeline.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if (size := pipeline.default_size()) is None:
        raise ValueError(f"{folder / 'unet' / 'config.json'} has no `sample_size`: write the side of its latents there")
    pictures = None if reference is None else open_reference(reference, (size[1], size[0]))
    ask = Ask(prompt or (), captions, count, steps, cfg, seed, batch_size, judged, draws)
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_, **__: say(str(message))
        study = study_sigma(pipeline, pictures, ask)
    settings = {"model": folder.resolve().name, "steps": str(study.steps), "guidance": str(study.guidance)}
    write(study, out, settings | {"seed": str(seed)}, shlex.join(["t2i", *sys.argv[1:]]))
    lines = table(study.rows)
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    for line in lines:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    typer.echo(f"{out}: metrics.json, results.csv, sigma.png, report.html")
