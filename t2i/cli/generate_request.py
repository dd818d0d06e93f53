"""An order of `t2i generate` as the pipeline's request, and the settings that each of its images records."""

import json
import warnings
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image

from t2i.cli.generate_options import Order
from t2i.cli.options import parse_size
from t2i.data.decode import UnreadableImage, decode
from t2i.files import sha256
from t2i.pipeline import Request
from t2i.pipeline.outputs import METADATA
from t2i.pipeline.resolved import PreparedRequest, ResolvedRequest
from t2i.pipeline.settings import SETTINGS


def request_of(order: Order, batch_size: int) -> Request:
    """Returns the request of an order."""
    options = order.options
    width, height = parse_size(options.get("size"))
    prompts, towards, copies = order.prompts, None, range(order.count)
    seeds = [options["seed"] + k for k in range(len(prompts) * order.count)]
    if order.interpolate:
        between = [i / (order.interpolate + 1) for i in range(order.interpolate + 1)]
        frames = [(a, (b, fraction) if fraction else None) for a, b in pairwise(prompts) for fraction in between]
        frames.append((prompts[-1], None))
        prompts, towards = [prompt for prompt, _ in frames], [aim for _, aim in frames]
        seeds = [options["seed"] + c for _ in frames for c in copies]
    elif "towards" in options:
        towards = [(options["towards"][0], options["towards"][1])] * len(prompts)
    arguments = {
        setting.parameter: options[name]
        for name, setting in SETTINGS.items()
        if setting.parameter is not None and name in options
    }
    if "variation_seed" in options:
        arguments["variation_seeds"] = [options["variation_seed"] + k for k in range(len(seeds))]
        seeds = [options["seed"]] * len(seeds)
    arguments |= {
        "prompt": prompts,
        "seeds": seeds,
        "towards": towards,
        "num_images_per_prompt": order.count,
        "height": height,
        "width": width,
        "batch_size": batch_size,
        "image": _read_image(options.get("image"), "image", "white"),
        "mask_image": _read_image(options.get("mask"), "mask", "black"),
        "guidance_interval": tuple(options.get("guidance_interval", (0.0, 1.0))),
    }
    return Request(**arguments)


def select(request: Request, images: list[int]) -> Request:
    """Returns a request for some of the images of its one prompt."""

    def chosen(seeds: Any) -> Any:
        return None if seeds is None else [seeds[k] for k in images]

    return replace(
        request,
        seeds=chosen(request.seeds),
        variation_seeds=chosen(request.variation_seeds),
        num_images_per_prompt=len(images),
    )


def _read_image(path: Path | None, setting: str, background: str) -> Image.Image | None:
    if path is None:
        return None
    flag = SETTINGS[setting].flag
    try:
        return decode(path.read_bytes(), background)
    except OSError as error:
        raise ValueError(f"{flag} {path}: not readable ({error.strerror})") from None
    except UnreadableImage as error:
        raise ValueError(f"{flag} {path}: {error}") from None


def settings_of(resolved: ResolvedRequest, k: int, order: Order, made_by: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings of image k; those at their defaults are left out."""
    request, p = resolved.request, k // resolved.copies
    assert resolved.seeds is not None and not isinstance(request.variation_seeds, int)
    aim = None if request.towards is None else request.towards[p]
    values = {s.name: getattr(request, s.parameter) for s in SETTINGS.values() if s.parameter is not None}
    values |= {
        "prompt": resolved.prompts[p],
        "negative": request.negative_prompt or "",
        "seed": resolved.seeds[k],
        "size": f"{resolved.width}x{resolved.height}",
        "guidance_interval": list(request.guidance_interval),
        "towards": None if aim is None else [*aim],
        "variation_seed": None if request.variation_seeds is None else request.variation_seeds[k],
    }
    for name in ("image", "mask"):
        path = values[name] = order.options.get(name)
        if path is not None:
            values |= {name: path.name, f"{name}_sha256": sha256(path)}
    return {name: value for name, value in values.items() if value != SETTINGS[name].default} | made_by


def warn_truncated(prepared: PreparedRequest) -> None:
    """Warns of the prompts that do not fit the text encoder, with the words that are left out."""
    texts, request = prepared.texts, prepared.request
    kinds = ["prompt"] * len(prepared.prompts) + ["negative prompt"]
    prompts = [*prepared.prompts, request.negative_prompt]
    cut = zip(kinds, prompts, [*texts.truncated, texts.negative_truncated[0]], strict=True)
    for kind, prompt, words in cut:
        if words:
            warnings.warn(f"{kind} {prompt!r} is too long, these words are left out: {words!r}", stacklevel=2)


def recorded_keys(folder: Path) -> set[str]:
    """Returns the `settings_key` of every image that a folder holds."""
    path = folder / METADATA
    keys = set()
    for line in path.read_text(encoding="utf8", errors="replace").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue  # cut off by a crash: its image is drawn again
        if (folder / row["file_name"]).is_file():
            keys.add(settings_key({k: v for k, v in row.items() if k not in ("file_name", "text", "schema_version")}))
    return keys


def settings_key(settings: dict[str, Any]) -> str:
    """Returns a text that is equal for equal settings only."""
    return json.dumps(settings, sort_keys=True)
