"""OpenVINO against torch and diffusers on a CPU: whole generations, and the networks one by one.

usage: python scripts/bench_engine.py [--model glyphs sd15] [--size PIXELS ...] [--steps N] [--batch N ...]
       [--dtype float32 bfloat16] [--threads N] [--rounds N]
The model sd15 has random weights of Stable Diffusion 1.5's shape (4.3 GB in the temporary folder). The peers of
t2i's OpenVINO engine are
  torch       t2i's torch engine in the same dtype
  documented  diffusers in float32, as its documentation loads it
  tuned       diffusers in bfloat16 with channels_last weights, as its documentation tunes it
Outputs are compared before anything is timed: in float32 latents within 1e-4 of the largest and images within 1/255,
in bfloat16 images within 30 dB. The ratio is the peer's time over OpenVINO's. The last line is JSON. Exit 1 if outputs
differ.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from scripts import bench_generate, benching

LATENTS, IMAGES_255, PSNR = 1e-4, 1.001, 30.0
SIZES: dict[str, list[int | None]] = {"glyphs": [None], "sd15": [256, 512], "tiny": [64]}
BATCHES = {"glyphs": [1, 8], "sd15": [1], "tiny": [1, 2]}
STEPS = {"glyphs": 25, "sd15": 4, "tiny": 2}
FIGURES = {
    "torch": {d: bench_generate.Figure(d, d) for d in ("float32", "bfloat16")},
    "documented": {"float32": bench_generate.Figure("float32", "float32")},
    "tuned": {"bfloat16": bench_generate.Figure("bfloat16", "bfloat16", channels_last=True)},
}


def pipeline(folder: Path, dtype: str, engine: str, cache: Path) -> Any:
    """Returns t2i's pipeline in `dtype` on an engine."""
    from t2i.pipeline import Pipeline

    opened = Pipeline.from_pretrained(folder).to("cpu", getattr(torch, dtype))
    return opened if engine == "torch" else opened.use_engine(engine, cache)


def parts(ours: Any, peer: Any, side: int, batch: int) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """Returns, for each network, its call by both engines on the same inputs; the U-Net's batch is doubled."""
    from t2i.conditioning import Conditioning

    config, vae = ours.generator.unet.config, ours.autoencoder.config
    dtype = next(peer.generator.unet.parameters()).dtype
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2 * batch, config.in_channels, side, side, generator=draw).to(dtype)
    z = torch.randn(batch, vae.latent_channels, side, side, generator=draw).to(dtype)
    t = torch.full((2 * batch,), 500)
    tokens = peer.text_encoder(bench_generate.PROMPTS[:1]).conditioning.tokens.repeat(2 * batch, 1, 1)
    cond = Conditioning(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))

    def calls(p: Any) -> dict[str, Callable[[], Any]]:
        return {
            "unet": lambda: p.generator.unet(x, t, cond),
            "vae decoder": lambda: p.autoencoder.decode(z),
            "text encoder": lambda: p.text_encoder(bench_generate.PROMPTS[:batch]),
        }

    mine, theirs = calls(ours), calls(peer)
    return {name: (mine[name], theirs[name]) for name in mine}


def equal(difference: dict[str, Any], dtype: str) -> bool:
    """Returns True if latents and images are equal within what `dtype` allows."""
    if dtype == "float32":
        return difference["latents"] <= LATENTS and difference["images_255"] <= IMAGES_255
    return difference["psnr"] >= PSNR


