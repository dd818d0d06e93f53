"""Generation from prompt to image: t2i's `Pipeline` against diffusers' `StableDiffusionPipeline` on one folder.

usage: python scripts/bench_generate.py [--model FOLDER | --sd15 | --tiny] [--against FIGURE ...] [--size PIXELS ...]
       [--steps N] [--batch N ...] [--device cuda] [--engine eager|compiled|graph]
--sd15 makes random weights of Stable Diffusion 1.5's shape (4.3 GB in the temporary folder; 9 GB of memory), --tiny the
same with few channels. The figures (ratio = the peer's time / ours):
  documented      both in float32, diffusers as its documentation loads it
  tuned           both in bfloat16, diffusers with channels_last weights as its documentation tunes it
  bf16-over-fp32  ours in bfloat16 against diffusers' float32 default: not equal dtypes, so it stands apart
The last line is JSON; its "ratio" is the smallest one at equal dtypes. Exit 1 when the two sides' latents or images
differ.
"""

import argparse
import gc
import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from scripts import benching

PROMPTS = [
    "red anvil icon on a yellow background",
    "white dragon icon on a blue background",
    "black umbrella icon on a orange background",
    "green spider alt icon on a pink background",
    "frog, noto emoji",
    "strawberry, firefox emoji",
    "superhero, noto emoji",
    "a small red circle above a large blue square",
]
SHIPPED = benching.ROOT / "checkpoints" / "glyphs"
GUIDANCE = 4.0
LATENTS, PIXELS = 1e-3, 2 / 255  # tolerances in float32: relative to the largest latent; of a pixel in [0, 1]
PSNR = 30.0  # least in bfloat16, whose rounding changes pixels but not the image
Side = Callable[[int, str, int | None], Any]  # (batch, output type, side of the images) -> images
ENGINES = {"eager": None, "compiled": "default", "graph": "reduce-overhead"}  # torch.compile's modes


class Figure(NamedTuple):
    """The dtypes of t2i and of the peer; `channels_last` is the memory format of the peer's weights."""

    ours: str
    peer: str
    channels_last: bool = False


FIGURES = {
    "documented": Figure("float32", "float32"),
    "tuned": Figure("bfloat16", "bfloat16", channels_last=True),
    "bf16-over-fp32": Figure("bfloat16", "float32"),
}
Shape = dict[str, dict[str, Any]]
SD15: Shape = {
    "text": {"width": 768, "layers": 12, "heads": 12, "embedding_std": 0.02},
    "unet": {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "attention_head_dim": 8},
    "vae": {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512},
}
TINY: Shape = {
    "text": {"width": 32, "layers": 2, "heads": 2, "embedding_std": 0.02},
    "unet": {"block_out_channels": (32, 64, 128, 128), "cross_attention_dim": 32, "attention_head_dim": 2},
    "vae": {"block_out_channels": (32, 32, 64, 64), "layers_per_block": 2, "sample_size": 512},
}
SHAPES = {"sd15": (SD15, [256, 512]), "tiny": (TINY, [64, 128])}  # with the sides of their images


@torch.no_grad()
def shaped_pipeline(shape: Shape, folder: Path) -> None:
    """Writes a pipeline of Stable Diffusion 1's architecture with random weights, whose images have contrast."""
    from t2i.autoencoder.kl import AutoencoderKL, AutoencoderKLConfig
    from t2i.generator.latent_diffusion import LatentDiffusion
    from t2i.generator.scheduler_config import SchedulerConfig
    from t2i.generator.unet import UNet
    from t2i.generator.unet_config import UNetConfig
    from t2i.pipeline import Pipeline
    from t2i.text.clip import CLIPTextEncoder
    from t2i.text.tokenizer import SMALLEST, learn_tokenizer
    from t2i.text.towers import TextTowerConfig, text_tower

    torch.manual_seed(0)
    tokenizer = learn_tokenizer(PROMPTS, SMALLEST + 100, model_max_length=77)
    tower = text_tower(TextTowerConfig(**shape["text"]), tokenizer, shape["text"]["width"])
    unet = UNet(UNetConfig(sample_size=64, **shape["unet"])).eval()
    unet.conv_out.weight *= 3  # so that its output, as a trained one's, is as large as noise
    vae = AutoencoderKL(AutoencoderKLConfig(**shape["vae"])).eval()
    vae.decoder.conv_out.weight *= 0.5 / vae.decode(torch.randn(1, 4, 8, 8)).std()
    betas: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = SchedulerConfig(**betas, set_alpha_to_one=False, steps_offset=1)
    generator = LatentDiffusion.from_config(unet, scheduler)
    Pipeline(CLIPTextEncoder(tower.text_model, None, tokenizer), generator, vae, scheduler).save_pretrained(folder)


