"""`t2i generate PROMPT...`: pictures of prompts in a folder."""

import re
import secrets
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

SHIPPED = Path("checkpoints/glyphs")
# The pipeline's arguments by the names that they have here.
FLAGS = {
    "num_images_per_prompt": "--count",
    "num_inference_steps": "--steps",
    "guidance_scale": "--cfg",
    "batch_size": "--batch-size",
    "seeds: ": "--seed: ",
    "solver =": "--solver =",
    "eta =": "--eta =",
    "device =": "--device =",
}
DTYPES = {
    "fp32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
    "float32": "float32",
    "float16": "float16",
    "bfloat16": "bfloat16",
}


def generate(
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT...", help="one picture each (see --count)")
    ] = None,
    model: Annotated[
        Path | None, typer.Option("-m", "--model", help=f"a model's folder; by default the shipped {SHIPPED}")
    ] = None,
    negative: Annotated[str | None, typer.Option("-n", "--negative", help="what not to draw, for all prompts")] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", "--num-inference-steps", help="by default the model's")
    ] = None,
    cfg: Annotated[
        float | None, typer.Option("--cfg", "--guidance-scale", help="by default the model's; 1 is no guidance")
    ] = None,
    solver: Annotated[str | None, typer.Option(help="ddpm, ddim or dpm++2m; by default the model's")] = None,
    eta: Annotated[float, typer.Option(help="noise of ddim's steps, 0 to 1")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="of the first picture; picture k has seed + k. Else drawn")] = None,
    count: Annotated[int, typer.Option("-c", "--count", help="pictures a prompt")] = 1,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="by default what the model was trained at")] = None,
    prompts_file: Annotated[Path | None, typer.Option(help="one prompt a line, after those given, UTF-8")] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="folder of the pictures; it is only ever added to")] = Path(
        "outputs"
    ),
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, ...; by default cuda where there is one")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="fp32, bf16 or fp16; fp32 on every device unless asked: exact, and slower on a GPU")
    ] = "fp32",
    batch_size: Annotated[int, typer.Option(help="pictures at a time; they do not depend on it, but for rounding")] = 8,
) -> None:
    """Generate pictures from prompts, with their settings inside."""
    wanted = [*(prompts or []), *(read_prompts(prompts_file) if prompts_file else [])]
    if not wanted:
        raise ValueError("no prompt: give PROMPT..., or --prompts-file FILE")
    width, height = parse_size(size)
    if dtype not in DTYPES:
        raise ValueError(f"--dtype = {dtype!r} is unknown: choose one of {', '.join(DTYPES)}")
    options = {
        "prompts": wanted,
        "negative_prompt": negative,
        "num_inference_steps": steps,
        "guidance_scale": cfg,
        "solver": solver,
        "eta": eta,
        "seeds": secrets.randbelow(2**32) if seed is None else seed,
        "num_images_per_prompt": count,
        "height": height,
        "width": width,
        "batch_size": batch_size,
    }
    try:
        _run(find_model(model), options, out, device, DTYPES[dtype])
    except ValueError as error:
        message = str(error)
        for name, flag in FLAGS.items():
            message = message.replace(name, flag)
        raise ValueError(message) from None


