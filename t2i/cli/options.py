"""Options and arguments that verbs share, many of them out of the table of settings, and what they stand for."""

import difflib
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from t2i.errors import ConfigError
from t2i.files import MOST_BYTES, MOST_JSON, check_regular
from t2i.pipeline.find import SHIPPED
from t2i.pipeline.settings import MODEL, RUN, SETTINGS, checked

Model = Annotated[
    Path | None,
    typer.Option(
        "-m", "--model", help=f"A folder, a single file or a hub name; default {SHIPPED}", rich_help_panel=MODEL
    ),
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, ...; cuda if omitted and available", rich_help_panel=RUN)
]

DTYPES = {
    "fp32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
    "float32": "float32",
    "float16": "float16",
    "bfloat16": "bfloat16",
}
CONFIGS = "configs"  # the folder of the shipped recipes


def option(name: str, help: str | None = None) -> Any:
    """Returns the option of a setting; `help` replaces the table's text where a verb differs."""
    setting = SETTINGS[name]
    return typer.Option(
        *setting.flags, help=help or setting.help, metavar=setting.metavar, rich_help_panel=setting.panel
    )


def given_settings(arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings that were given among a verb's arguments, parsed, under their names."""
    values: dict[str, Any] = {}
    for name, setting in SETTINGS.items():
        value = arguments.get(setting.flag[2:].replace("-", "_")) if setting.flags else None
        if value is not None and value != []:
            values[name] = PARSERS[name](value) if name in PARSERS else value
    return values


def parse_size(size: str | None) -> tuple[int | None, int | None]:
    """Returns (width, height) of "WxH"."""
    if size is None:
        return None, None
    match = re.fullmatch(r"(\d{1,6})x(\d{1,6})", size)
    if not match:
        raise ConfigError("size", "not WxH, for example 64x64", size)
    return int(match[1]), int(match[2])


def parse_lora(text: str) -> tuple[Path, float]:
    """Returns the file and the weight of "FILE:WEIGHT", by default 1."""
    name, colon, number = text.rpartition(":")
    if not colon or Path(text).exists():
        return Path(text), 1.0
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not abs(weight) <= 1000:
        raise ValueError(f"{text!r} is not FILE or FILE:WEIGHT with a weight in -1000..1000, for example {name}:0.8")
    return Path(name), weight


def parse_interval(interval: str) -> list[float]:
    """Returns [lo, hi] of "LO,HI"."""
    try:
        low, high = map(float, interval.split(","))
    except ValueError:
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ConfigError("guidance_interval", "not LO,HI, for example 0.2,0.8", interval)
    return [low, high]


def check_dtype(dtype: str | None) -> str | None:
    """Returns the whole name of a dtype."""
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError("dtype", f"unknown; choose one of {', '.join(DTYPES)}", dtype)
    return None if dtype is None else DTYPES[dtype]


def recipe_file(path: Path) -> Path:
    """Returns the path of a recipe; raises ValueError for a folder, a pipe or a device."""
    if path.exists():
        check_regular(path, MOST_JSON)
    return path


def shipped_recipes() -> dict[str, Path]:
    """Returns the shipped recipes by name: their paths in `configs/` without the suffix, sorted."""
    import t2i

    package = Path(t2i.__file__).parent
    for folder in (package / CONFIGS, package.parent / CONFIGS):  # installed, or in a checkout
        if folder.is_dir():
            return {
                path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))
            }
    raise ValueError(f"no recipes: {CONFIGS}/ is neither in {package} nor beside it; install t2i again")


def find_recipe(name: str) -> tuple[str, Path]:
    """Returns the name and the path of the shipped recipe called `name` or `configs/NAME.yaml`."""
    recipes, short = shipped_recipes(), name.removeprefix(f"{CONFIGS}/").removesuffix(".yaml")
    if short not in recipes:
        near = difflib.get_close_matches(short, recipes, 3, 0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else "`t2i recipes` lists them"
        raise ValueError(f"{name!r} is not a recipe: {hint}")
    return short, recipes[short]


def _plain_size(size: str) -> str:
    width, height = parse_size(size)
    return f"{width}x{height}"


def _file(name: str) -> Callable[[Path], Path]:
    """Returns a check of a file that is read at once: it names a missing one, a folder, a pipe, a device."""

    def check(path: Path) -> Path:
        try:
            check_regular(path, MOST_BYTES)
        except ValueError as error:
            raise ValueError(f"{SETTINGS[name].flag} {error}") from None
        return path

    return check


PARSERS = {
    "vae_tile": lambda pixels: checked({"vae_tile": pixels}, {"vae_tile": "--vae-tile"})["vae_tile"],
    "image": _file("image"),
    "mask": _file("mask"),
    "embeddings": lambda paths: [_file("embeddings")(path) for path in paths],
    "size": _plain_size,
    "guidance_interval": parse_interval,
    "loras": lambda texts: [parse_lora(text) for text in texts],
    "dtype": check_dtype,
}