def random_pipeline(folder: Path) -> None:
    """Writes a pipeline of the shipped model's shape with random weights."""
    from t2i.autoencoder.kl import AutoencoderKL, AutoencoderKLConfig
    from t2i.generator.latent_diffusion import LatentDiffusion
    from t2i.generator.scheduler_config import SchedulerConfig
    from t2i.generator.unet import UNet
    from t2i.generator.unet_config import UNetConfig
    from t2i.pipeline import Pipeline
    from t2i.text.clip import CLIPTextEncoder
    from t2i.text.tokenizer import SMALLEST, learn_tokenizer
    from t2i.text.towers import TextTowerConfig, text_tower

    torch.manual_seed(0)
    vae = AutoencoderKL(AutoencoderKLConfig(**benching.section("configs/glyphs/vae.yaml", "vae")))
    tokenizer = learn_tokenizer(PROMPTS, SMALLEST + 100, model_max_length=32)
    tower = text_tower(TextTowerConfig(), tokenizer, 128)
    text = CLIPTextEncoder(tower.text_model, None, tokenizer)
    channels = vae.config.latent_channels
    follows = {"in_channels": channels, "out_channels": channels, "sample_size": 64 // vae.factor}
    follows |= {"encoder_hid_dim": text.width, "encoder_hid_dim_type": "text_proj"}
    unet = UNet(UNetConfig(**benching.section("configs/glyphs/unet.yaml", "unet") | follows))
    scheduler = SchedulerConfig(**benching.section("configs/glyphs/unet.yaml", "scheduler"))
    Pipeline(text, LatentDiffusion.from_config(unet, scheduler), vae, scheduler).save_pretrained(folder)


def our_side(folder: Path, figure: Figure, options: argparse.Namespace) -> Side:
    """Returns t2i's side."""
    from t2i.pipeline import Pipeline

    pipeline = Pipeline.from_pretrained(folder).to(options.device, getattr(torch, figure.ours))
    if mode := ENGINES[options.engine]:
        pipeline.generator.unet.compile(mode=mode)
    return side_of(pipeline, options.steps)


def side_of(pipeline: Any, steps: int) -> Side:
    """Returns the side of a t2i pipeline."""

    def run(batch: int, output_type: str = "pil", size: int | None = None) -> Any:
        return pipeline(
            PROMPTS[:batch],
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            solver="ddim",
            seeds=0,
            height=size,
            width=size,
            batch_size=batch,
            output_type=output_type,
        ).images

    return run


def peer_side(folder: Path, figure: Figure, options: argparse.Namespace) -> Side:
    """Returns diffusers' side, loaded as in its documentation; with channels_last, tuned as in its documentation."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from diffusers.utils import logging

    warnings.simplefilter("ignore", FutureWarning)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    pipeline: Any = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=getattr(torch, figure.peer))
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(options.device)
    if figure.channels_last:
        pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.vae.to(memory_format=torch.channels_last)
    if mode := ENGINES[options.engine]:
        pipeline.unet.compile(mode=mode)

    def run(batch: int, output_type: str = "pil", size: int | None = None) -> Any:
        return pipeline(
            PROMPTS[:batch],
            num_inference_steps=options.steps,
            guidance_scale=GUIDANCE,
            generator=[torch.Generator().manual_seed(seed) for seed in range(batch)],
            height=size,
            width=size,
            output_type=output_type,
        ).images

    return run


def compare(ours: Side, peer: Side, batch: int, figure: Figure, size: int | None = None) -> dict[str, Any]:
    """Compares the latents and the images of both sides; `ok` is True if they are equal within their dtype."""
    latents = benching.apart(ours(batch, "latent", size).cpu(), peer(batch, "latent", size).cpu())
    sides = (np.stack([np.asarray(p, dtype=float) / 255 for p in side(batch, "pil", size)]) for side in (ours, peer))
    images, reference = sides
    difference = np.abs(images - reference)
    psnr = float(-10 * np.log10(max(float((difference**2).mean()), 1e-12)))
    exact = latents <= LATENTS and float(difference.max()) <= PIXELS + 1e-9
    return {
        "ok": bool(exact if figure.ours == "float32" else psnr >= PSNR),
        "latents": latents,
        "images_255": float(difference.max() * 255),
        "psnr": round(psnr, 1),
        "contrast_255": round(float(reference.std() * 255), 1),
    }


def child(side: str, folder: Path, options: argparse.Namespace) -> None:
    """Prints the peak memory of one side alone, at the largest batch and size."""
    run = {"ours": our_side, "peer": peer_side}[side](folder, FIGURES[options.against[0]], options)
    for _ in range(2):
        run(max(options.batch), "pil", options.size[-1])
    benching.print_peak()


def measure(name: str, folder: Path, options: argparse.Namespace, parity: dict[str, Any]) -> dict[str, Any]:
    """Checks the parity of all cells of a figure, then returns their times."""
    figure = FIGURES[name]
    ours, peer = our_side(folder, figure, options), peer_side(folder, figure, options)
    sizes = {"" if size is None else f"{size}x{size}, ": size for size in options.size}
    requests = {f"{name}, {side}batch {batch}": (batch, sizes[side]) for side in sizes for batch in options.batch}
    parity |= {cell: compare(ours, peer, batch, figure, size) for cell, (batch, size) in requests.items()}
    if not all(cell["ok"] for cell in parity.values()):
        benching.fail(parity)
    cells = {}
    for cell, (batch, size) in requests.items():
        asked = (batch, "pil", size)
        rounds = benching.interleave(partial(ours, *asked), partial(peer, *asked), options.rounds, options.warmups)
        cells[cell] = benching.summary(rounds)
        benching.show(cell, cells[cell])
    return cells


def bench(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Runs one figure after the other, so that only two pipelines are in memory at a time."""
    parity, cells, unequal = {}, {}, {}
    for name in options.against:
        figure = FIGURES[name]
        (cells if figure.ours == figure.peer else unequal).update(measure(name, folder, options, parity))
        gc.collect()
    command = [__file__, "--model", str(folder), "--steps", str(options.steps), "--device", options.device]
    command += ["--batch", *map(str, options.batch), "--against", *options.against]
    command += ["--size", *map(str, options.size)] if options.size != [None] else []
    results = benching.report(cells or unequal, parity, benching.peaks(command))
    return results | {"engine": options.engine, "device": options.device, "unequal_dtypes": unequal}


def parse() -> argparse.Namespace:
    """Parses the options and fills in those that depend on the shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--model", type=Path, help="a folder; by default checkpoints/glyphs, or random weights")
    for shape in SHAPES:
        model.add_argument(f"--{shape}", dest="shape", action="store_const", const=shape, help="random weights")
    parser.add_argument("--against", choices=FIGURES, nargs="+", help="by default documented; all with random weights")
    parser.add_argument("--steps", type=int, help="a divisor of 1000: diffusers' DDIM needs one; by default 25, or 4")
    parser.add_argument("--size", type=int, nargs="+", help="sides of the images in pixels; by default the model's")
    parser.add_argument(
        "--batch", type=int, nargs="+", help="by default 1 and 8; with random weights 1, on a GPU 1 4 16"
    )
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--warmups", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--engine", choices=ENGINES, default="eager", help="how both U-Nets run; graph: CUDA graphs")
    parser.add_argument("--child", choices=benching.SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    shaped = options.shape is not None
    options.against = options.against or (list(FIGURES) if shaped else ["documented"])
    options.steps = options.steps or (4 if shaped else 25)
    options.size = options.size or (SHAPES[options.shape][1] if shaped else [None])
    on_gpu = torch.device(options.device).type == "cuda"
    options.batch = options.batch or ([1, 4, 16] if on_gpu else [1] if shaped else [1, 8])
    if options.engine == "graph" and not on_gpu:
        parser.error("--engine graph: CUDA graphs need --device cuda")
    return options


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.model or SHIPPED
        if options.shape is not None:
            folder = Path(temporary) / options.shape
            shaped_pipeline(SHAPES[options.shape][0], folder)
        elif not options.model and not SHIPPED.is_dir():
            folder = Path(temporary) / "model"
            random_pipeline(folder)
        if options.child:
            child(options.child, folder, options)
        else:
            print(json.dumps(bench(folder, options)))


if __name__ == "__main__":
    main()
