"""Whole generation, prompt to picture: t2i's `Pipeline` against diffusers' `StableDiffusionPipeline` on one folder.

usage: python scripts/bench_generate.py [--model FOLDER] [--steps 25] [--size PIXELS] [--dtype float32|bfloat16]
The last line is JSON. Exit 1 when the two sides' latents or pictures differ.
"""

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
LATENTS, PICTURES = 1e-3, 2 / 255  # what float32 may differ by: of the largest latent; of a pixel in [0, 1]
PSNR = 30.0  # what bfloat16 must reach: its steps round otherwise, so pixels differ and pictures do not
Side = Callable[[int, str], Any]  # (batch, output type) -> images


def random_pipeline(folder: Path) -> None:
    """Write a pipeline of the shipped model's shape with random weights."""
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


def our_side(folder: Path, options: argparse.Namespace) -> Side:
    """t2i."""
    from t2i.pipeline import Pipeline

    pipeline = Pipeline.from_pretrained(folder).to(dtype=getattr(torch, options.dtype))

    def run(batch: int, output_type: str = "pil") -> Any:
        return pipeline(
            PROMPTS[:batch],
            num_inference_steps=options.steps,
            guidance_scale=GUIDANCE,
            solver="ddim",
            seeds=0,
            height=options.size,
            width=options.size,
            output_type=output_type,
        ).images

    return run


def peer_side(folder: Path, options: argparse.Namespace) -> Side:
    """diffusers, as its documentation loads it."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from diffusers.utils import logging

    warnings.simplefilter("ignore", FutureWarning)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=getattr(torch, options.dtype))
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)

    def run(batch: int, output_type: str = "pil") -> Any:
        output: Any = pipeline(
            PROMPTS[:batch],
            num_inference_steps=options.steps,
            guidance_scale=GUIDANCE,
            generator=[torch.Generator().manual_seed(seed) for seed in range(batch)],
            height=options.size,
            width=options.size,
            output_type=output_type,
        )
        return output.images

    return run


def compare(ours: Side, peer: Side, batch: int, dtype: str) -> dict[str, Any]:
    """How far the latents and the finished pictures are apart, and whether that is equal for `dtype`."""
    latents = benching.apart(ours(batch, "latent"), peer(batch, "latent"))
    found, wanted = (np.stack([np.asarray(p, dtype=float) / 255 for p in side(batch, "pil")]) for side in (ours, peer))
    difference = np.abs(found - wanted)
    psnr = float(-10 * np.log10(max(float((difference**2).mean()), 1e-12)))
    exact = latents <= LATENTS and float(difference.max()) <= PICTURES + 1e-9
    return {
        "ok": bool(exact if dtype == "float32" else psnr >= PSNR),
        "latents": latents,
        "pictures_255": float(difference.max() * 255),
        "psnr": round(psnr, 1),
    }


def child(side: str, folder: Path, options: argparse.Namespace) -> None:
    """One side alone: its peak memory at the largest batch."""
    make = {"ours": our_side, "peer": peer_side}[side]
    run = make(folder, options)
    for _ in range(2):
        run(max(options.batch), "pil")
    benching.print_peak()


def bench(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Parity of every cell first, then its times."""
    ours, peer = our_side(folder, options), peer_side(folder, options)
    parity = {f"batch {b}": compare(ours, peer, b, options.dtype) for b in options.batch}
    if not all(cell["ok"] for cell in parity.values()):
        benching.fail(parity)
    cells = {}
    for batch in options.batch:
        name = f"batch {batch}"
        rounds = benching.interleave(
            lambda b=batch: ours(b, "pil"), lambda b=batch: peer(b, "pil"), options.rounds, options.warmups
        )
        cells[name] = benching.summary(rounds)
        benching.show(name, cells[name])
    command = [__file__, "--model", str(folder), "--steps", str(options.steps), "--dtype", options.dtype]
    command += ["--batch", *map(str, options.batch)] + (["--size", str(options.size)] if options.size else [])
    return benching.report(cells, parity, benching.peaks(command))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a folder; by default checkpoints/glyphs, or random weights")
    parser.add_argument("--steps", type=int, default=25, help="a divisor of 1000: diffusers' DDIM needs one")
    parser.add_argument("--size", type=int, help="side of the pictures in pixels; by default the model's")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--warmups", type=int, default=3)
    parser.add_argument("--child", choices=benching.SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.model or SHIPPED
        if not options.model and not SHIPPED.is_dir():
            folder = Path(temporary) / "model"
            random_pipeline(folder)
        if options.child:
            child(options.child, folder, options)
        else:
            print(json.dumps(bench(folder, options)))


if __name__ == "__main__":
    main()
