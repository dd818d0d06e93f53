"""The orders of `t2i generate`, read from flags, files of prompts and images. Torch is not needed."""

import glob
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from t2i.cli.messages import located, say
from t2i.errors import ConfigError
from t2i.files import sha256
from t2i.pipeline.settings import FILES, LONGEST_NAME, SETTINGS, checked

SHIPPED = Path("checkpoints/glyphs")
LINE = ("prompt", "negative", "seed", "cfg", "steps", "size")  # the keys of a line of JSON


@dataclass(frozen=True)
class Reading:
    """Options of reading a model: which files of a folder or repository, and what a single file leaves out."""

    variant: str | None = None
    revision: str | None = None
    config: Path | None = None
    prediction: str | None = None


@dataclass(frozen=True)
class Order:
    """Prompts with the same settings, by their names; `where` is the line or cell of the order, for messages."""

    prompts: list[str]
    options: dict[str, Any] = field(default_factory=dict)
    count: int = 1
    interpolate: int | None = None
    where: str = ""
    made_with: dict[str, Any] = field(default_factory=dict)  # of the image that it repeats


def plan_orders(
    order: Order,
    model: Path | None,
    source: Path | None,
    prompts_file: Path | None,
    resume: bool,
) -> tuple[list[Order], Path]:
    """Returns every order with its seed, and their model."""
    if source is not None:
        order, model = _repeat(order, source, model)
    lines = prompts_file is not None and prompts_file.suffix == ".jsonl"
    if resume and not lines:
        raise ValueError("--resume continues a --prompts-file of JSON lines, X.jsonl: give one")
    if prompts_file is not None and not lines:
        order = replace(order, prompts=order.prompts + read_prompts(prompts_file))
    rows = read_orders(prompts_file, order) if prompts_file is not None and lines else []
    if resume and "seed" not in order.options and not all("seed" in row.options for row in rows):
        raise ValueError("--resume identifies images by their seeds: give --seed, or a seed in every line")
    orders = ([order] if order.prompts or not rows else []) + rows
    if not orders[0].prompts:
        raise ValueError("no prompt: give PROMPT..., --prompts-file FILE or --from FILE.png")
    if order.interpolate is not None and (rows or len(order.prompts) < 2 or order.interpolate < 1):
        raise ConfigError("--interpolate", "give at least 1 frame, and 2 prompts or more", order.interpolate)
    first = order.options.get("seed", secrets.randbelow(2**32))
    planned, done = [], 0
    for one in orders:
        seed = {} if one.where and "seed" in one.options else {"seed": first + done}
        planned.append(replace(one, options=one.options | seed))
        done += len(one.prompts) * one.count
    return planned, find_model(model)


def read_orders(path: Path, order: Order) -> list[Order]:
    """Returns an order for each line of JSON, whose keys override the flags."""
    options = {name: value for name, value in order.options.items() if name != "seed"}
    orders = []
    for number, line in _lines(path):
        where = f"--prompts-file {path}, line {number}"
        try:
            values = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where}: not JSON ({error})") from None
        if not isinstance(values, dict):
            raise ValueError(f'{where}: an object is needed, such as {{"prompt": "a frog"}}')
        for key in values:
            if key not in LINE:
                raise ValueError(f"{where}: unknown key {key!r}; allowed are {', '.join(LINE)}")
        if "prompt" not in values:
            raise ValueError(f'{where}: has no "prompt"')
        with located(where):
            checked(values)
        prompt = values.pop("prompt")
        orders.append(Order([prompt], options | values, order.count, where=where))
    return orders


def read_prompts(path: Path) -> list[str]:
    """Returns a prompt for each line; blank lines are skipped and counted."""
    return [line for _, line in _lines(path)]


