"""`t2i generate PROMPT...`: pictures of prompts in a folder."""

from pathlib import Path
from typing import Annotated, Any

import typer

from t2i.cli.generate_options import (
    SHIPPED,
    Order,
    Reading,
    check_dtype,
    parse_interval,
    parse_lora,
    parse_size,
    plan_orders,
)


def generate(
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT...", help="one picture each (see --count)")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("-m", "--model", help=f"a folder, a single file or a hub name; by default the shipped {SHIPPED}"),
    ] = None,
    variant: Annotated[str | None, typer.Option(help="of the model's weights, as fp16; by default the plain")] = None,
    revision: Annotated[str | None, typer.Option(help="of a hub name: a branch, tag or commit")] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="DIR", help="the JSON configs of a single file: a diffusers folder with them")
    ] = None,
    prediction_type: Annotated[
        str | None, typer.Option(help="of a single file: epsilon or v_prediction; by default what it is inferred to be")
    ] = None,
    negative: Annotated[str | None, typer.Option("-n", "--negative", help="what not to draw, for all prompts")] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", "--num-inference-steps", help="by default the model's")
    ] = None,
    cfg: Annotated[
        float | None, typer.Option("--cfg", "--guidance-scale", help="by default the model's; 1 is no guidance")
    ] = None,
    guidance_rescale: Annotated[
        float | None, typer.Option(help="0 to 1: how far guidance keeps the contrast of the unguided; 0.7 is common")
    ] = None,
    guidance_interval: Annotated[
        str | None, typer.Option(metavar="LO,HI", help="guide only at these shares of the noise; 1 is pure noise")
    ] = None,
    solver: Annotated[
        str | None, typer.Option(help="ddim, dpm++2m, euler-a, unipc, ...; also 'DPM++ 2M Karras'; else the model's")
    ] = None,
    spacing: Annotated[
        str | None, typer.Option(help="of the steps: leading, linspace, trailing; else the model's")
    ] = None,
    sigmas: Annotated[str | None, typer.Option(help="of the steps: karras, exponential; else the model's")] = None,
    eta: Annotated[float | None, typer.Option(help="noise of ddim's steps, 0 to 1; by default 0")] = None,
    seed: Annotated[int | None, typer.Option(help="of the first picture; picture k has seed + k. Else drawn")] = None,
    variation_seed: Annotated[
        int | None, typer.Option(help="of the noise that --seed's is turned towards; picture k has it + k")
    ] = None,
    variation_strength: Annotated[float | None, typer.Option(help="how far, 0 to 1")] = None,
    count: Annotated[int, typer.Option("-c", "--count", help="pictures a prompt")] = 1,
    interpolate: Annotated[
        int | None, typer.Option(metavar="N", help="N frames between each prompt and the next, all of one noise")
    ] = None,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="by default what the model was trained at")] = None,
    init_image: Annotated[Path | None, typer.Option(help="a picture to begin from")] = None,
    strength: Annotated[
        float | None, typer.Option(help="0 to 1: how little is left of --init-image; 0.8, with --mask 1")
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            help="white where --init-image is painted anew; the rest is kept as latents: its pixels go through the VAE"
        ),
    ] = None,
    prompt_syntax: Annotated[str | None, typer.Option(help="plain, or a1111: (words:1.2) have weights")] = None,
    long_prompts: Annotated[
        bool | None, typer.Option(help="read prompts of more tokens than the text encoder's in chunks")
    ] = None,
    clip_skip: Annotated[int | None, typer.Option(help="read CLIP at its N-th last layer; 1 is the last")] = None,
    embedding: Annotated[
        list[Path] | None, typer.Option(help="a textual inversion; its token is the file's name. Repeatable")
    ] = None,
    lora: Annotated[
        list[str] | None, typer.Option(metavar="FILE[:WEIGHT]", help="a LoRA, and how many times. Repeatable")
    ] = None,
    vae: Annotated[
        Path | None, typer.Option(help="another VAE: a folder, or a safetensors file of its weights")
    ] = None,
    vae_tile: Annotated[int | None, typer.Option(metavar="PIXELS", help="run the VAE by tiles: less memory")] = None,
    attention: Annotated[str | None, typer.Option(help="sdpa or xformers; by default sdpa")] = None,
    from_: Annotated[
        Path | None, typer.Option("--from", metavar="FILE.png", help="as this picture was made; flags beside it count")
    ] = None,
    prompts_file: Annotated[
        Path | None, typer.Option(help="one prompt a line, after those given, UTF-8; .jsonl: an object a line")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="leave out what --out holds already of --prompts-file X.jsonl")
    ] = False,
    out: Annotated[Path, typer.Option("-o", "--out", help="folder of the pictures; it is only ever added to")] = Path(
        "outputs"
    ),
    metadata: Annotated[bool, typer.Option(help="write the settings into the pictures")] = True,
    preview_every: Annotated[
        int | None, typer.Option(metavar="N", help="every N steps write what is there so far to preview.png in --out")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, ...; by default cuda where there is one")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="fp32, bf16 or fp16; fp32 on every device unless asked: exact, slower on a GPU")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="pictures at a time; they do not depend on it, but for rounding")] = 8,
) -> None:
    """Generate pictures from prompts, with their settings inside."""
    width, height = parse_size(size)
    given: dict[str, Any] = {
        "negative": negative, "steps": steps, "cfg": cfg, "solver": solver, "spacing": spacing, "sigmas": sigmas,
        "eta": eta, "seed": seed, "size": None if size is None else f"{width}x{height}", "strength": strength,
        "guidance_rescale": guidance_rescale, "guidance_interval": parse_interval(guidance_interval),
        "clip_skip": clip_skip, "prompt_syntax": prompt_syntax, "long_prompts": long_prompts,
        "variation_seed": variation_seed, "variation_strength": variation_strength, "image": init_image, "mask": mask,
        "vae": vae, "embeddings": embedding or None, "loras": [parse_lora(text) for text in lora or []] or None,
        "vae_tile": vae_tile, "attention": attention,
        "dtype": check_dtype(dtype),
    }  # fmt: skip
    order = Order(prompts or [], {name: value for name, value in given.items() if value is not None})
    if preview_every is not None and preview_every < 1:
        raise ValueError(f"--preview-every = {preview_every}: give the number of steps, at least 1")
    orders, model = plan_orders(order, model, from_, prompts_file, resume, count, interpolate)
    from t2i.cli.generate_run import Session, run

    reading = Reading(variant, revision, config, prediction_type)
    run(Session(model, out, device, batch_size, metadata, resume, preview_every, reading), orders)
