"""What `t2i generate` is asked for, as lists of orders: read from flags, files of prompts and pictures. No torch."""

import glob
import json
import math
import re
import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from t2i.files import sha256

SHIPPED = Path("checkpoints/glyphs")
DTYPES = {
    "fp32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
    "float32": "float32",
    "float16": "float16",
    "bfloat16": "bfloat16",
}
LINE: dict[str, tuple[type, ...]] = {
    "prompt": (str,),
    "negative": (str,),
    "seed": (int,),
    "cfg": (int, float),
    "steps": (int,),
    "size": (str,),
}
# Files that a picture was made with: what its settings call them, and the flag that gives them again.
FILES = {"image": "--init-image", "mask": "--mask", "vae": "--vae"}


@dataclass(frozen=True)
class Reading:
    """How a model's files are read: which of a folder's or a repository's, and what a single file leaves out."""

    variant: str | None = None
    revision: str | None = None
    config: Path | None = None
    prediction: str | None = None


@dataclass(frozen=True)
class Order:
    """Prompts that are drawn with the same options, called as the settings call them; `where` is for messages."""

    prompts: list[str]
    options: dict[str, Any] = field(default_factory=dict)
    count: int = 1
    interpolate: int | None = None
    where: str = ""
    made_with: dict[str, Any] = field(default_factory=dict)  # the picture that it is taken from


def plan_orders(
    order: Order,
    model: Path | None,
    source: Path | None,
    prompts_file: Path | None,
    resume: bool,
    count: int,
    interpolate: int | None,
) -> tuple[list[Order], Path]:
    """Every order with its seed, and the model that they are for."""
    order = replace(order, count=count, interpolate=interpolate)
    if source is not None:
        order, model = _as_picture(order, source, model)
    lines = prompts_file is not None and prompts_file.suffix == ".jsonl"
    if resume and not lines:
        raise ValueError("--resume continues a --prompts-file of JSON lines, X.jsonl: give one")
    if prompts_file is not None and not lines:
        order = replace(order, prompts=order.prompts + read_prompts(prompts_file))
    rows = read_orders(prompts_file, order) if prompts_file is not None and lines else []
    if resume and "seed" not in order.options and not all("seed" in row.options for row in rows):
        raise ValueError("--resume knows pictures by their seeds: give --seed, or a seed in every line")
    orders = ([order] if order.prompts or not rows else []) + rows
    if not orders[0].prompts:
        raise ValueError("no prompt: give PROMPT..., --prompts-file FILE or --from FILE.png")
    if interpolate is not None and (rows or len(order.prompts) < 2 or interpolate < 1):
        raise ValueError(
            f"--interpolate = {interpolate}: frames between prompts; give at least 1, and 2 prompts or more"
        )
    first = order.options.get("seed", secrets.randbelow(2**32))
    found, done = [], 0
    for one in orders:
        own = one.options | ({} if one.where and "seed" in one.options else {"seed": first + done})
        found.append(replace(one, options=own))
        done += len(one.prompts) * one.count
    return found, find_model(model)


def read_orders(path: Path, order: Order) -> list[Order]:
    """One order a line of JSON; a key of the line counts before the flag."""
    options = {name: value for name, value in order.options.items() if name != "seed"}
    found = []
    for number, line in _lines(path):
        where = f"--prompts-file {path}, line {number}"
        try:
            values = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where}: not JSON ({error})") from None
        if not isinstance(values, dict):
            raise ValueError(f'{where}: an object is needed, such as {{"prompt": "a frog"}}')
        for key, value in values.items():
            if key not in LINE:
                raise ValueError(f"{where}: unknown key {key!r}; allowed are {', '.join(LINE)}")
            if not isinstance(value, LINE[key]) or isinstance(value, bool):
                raise ValueError(f"{where}: {key} = {json.dumps(value)} is not {LINE[key][-1].__name__}")
        if "prompt" not in values:
            raise ValueError(f'{where}: has no "prompt"')
        if "size" in values:
            parse_size(values["size"])
        prompt = values.pop("prompt")
        found.append(Order([prompt], options | values, order.count, where=where))
    return found


def read_prompts(path: Path) -> list[str]:
    """One prompt a line; blank lines are skipped and counted."""
    return [line for _, line in _lines(path)]


def _lines(path: Path) -> list[tuple[int, str]]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
    except OSError as error:
        raise ValueError(f"--prompts-file {path}: not readable ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompts-file {path}: not UTF-8 ({error.reason} at byte {error.start})") from None
    if lines[-1] == "":
        lines.pop()  # what follows the last newline is no line
    found = [(number, line) for number, line in enumerate(lines, 1) if line]
    if blank := len(lines) - len(found):
        say(f"{path}: {blank} blank {'line' if blank == 1 else 'lines'} skipped")
    if not found:
        raise ValueError(f"--prompts-file {path}: no prompt in it")
    return found


