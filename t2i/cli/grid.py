"""`t2i grid PROMPT -x AXIS=V,V`: one prompt over up to three settings, as a labelled sheet (an X/Y/Z plot)."""

import secrets
from pathlib import Path
from typing import Annotated

import typer

from t2i.cli.generate_options import SHIPPED, check_dtype, find_model, parse_size, say
from t2i.cli.grid_axes import check_axes, parse_axis

Option = typer.Option


def grid(
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help="the axis 'prompt' replaces it")] = None,
    x: Annotated[str | None, Option("-x", metavar="AXIS=V,V", help="from left to right, e.g. cfg=1,3,7.5")] = None,
    y: Annotated[str | None, Option("-y", metavar="AXIS=V,V", help="from top to bottom, e.g. steps=10,20")] = None,
    z: Annotated[
        str | None, Option("-z", metavar="AXIS=V,V", help="panels, e.g. 'solver=ddim,DPM++ 2M Karras'")
    ] = None,
    model: Annotated[
        Path | None, Option("-m", "--model", help=f"a model's folder or file; by default the shipped {SHIPPED}")
    ] = None,
    negative: Annotated[str | None, Option("-n", "--negative", help="what not to draw")] = None,
    steps: Annotated[int | None, Option("--steps", "--num-inference-steps", help="by default the model's")] = None,
    cfg: Annotated[float | None, Option("--cfg", "--guidance-scale", help="by default the model's")] = None,
    solver: Annotated[str | None, Option(help="by default the model's")] = None,
    spacing: Annotated[str | None, Option(help="of the steps; by default the model's")] = None,
    sigmas: Annotated[str | None, Option(help="of the steps; by default the model's")] = None,
    eta: Annotated[float | None, Option(help="noise of ddim's steps, 0 to 1; by default 0")] = None,
    seed: Annotated[int | None, Option(help="of every picture, so that all share their noise. Else drawn")] = None,
    init_image: Annotated[Path | None, Option(help="a picture that every cell begins from")] = None,
    strength: Annotated[float | None, Option(help="0 to 1: how little is left of --init-image; by default 0.8")] = None,
    size: Annotated[str | None, Option(metavar="WxH", help="by default what the model was trained at")] = None,
    out: Annotated[Path, Option("-o", "--out", help="folder of the pictures; it is only ever added to")] = Path(
        "outputs"
    ),
    resume: Annotated[
        bool, Option("--resume", help="take the cells that --out holds already, by their settings; needs a seed")
    ] = False,
    device: Annotated[str | None, Option(help="cpu, cuda, cuda:1, ...; by default cuda where there is one")] = None,
    dtype: Annotated[str | None, Option(help="fp32, bf16 or fp16; by default fp32")] = None,
) -> None:
    """Draw one prompt over up to three settings, from one noise: a labelled picture and an HTML page.

    Axes: cfg, steps, solver, spacing, sigmas, eta, seed, strength, guidance_rescale, clip_skip, negative, prompt.
    Values are split at commas, or at | where there is one ("prompt=a frog, green|a toad"), and may be quoted as in CSV.
    The value 'default' is what the model has.
    """
    given = {
        "negative": negative, "steps": steps, "cfg": cfg, "solver": solver, "spacing": spacing, "sigmas": sigmas,
        "eta": eta, "seed": seed, "image": init_image, "strength": strength, "size": size, "dtype": check_dtype(dtype),
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    parse_size(size)
    axes = [parse_axis(flag, text) for flag, text in (("-x", x), ("-y", y), ("-z", z)) if text is not None]
    check_axes(axes, given)
    replaced = next((axis.flag for axis in axes if axis.name == "prompt"), None)
    if prompt is None and replaced is None:
        raise ValueError("no prompt: give PROMPT, or the axis 'prompt'")
    if prompt is not None and replaced is not None:
        say(f"prompt {prompt!r} is not drawn: {replaced} prompt replaces it")
    if not any(axis.name == "seed" for axis in axes):
        if resume and seed is None:
            raise ValueError("--resume knows cells by their settings: give the --seed that they were drawn with")
        given.setdefault("seed", secrets.randbelow(2**32))
    from t2i.cli.grid_run import Plot, run

    written = {flag: text for flag, text in (("-x", x), ("-y", y), ("-z", z), ("-m", model)) if text is not None}
    words = {flag: str(text) for flag, text in written.items()}
    run(Plot(prompt, axes, given, find_model(model), out, device, words, resume))
