"""An order of `t2i generate` as the pipeline's request, and what each of its pictures says of itself."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image

from t2i.cli.generate_options import Order, parse_size
from t2i.data.decode import UnreadableImage, decode
from t2i.files import sha256
from t2i.pipeline import Request
from t2i.pipeline.job import Resolved
from t2i.pipeline.outputs import METADATA


def request_of(order: Order, batch_size: int) -> Request:
    """The order as the pipeline takes it."""
    options = order.options
    width, height = parse_size(options.get("size"))
    prompts, towards, copies = order.prompts, None, range(order.count)
    seeds = [options["seed"] + k for k in range(len(prompts) * order.count)]
    if order.interpolate:
        between = [i / (order.interpolate + 1) for i in range(order.interpolate + 1)]
        frames = [(a, (b, share) if share else None) for a, b in pairwise(prompts) for share in between]
        frames.append((prompts[-1], None))
        prompts, towards = [prompt for prompt, _ in frames], [aim for _, aim in frames]
        seeds = [options["seed"] + c for _ in frames for c in copies]
    elif "towards" in options:
        towards = [(options["towards"][0], options["towards"][1])] * len(prompts)
    variations = None
    if "variation_seed" in options:
        variations = [options["variation_seed"] + k for k in range(len(seeds))]
        seeds = [options["seed"]] * len(seeds)
    plain = ("solver", "eta", "strength", "guidance_rescale", "spacing", "sigmas", "clip_skip", "prompt_syntax",
             "long_prompts", "variation_strength")  # fmt: skip
    return Request(
        prompts=prompts,
        negative_prompt=options.get("negative"),
        num_inference_steps=options.get("steps"),
        guidance_scale=options.get("cfg"),
        seeds=seeds,
        num_images_per_prompt=order.count,
        height=height,
        width=width,
        batch_size=batch_size,
        image=_picture(options.get("image"), "--init-image", "white"),
        mask=_picture(options.get("mask"), "--mask", "black"),
        guidance_interval=tuple(options.get("guidance_interval", (0.0, 1.0))),
        towards=towards,
        variation_seeds=variations,
        **{name: options[name] for name in plain if name in options},
    )


def only(request: Request, left: list[int]) -> Request:
    """The request for some pictures of its one prompt."""

    def chosen(seeds: Any) -> Any:
        return None if seeds is None else [seeds[k] for k in left]

    return replace(
        request,
        seeds=chosen(request.seeds),
        variation_seeds=chosen(request.variation_seeds),
        num_images_per_prompt=len(left),
    )


def _picture(path: Path | None, flag: str, background: str) -> Image.Image | None:
    if path is None:
        return None
    try:
        return decode(path.read_bytes(), background)
    except OSError as error:
        raise ValueError(f"{flag} {path}: not readable ({error.strerror})") from None
    except UnreadableImage as error:
        raise ValueError(f"{flag} {path}: {error}") from None


def settings_of(job: Resolved, k: int, order: Order, made_by: dict[str, Any]) -> dict[str, Any]:
    """What picture k is drawn from; what is at its default is left out, but for what every picture has."""
    request, guidance = job.request, job.guidance
    assert job.seeds is not None
    p = k // job.copies
    aim = None if request.towards is None else request.towards[p]
    found: dict[str, Any] = {
        "prompt": job.prompts[p],
        "seed": job.seeds[k],
        "negative": request.negative_prompt or "",
        "steps": job.steps,
        "cfg": guidance.scale,
        "solver": job.solver,
        "eta": request.eta,
        "size": f"{job.width}x{job.height}",
        **made_by,
    }
    rest: dict[str, tuple[Any, Any]] = {
        "strength": (job.begin.strength, None),
        "guidance_rescale": (guidance.rescale, 0),
        "guidance_interval": (list(guidance.interval), [0, 1]),
        "spacing": (job.spacing, None),
        "sigmas": (job.sigmas, None),
        "clip_skip": (request.clip_skip, 1),
        "prompt_syntax": (request.prompt_syntax, "plain"),
        "long_prompts": (request.long_prompts, False),
        "towards": (None if aim is None else [*aim], None),
    }
    found |= {name: value for name, (value, default) in rest.items() if value != default}
    if request.variation_seeds is not None:
        assert not isinstance(request.variation_seeds, int)
        found |= {"variation_seed": request.variation_seeds[k], "variation_strength": request.variation_strength}
    for name in ("image", "mask"):
        if (path := order.options.get(name)) is not None:
            found |= {name: path.name, f"{name}_sha256": sha256(path)}
    return found


def written_in(folder: Path) -> set[str]:
    """The `settings_key` of every picture that a folder holds."""
    path = folder / METADATA
    found = set()
    for line in path.read_text(encoding="utf8", errors="replace").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue  # cut off by a crash: its picture is drawn again
        if (folder / row["file_name"]).is_file():
            found.add(settings_key({k: v for k, v in row.items() if k not in ("file_name", "text", "schema_version")}))
    return found


def settings_key(settings: dict[str, Any]) -> str:
    """Equal exactly where the settings are."""
    return json.dumps(settings, sort_keys=True)