def _run(model: Path, options: dict[str, Any], out: Path, device: str | None, dtype: str) -> None:
    """Load the model, check the request, write the pictures batch by batch."""
    import torch

    from t2i.errors import RunFailed
    from t2i.pipeline import Pipeline, Request
    from t2i.pipeline.outputs import Pictures
    from t2i.progress import progress

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    pipeline = Pipeline.from_pretrained(model).to(device, getattr(torch, dtype))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        job = pipeline.prepare(Request(**options))
    for warning in caught:
        _say(str(warning.message))
    _say_truncated(job, options["prompts"], options["negative_prompt"])
    assert job.seeds is not None
    _say(f"seed {job.seeds[0]}, {job.count} {'picture' if job.count == 1 else 'pictures'}")
    common = {
        "negative": options["negative_prompt"] or "",
        "steps": job.steps,
        "cfg": job.guidance,
        "solver": job.solver,
        "eta": job.eta,
        "size": f"{job.width}x{job.height}",
        "model": model.resolve().name,
        "model_sha256": sha256(model / "unet" / pipeline.generator.unet.weights_name),
        "dtype": dtype,
        "rng": "cpu",
    }
    pictures = Pictures(out)
    walk = len(job.timesteps)
    done = 0
    try:
        with progress("steps", walk * len(job.batches)) as report:

            def step(_pipeline: Any, index: int, _timestep: int, _tensors: Any) -> None:
                report(done * walk + index + 1)

            for batch in pipeline.run(job, callback=step):
                for picture in batch:
                    k = pictures.next - pictures.first
                    prompt = options["prompts"][k // job.copies]
                    last = pictures.add(picture, {"prompt": prompt, "seed": job.seeds[k], **common})
                done += 1
    except KeyboardInterrupt:
        _say(f"interrupted; {pictures.next - pictures.first} of {job.count} pictures are in {pictures.folder}")
        raise
    except torch.OutOfMemoryError as error:
        raise RunFailed(f"out of memory: lower --batch-size or --size ({str(error).splitlines()[0]})") from None
    _report(pictures, last, job)


def _report(pictures: Any, last: Path, job: Any) -> None:
    """Where the pictures are."""
    grid, first = pictures.grid(), f"{pictures.first:05}-{job.seeds[0]}.png"
    names = first if job.count == 1 else f"{first} to {last.name}"
    typer.echo(f"{pictures.folder}: {names}, seed {job.seeds[0]}")
    if grid is not None:
        shown = len(pictures.shown)
        typer.echo(f"{grid}" + (f" (the first {shown} of {job.count})" if shown < job.count else ""))


def _say_truncated(job: Any, prompts: list[str], negative: str | None) -> None:
    for prompt, rest in dict(zip(prompts, job.texts.truncated, strict=True)).items():
        if rest:
            _say(f"prompt {prompt!r} is too long, these words are left out: {rest!r}")
    if rest := job.texts.negative_truncated[0]:
        _say(f"negative prompt {negative!r} is too long, these words are left out: {rest!r}")


def _say(text: str) -> None:
    print(f"t2i: {text}", file=sys.stderr, flush=True)


def read_prompts(path: Path) -> list[str]:
    """One prompt a line; blank lines are skipped and counted."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
    except OSError as error:
        raise ValueError(f"--prompts-file {path}: not readable ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompts-file {path}: not UTF-8 ({error.reason} at byte {error.start})") from None
    if lines[-1] == "":
        lines.pop()  # what follows the last newline is no line
    prompts = [line for line in lines if line]
    if blank := len(lines) - len(prompts):
        _say(f"{path}: {blank} blank {'line' if blank == 1 else 'lines'} skipped")
    if not prompts:
        raise ValueError(f"--prompts-file {path}: no prompt in it")
    return prompts


def parse_size(size: str | None) -> tuple[int | None, int | None]:
    """(width, height) of "WxH"."""
    if size is None:
        return None, None
    found = re.fullmatch(r"(\d{1,6})x(\d{1,6})", size)
    if not found:
        raise ValueError(f"--size = {size!r} is not WxH, for example 64x64")
    return int(found[1]), int(found[2])


def find_model(model: Path | None) -> Path:
    """The folder asked for; else the shipped one, under the current folder or next to the package."""
    if model is not None:
        return model
    import t2i

    places = [SHIPPED, Path(t2i.__file__).parent.parent / SHIPPED]
    for place in places:
        if place.is_dir():
            return place
    raise ValueError(f"no model: {SHIPPED} is neither here nor next to the package; give one with -m FOLDER")


def sha256(path: Path) -> str:
    """Of a file's bytes."""
    import hashlib

    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
