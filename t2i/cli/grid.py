"""`t2i grid PROMPT -x AXIS=V,V`: one prompt over up to three settings, as a labelled grid (an X/Y/Z plot)."""

import csv
import math
import secrets
from pathlib import Path
from typing import Annotated, Any

import typer

from t2i.cli.messages import warnings_as_messages
from t2i.cli.options import Device, Model, given_settings, option
from t2i.errors import ConfigError
from t2i.pipeline.find import find_model
from t2i.pipeline.jobs import Axis
from t2i.pipeline.settings import OUTPUT, SETTINGS, Number
from t2i.progress import say

Option = typer.Option
DEFAULT = "default"  # the value that stands for the model's default
AXES = [name for name, setting in SETTINGS.items() if setting.axis]
TEXTS = ("prompt", "negative")
NO_DEFAULT = ("prompt", "negative", "seed")


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
    model: Model = None,
    out: Annotated[
        Path, Option("-o", "--out", help="Folder of the images; nothing in it is overwritten", rich_help_panel=OUTPUT)
    ] = Path("outputs"),
    resume: Annotated[
        bool,
        Option("--resume", help="Take the cells that --out holds already; needs a seed", rich_help_panel=OUTPUT),
    ] = False,
    device: Device = None,
    dtype: Annotated[str | None, option("dtype")] = None,
    engine: Annotated[str | None, option("engine")] = None,
) -> None:
    """Draw one prompt over up to three settings, from one noise: a labelled image and an HTML page.

    Axes: prompt, negative, steps, solver, sigmas, cfg, seed, strength, clip_skip, eta, spacing, guidance_rescale.
    Values are split at commas, or at | where there is one ("prompt=a frog, green|a toad"), and may be quoted as in CSV.
    The value 'default' stands for the model's default.
    """
    given = given_settings(locals())
    texts = {flag: text for flag, text in (("-x", x), ("-y", y), ("-z", z)) if text is not None}
    axes = [parse_axis(flag, text) for flag, text in texts.items()]
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
    words = [word for flag, text in texts.items() for word in (flag, text)]
    words += ["-m", str(model)] if model is not None else []
    words += [f"{SETTINGS[name].flag}={value}" for name, value in given.items()] + ["-o", str(out)]
    words += ["--device", device] if device is not None else []
    words += ["--", prompt] if prompt is not None else []
    model = find_model(model)
    from t2i.pipeline.run_jobs import Session
    from t2i.pipeline.xyz_grid import Plot, draw_grid

    with warnings_as_messages():
        typer.echo(draw_grid(Session(model, out, device, 1, resume=resume), Plot(prompt, axes, given, words)))


def parse_axis(flag: str, text: str) -> Axis:
    """Returns the axis of "name=value,value"; values are split at | where there is one, and quoted as in CSV."""
    name, equals, values_text = text.partition("=")
    name = name.strip()
    allowed = ", ".join(AXES)
    if name == "size":
        raise ValueError(f"{flag} size: the images of a grid have one size, give it by --size; axes are {allowed}")
    if not equals or name not in AXES:
        raise ValueError(f"{flag} {text!r}: {name!r} is not an axis; give AXIS=VALUE,VALUE with AXIS one of {allowed}")
    delimiter = "|" if "|" in values_text else ","
    try:
        rows = list(csv.reader([values_text], delimiter=delimiter, skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise ValueError(
            f'{flag} {name}: {values_text!r} is not a list of values ({error}); quote as in a,"b, c"'
        ) from None
    written = [value.strip() for row in rows for value in row]
    if not written or ("" in written and name not in TEXTS):
        raise ValueError(f"{flag} {name}: {values_text!r} has an empty value; give for example {name}=a,b")
    values = []
    for value in written:
        try:
            values.append(parse_value(name, value))
        except ValueError as error:
            raise ValueError(f"{flag} {name}: {error}") from None
    return Axis(flag, name, written, values)


def parse_value(name: str, text: str) -> Any:
    """Returns a value of an axis: a number, a text, or None for the model's default."""
    check = SETTINGS[name].check
    if text == DEFAULT and name not in NO_DEFAULT:
        return None
    if not isinstance(check, Number):
        return text
    try:
        value = int(text) if check.whole else float(text)
    except ValueError:
        value = math.nan
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{text!r:.80} is not a {'whole ' if check.whole else ''}number")
    return value


def check_axes(axes: list[Axis], given: dict[str, Any]) -> None:
    """Raises ValueError for a setting that is given twice, a strength without an image, and a grid without an axis."""
    if not axes:
        raise ValueError(f"no axis: give -x AXIS=VALUE,VALUE, with AXIS one of {', '.join(AXES)}")
    names = [axis.name for axis in axes]
    for axis in axes:
        if names.count(axis.name) > 1:
            raise ValueError(f"the axis {axis.name} is given {names.count(axis.name)} times: give it once")
        if axis.name in given:
            flag = SETTINGS[axis.name].flag
            raise ValueError(f"{flag} and {axis.flag} {axis.name} are both given: leave one of them out")
    if "image" not in given and ("strength" in names or "strength" in given):
        raise ConfigError("image", "needed where strength is given: give --init-image FILE")