def _lines(path: Path) -> list[tuple[int, str]]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
    except OSError as error:
        raise ValueError(f"--prompts-file {path}: not readable ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompts-file {path}: not UTF-8 ({error.reason} at byte {error.start})") from None
    if lines[-1] == "":
        lines.pop()  # nothing follows the last newline
    prompts = [(number, line) for number, line in enumerate(lines, 1) if line]
    if blank := len(lines) - len(prompts):
        say(f"{path}: {blank} blank {'line' if blank == 1 else 'lines'} skipped")
    if not prompts:
        raise ValueError(f"--prompts-file {path}: no prompt in it")
    return prompts


def _repeat(order: Order, path: Path, model: Path | None) -> tuple[Order, Path | None]:
    """Returns the order with an image's settings wherever it has none, and the image's model if it can be found."""
    from t2i.pipeline.metadata import read_png, request_from

    image = read_png(path)
    if image.ignored:
        say(f"{path}: {len(image.ignored)} of its settings are ignored: {', '.join(image.ignored)}")
    settings = image.settings
    try:
        options = request_from(settings)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    prompts = options.pop("prompts")
    if order.prompts:
        options.pop("towards", None)
    options |= {name: settings[name] for name in ("vae_tile", "attention") if name in settings}
    if "embeddings" in settings and "embeddings" not in order.options:
        options["embeddings"] = [_file(path, "embeddings", *known) for known in settings["embeddings"]]
    if "loras" in settings and "loras" not in order.options:
        from t2i.interop.lora import lora_files

        known = settings["loras"]
        options["loras"] = [(_file(path, "loras", name, digest, lora_files), w) for name, digest, w in known]
    for name in FILES:
        if name in settings and name not in order.options:
            options[name] = _file(path, name, settings[name], settings[f"{name}_sha256"])
    ours = image.source == "t2i"
    if image.source == "a1111" and not order.prompts and "prompt_syntax" not in options | order.options:
        say(f"{path}: its prompt is read with A1111's syntax; --prompt-syntax plain takes brackets as they stand")
        options["prompt_syntax"] = "a1111"
    if model is None and ours and (name := str(settings.get("model"))) != find_model(None).resolve().name:
        model = _local_model(name)
        if model is None:
            raise ValueError(f"{path}: was made with the model {name!r:.80}; give it with -m FOLDER")
        say(f"{path}: its model is {name!r} in the current folder")
    made_with = {"file": str(path), "model_sha256": settings.get("model_sha256") if ours else None}
    made_with |= {name: settings.get(name) for name in ("prediction_type", "model_config")}
    merged = options | order.options
    return replace(order, prompts=order.prompts or prompts, options=merged, made_with=made_with), model


def _local_model(name: str) -> Path | None:
    """Returns the model of that name in the current folder; an image can give names only, no paths."""
    bare = Path(name).name == name and len(name.encode()) <= LONGEST_NAME
    return Path(name) if bare and Path(name).exists() else None


def _file(image: Path, setting: str, name: str, digest: str, files: Callable[[Path], list[Path]] | None = None) -> Path:
    """Returns a file that an image was made with: in the current folder or beside the image, identified by its hash."""
    near = [Path(name), image.parent / name, *sorted(Path().glob(f"*/{glob.escape(name)}"))]
    for place in near:
        if place.exists() and sha256(*(files or weights_of)(place)) == digest:
            return place
    raise ValueError(
        f"{image}: was made with {name!r} (sha256 {digest[:12]}...), which is neither here, nor in a "
        f"folder here, nor beside it; give {SETTINGS[setting].flag} FILE"
    )


def weights_of(path: Path) -> list[Path]:
    """Returns the files whose hash identifies a component: itself, or its weights if it is a folder."""
    if not path.is_dir():
        return [path]
    from t2i.component import Component, weight_files

    return list(weight_files(path, Component.weights_name).files)


def find_model(model: Path | None) -> Path:
    """Returns the given model; otherwise the shipped one, in the current folder or next to the package."""
    if model is not None:
        return model
    import t2i

    places = [SHIPPED, Path(t2i.__file__).parent.parent / SHIPPED]
    for place in places:
        if place.is_dir():
            return place
    raise ValueError(f"no model: {SHIPPED} is neither here nor next to the package; give one with -m FOLDER")
