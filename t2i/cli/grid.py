"""`t2i grid PROMPT -x AXIS=V,V`: one prompt over up to three settings, as a labelled grid (an X/Y/Z plot)."""

import secrets
from pathlib import Path
from typing import Annotated

import typer

from t2i.cli.generate_options import SHIPPED, find_model
from t2i.cli.grid_axes import check_axes, parse_axis
from t2i.cli.messages import say
from t2i.cli.options import given_settings, option
from t2i.pipeline.settings import MODEL, OUTPUT, RUN

Option = typer.Option


def grid(
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="Prompt of all cells; not with the axis 'prompt'")
    ] = None,
    x: Annotated[str | None, Option("-x", metavar="AXIS=V,V", help="Columns, e.g. cfg=1,3,7.5")] = None,
    y: Annotated[str | None, Option("-y", metavar="AXIS=V,V", help="Rows, e.g. steps=10,20")] = None,
    z: Annotated[
        str | None, Option("-z", metavar="AXIS=V,V", help="Panels, e.g. 'solver=ddim,DPM++ 2M Karras'")
    ] = None,
    negative: Annotated[str | None, option("negative")] = None,
    steps: Annotated[int | None, option("steps")] = None,
    cfg: Annotated[float | None, option("cfg")] = None,
    solver: Annotated[str | None, option("solver")] = None,
    spacing: Annotated[str | None, option("spacing")] = None,
    sigmas: Annotated[str | None, option("sigmas")] = None,
    eta: Annotated[float | None, option("eta")] = None,
    seed: Annotated[int | None, option("seed", "Seed of every image. Random if omitted")] = None,
    size: Annotated[str | None, option("size")] = None,
    init_image: Annotated[Path | None, option("image")] = None,
    strength: Annotated[float | None, option("strength")] = None,
    model: Annotated[
        Path | None,
        Option(
            "-m", "--model", help=f"A folder, a single file or a hub name; default {SHIPPED}", rich_help_panel=MODEL
        ),
    ] = None,
    out: Annotated[
        Path, Option("-o", "--out", help="Folder of the images; nothing in it is overwritten", rich_help_panel=OUTPUT)
    ] = Path("outputs"),
    resume: Annotated[
        bool,
        Option("--resume", help="Take the cells that --out holds already; needs a seed", rich_help_panel=OUTPUT),
    ] = False,
    device: Annotated[
        str | None, Option(help="cpu, cuda, cuda:1, ...; cuda if omitted and available", rich_help_panel=RUN)
    ] = None,
    dtype: Annotated[str | None, option("dtype")] = None,
) -> None:
    """Draw one prompt over up to three settings, from one noise: a labelled image and an HTML page.

    Axes: prompt, negative, steps, solver, sigmas, cfg, seed, strength, clip_skip, eta, spacing, guidance_rescale.
    Values are split at commas, or at | where there is one ("prompt=a frog, green|a toad"), and may be quoted as in CSV.
    The value 'default' stands for the model's default.
    """
    given = given_settings(locals())
    axes = [parse_axis(flag, text) for flag, text in (("-x", x), ("-y", y), ("-z", z)) if text is not None]
    check_axes(axes, given)
    axis_flag = next((axis.flag for axis in axes if axis.name == "prompt"), None)
    if prompt is None and axis_flag is None:
        raise ValueError("no prompt: give PROMPT, or the axis 'prompt'")
    if prompt is not None and axis_flag is not None:
        say(f"prompt {prompt!r} is not drawn: {axis_flag} prompt replaces it")
    if not any(axis.name == "seed" for axis in axes):
        if resume and seed is None:
            raise ValueError("--resume identifies cells by their settings: give the --seed that they were drawn with")
        given.setdefault("seed", secrets.randbelow(2**32))
    from t2i.cli.grid_run import Plot, run

    written = {flag: text for flag, text in (("-x", x), ("-y", y), ("-z", z), ("-m", model)) if text is not None}
    words = {flag: str(text) for flag, text in written.items()}
    run(Plot(prompt, axes, given, find_model(model), out, device, words, resume))
