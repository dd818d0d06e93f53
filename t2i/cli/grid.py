"""`t2i grid PROMPT -x AXIS=V,V`: one prompt over up to three settings, as a labelled sheet (an X/Y/Z plot)."""

import csv
import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from t2i.cli.generate_options import SHIPPED, check_dtype, find_model, parse_size, say

DEFAULT = "default"  # a value: what the model has


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a whole number") from None


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is not a number")
    return value


# Every axis with what reads a value of it; the words are those of `t2i generate`'s settings.
AXES: dict[str, Callable[[str], Any]] = {
    "cfg": _number,
    "steps": _whole,
    "solver": str,
    "spacing": str,
    "sigmas": str,
    "eta": _number,
    "seed": _whole,
    "strength": _number,
    "guidance_rescale": _number,
    "clip_skip": _whole,
    "negative": str,
    "prompt": str,
}
TEXTS = ("prompt", "negative")
NO_DEFAULT = ("prompt", "negative", "seed")
Option = typer.Option


@dataclass(frozen=True)
class Axis:
    """A setting and its values, as they were written and as the pipeline takes them; None is the model's own."""

    flag: str
    name: str
    written: list[str]
    values: list[Any]

    @property
    def labels(self) -> tuple[str, ...]:
        """What stands beside the pictures."""
        return tuple(f"{self.name} = {value}" for value in self.written)


def parse_axis(flag: str, text: str) -> Axis:
    """The axis of "name=value,value"; values are split at | where there is one, and quoted as in CSV."""
    name, equals, rest = text.partition("=")
    name = name.strip()
    allowed = ", ".join(AXES)
    if name == "size":
        raise ValueError(f"{flag} size: the pictures of a sheet have one size, give it by --size; axes are {allowed}")
    if not equals or name not in AXES:
        raise ValueError(f"{flag} {text!r}: {name!r} is no axis; give AXIS=VALUE,VALUE with AXIS one of {allowed}")
    delimiter = "|" if "|" in rest else ","
    try:
        rows = list(csv.reader([rest], delimiter=delimiter, skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise ValueError(f'{flag} {name}: {rest!r} is not a list of values ({error}); quote as in a,"b, c"') from None
    written = [value.strip() for row in rows for value in row]
    if not written or ("" in written and name not in TEXTS):
        raise ValueError(f"{flag} {name}: {rest!r} has an empty value; give for example {name}=a,b")
    values = []
    for value in written:
        try:
            values.append(None if value == DEFAULT and name not in NO_DEFAULT else AXES[name](value))
        except ValueError as error:
            raise ValueError(f"{flag} {name}: {error}") from None
    return Axis(flag, name, written, values)


def check_axes(axes: list[Axis], given: dict[str, Any]) -> None:
    """Refuse what is said twice, what begins nowhere, and a sheet of nothing."""
    if not axes:
        raise ValueError(f"no axis: give -x AXIS=VALUE,VALUE, with AXIS one of {', '.join(AXES)}")
    names = [axis.name for axis in axes]
    for axis in axes:
        if names.count(axis.name) > 1:
            raise ValueError(f"the axis {axis.name} is given {names.count(axis.name)} times: give it once")
        if axis.name in given:
            flag = "--" + axis.name.replace("_", "-")
            raise ValueError(f"{flag} and {axis.flag} {axis.name} are both given: leave one of them out")
    if "image" not in given and ("strength" in names or "strength" in given):
        raise ValueError("strength is how little is left of a picture to begin from: give --init-image FILE")


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