def measure(model: str, folder: Path, options: argparse.Namespace) -> tuple[dict[str, Any], ...]:
    """Returns a model's cells, differences of outputs, and seconds of conversion and of each shape's first call."""
    cells: dict[str, Any] = {}
    parity: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    for dtype in options.dtype:
        start = time.perf_counter()
        ours = pipeline(folder, dtype, "openvino", options.cache)
        seconds[f"{model}, {dtype}, conversion"] = round(time.perf_counter() - start, 2)
        mine = bench_generate.side_of(ours, options.steps)
        peers: dict[str, Any] = {}
        for name, figures in FIGURES.items():
            if dtype not in figures:
                continue
            peer = pipeline(folder, dtype, "torch", options.cache) if name == "torch" else None
            theirs = bench_generate.side_of(peer, options.steps) if peer else None
            peers[name] = (figures[dtype], peer, theirs or bench_generate.peer_side(folder, figures[dtype], options))
        for size in options.size or SIZES[model]:
            for batch in options.batch or BATCHES[model]:
                asked = (batch, "pil", size)
                place = f"{model}, {dtype}, {size or 'default'} pixels, batch {batch}"
                start = time.perf_counter()
                mine(batch, "latent", size)
                first = time.perf_counter() - start
                for name, (figure, peer, theirs) in peers.items():
                    cell = f"{place}, {name}"
                    parity[cell] = bench_generate.compare(mine, theirs, batch, figure, size)
                    parity[cell]["ok"] = equal(parity[cell], dtype)
                    if not parity[cell]["ok"]:
                        benching.fail(parity)
                    timed = benching.interleave(partial(mine, *asked), partial(theirs, *asked), options.rounds, 1)
                    cells[cell] = benching.summary(timed)
                    benching.show(cell, cells[cell])
                    if peer is None:
                        continue
                    side = (size or peer.default_size()[0]) // peer.autoencoder.factor
                    with torch.inference_mode():
                        for part, (a, b) in parts(ours, peer, side, batch).items():
                            cells[f"{place}, {part}"] = benching.summary(benching.interleave(a, b, options.rounds, 2))
                            benching.show(f"{place}, {part}", cells[f"{place}, {part}"])
                seconds[place] = round(first, 2)
    return cells, parity, seconds


def child(side: str, folder: Path, options: argparse.Namespace) -> None:
    """Prints the peak memory of one engine alone: "ours" is OpenVINO with an empty cache, "peer" is torch."""
    with tempfile.TemporaryDirectory() as cache:
        engine = "openvino" if side == "ours" else "torch"
        run = bench_generate.side_of(pipeline(folder, options.dtype[0], engine, Path(cache)), options.steps)
        run(1, "pil", options.size[0] if options.size else None)
        benching.print_peak()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["glyphs", "sd15"], help="glyphs, sd15, tiny or folders")
    parser.add_argument("--size", type=int, nargs="+", help="sides of the images in pixels; by default the model's")
    parser.add_argument("--steps", type=int, help="by default 25; for sd15 4")
    parser.add_argument("--batch", type=int, nargs="+", help="by default 1 and 8; for sd15 1")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cache", type=Path, help="folder of converted networks; by default a temporary one")
    parser.add_argument("--child", choices=benching.SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.engine, options.device = "eager", "cpu"
    cells: dict[str, Any] = {}
    parity: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    peaks: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        options.cache = options.cache or Path(temporary) / "cache"
        for model in options.model:
            folder = bench_generate.SHIPPED if model == "glyphs" else Path(model)
            if model in bench_generate.SHAPES:
                folder = Path(temporary) / model
                bench_generate.shaped_pipeline(bench_generate.SHAPES[model][0], folder)
            steps, options.steps = options.steps, options.steps or STEPS.get(model, 25)
            if options.child:
                return child(options.child, folder, options)
            measured = measure(model if model in SIZES else "glyphs", folder, options)
            for total, part in zip((cells, parity, seconds), measured, strict=True):
                total.update(part)
            command = [__file__, "--model", str(folder), "--steps", str(options.steps), "--dtype", options.dtype[0]]
            peaks[model] = benching.peaks(command + (["--size", "256"] if model == "sd15" else []))
            options.steps = steps
    print(json.dumps(benching.report(cells, parity, peaks) | {"first_s": seconds}))


if __name__ == "__main__":
    main()