def _as_picture(order: Order, path: Path, model: Path | None) -> tuple[Order, Path | None]:
    """The order with what a picture's settings say wherever it says nothing, and the model if it can be told."""
    from t2i.pipeline.metadata import read_png, request_from

    found = read_png(path)
    if found.ignored:
        say(f"{path}: {len(found.ignored)} of its settings are not taken over: {', '.join(found.ignored)}")
    settings = found.settings
    try:
        options = request_from(settings)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    prompts = options.pop("prompts")
    if order.prompts:
        options.pop("towards", None)
    options |= {name: settings[name] for name in ("vae_tile", "attention") if name in settings}
    if "embeddings" in settings and "embeddings" not in order.options:
        options["embeddings"] = [_file(path, "--embedding", *known) for known in settings["embeddings"]]
    if "loras" in settings and "loras" not in order.options:
        from t2i.interop.lora import lora_files

        known = settings["loras"]
        options["loras"] = [(_file(path, "--lora", name, digest, lora_files), w) for name, digest, w in known]
    for name, flag in FILES.items():
        if name in settings and name not in order.options:
            options[name] = _file(path, flag, settings[name], settings[f"{name}_sha256"])
    ours = found.source == "t2i"
    if found.source == "a1111" and not order.prompts and "prompt_syntax" not in options | order.options:
        say(f"{path}: its prompt is read with A1111's syntax; --prompt-syntax plain takes brackets as they stand")
        options["prompt_syntax"] = "a1111"
    if model is None and ours and (name := str(settings.get("model"))) != find_model(None).resolve().name:
        model = _here(name)
        if model is None:
            raise ValueError(f"{path}: was made with the model {name!r:.80}; give it with -m FOLDER")
        say(f"{path}: its model is {name!r}, as it lies here")
    made_with = {"file": str(path), "model_sha256": settings.get("model_sha256") if ours else None}
    made_with |= {name: settings.get(name) for name in ("prediction_type", "model_config")}
    merged = options | order.options
    return replace(order, prompts=order.prompts or prompts, options=merged, made_with=made_with), model


def _here(name: str) -> Path | None:
    """The model of that name in the current folder; a picture gives names alone, never ways elsewhere."""
    from t2i.pipeline.metadata.fields import LONGEST_NAME

    bare = Path(name).name == name and len(name.encode()) <= LONGEST_NAME
    return Path(name) if bare and Path(name).exists() else None


def _file(picture: Path, flag: str, name: str, digest: str, files: Callable[[Path], list[Path]] | None = None) -> Path:
    """A file that a picture was made with: in the current folder or beside the picture, known by its bytes."""
    near = [Path(name), picture.parent / name, *sorted(Path().glob(f"*/{glob.escape(name)}"))]
    for place in near:
        if place.exists() and sha256(*(files or weights_of)(place)) == digest:
            return place
    raise ValueError(
        f"{picture}: was made with {name!r} (sha256 {digest[:12]}...), which is neither here, nor in a "
        f"folder here, nor beside it; give {flag} FILE"
    )


def weights_of(path: Path) -> list[Path]:
    """The files that tell a component: its weights, where it is a folder."""
    if not path.is_dir():
        return [path]
    from t2i.component import Component, weight_files

    return list(weight_files(path, Component.weights_name).files)


def parse_size(size: str | None) -> tuple[int | None, int | None]:
    """(width, height) of "WxH"."""
    if size is None:
        return None, None
    found = re.fullmatch(r"(\d{1,6})x(\d{1,6})", size)
    if not found:
        raise ValueError(f"--size = {size!r} is not WxH, for example 64x64")
    return int(found[1]), int(found[2])


def parse_lora(text: str) -> tuple[Path, float]:
    """The file and the weight of "FILE:WEIGHT"; 1 where there is none."""
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


def parse_interval(interval: str | None) -> list[float] | None:
    """[lo, hi] of "LO,HI"."""
    if interval is None:
        return None
    try:
        low, high = map(float, interval.split(","))
    except ValueError:
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"--guidance-interval = {interval!r} is not LO,HI, for example 0.2,0.8")
    return [low, high]


def check_dtype(dtype: str | None) -> str | None:
    """The dtype's whole name."""
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"--dtype = {dtype!r} is unknown: choose one of {', '.join(DTYPES)}")
    return None if dtype is None else DTYPES[dtype]


def find_model(model: Path | None) -> Path:
    """The model asked for; else the shipped one, under the current folder or next to the package."""
    if model is not None:
        return model
    import t2i

    places = [SHIPPED, Path(t2i.__file__).parent.parent / SHIPPED]
    for place in places:
        if place.is_dir():
            return place
    raise ValueError(f"no model: {SHIPPED} is neither here nor next to the package; give one with -m FOLDER")


def say(text: str) -> None:
    """A line for the user, on stderr."""
    print(f"t2i: {text}", file=sys.stderr, flush=True)
