"""One optimiser step of a LoRA at Stable Diffusion 1.5's shape: t2i's loop against that of diffusers' example
train_text_to_image_lora.

Both start from the same weights with the same LoRA (rank 4 on the attention). The figures (ratio = the peer's / ours):
  loop    the example's step, which encodes its images and captions in each step; t2i reads them from its cache
  cached  the peer too has its latents and text states in memory: the U-Net's work alone
In half precision both hold the frozen weights in it and the LoRA in float32.

usage: python scripts/bench_lora_step.py [--tiny] [--size PIXELS] [--batch N] [--precision no bf16 ...] [--rounds N]
The last line is JSON; its "ratio" is the smallest one. Exit 1 when the losses or the updated LoRAs differ.
"""

import argparse
import json
import math
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from scripts import benching
from scripts.bench_generate import PROMPTS, SHAPES, shaped_pipeline

RANK, LR, WEIGHT_DECAY, CLIP, PARITY_STEPS = 4, 1e-4, 0.01, 1.0, 2
# What losses (relative) and updates (norm of the difference, relative) may differ by. AdamW's first steps are as long
# as the learning rate whatever the gradient is, so weights whose gradient is all rounding error go either way; in half
# precision that is most of them, and the example adds its noise in half precision too: losses alone are compared.
ALLOWED = {"no": (1e-5, 2e-2), "bf16": (2e-2, math.inf), "fp16": (2e-2, math.inf)}
TOP_T = 1000


def write(shape: str, size: int, folder: Path) -> None:
    """Writes the model, and a folder of noise images with captions."""
    shaped_pipeline(SHAPES[shape][0], folder / "model")
    (folder / "images").mkdir()
    for k, prompt in enumerate(PROMPTS):
        pixels = torch.randint(256, (size, size, 3), generator=torch.Generator().manual_seed(k), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / "images" / f"{k}.png")
        (folder / "images" / f"{k}.txt").write_text(prompt)


class Ours(benching.OurLoop):
    """t2i's side: the task of `t2i finetune`."""

    def __init__(self, folder: Path, size: int, batch: int, precision: str) -> None:
        from t2i.cli.finetune import gather
        from t2i.pipeline import Pipeline
        from t2i.training.finetune.run import check_data, complete
        from t2i.training.finetune.task import FinetuneTask

        settings = {
            "method": "lora",
            "size": size,
            "lora.rank": RANK,
            "caption_dropout": 0,
            "held_out": 1,
            "train.steps": 10**6,
            "train.global_batch": batch,
            "train.lr": LR,
            "train.lr_schedule": "constant",
            "train.warmup_steps": 0,
            "train.weight_decay": WEIGHT_DECAY,
            "train.clip_norm": CLIP,
            "train.mixed_precision": precision,
            "cache": folder / "cache",
        }
        where = {"model": str(folder / "model"), "data": str(folder / "images"), "out": str(folder / "run")}
        values = gather([f"{key}={value}" for key, value in settings.items()], where)
        pipeline = Pipeline.from_pretrained(values["model"])
        recipe, sources = complete(values, pipeline, check_data(values, pipeline, quiet=True))
        super().__init__(FinetuneTask(recipe, pipeline, sources, quiet=True), recipe)

    def lora(self) -> dict[str, Tensor]:
        """Returns the LoRA's parameters by the peer's names."""
        from t2i.nn.lora import lora_state

        layers = lora_state(self.task.pipeline.generator.unet)
        return {f"{name}.{end}": w for name, layer in layers.items() for end, w in zip("AB", layer[:2], strict=True)}


class Peer:
    """diffusers' side: the lines between data loader and progress bar of its LoRA example for text to image."""

    def __init__(self, folder: Path, size: int, batch: int, precision: str) -> None:
        from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import cast_training_params
        from peft import LoraConfig
        from transformers import CLIPTextModel, CLIPTokenizer

        self.size, self.pixels = batch, size
        self.dtype = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        model = folder / "model"
        self.scheduler: Any = DDPMScheduler.from_pretrained(model, subfolder="scheduler")
        self.accelerator = Accelerator(mixed_precision=precision)
        device = self.accelerator.device
        self.vae: Any = AutoencoderKL.from_pretrained(model, subfolder="vae").requires_grad_(False)
        self.vae.to(device, self.dtype)
        self.text: Any = CLIPTextModel.from_pretrained(model / "text_encoder").requires_grad_(False)
        self.text.to(device, self.dtype)
        self.tokenizer = CLIPTokenizer.from_pretrained(model / "tokenizer")
        self.network: Any = UNet2DConditionModel.from_pretrained(model, subfolder="unet").requires_grad_(False)
        self.network.to(device, self.dtype)
        targets = ["to_k", "to_q", "to_v", "to_out.0"]
        config = LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=targets)
        self.network.add_adapter(config)
        cast_training_params(self.network, dtype=torch.float32)
        self.layers = [p for p in self.network.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(self.layers, lr=LR, betas=(0.9, 0.999), weight_decay=WEIGHT_DECAY, eps=1e-8)
        self.unet, self.optimizer, self.rate = self.accelerator.prepare(
            self.network.train(), optimizer, get_scheduler("constant", optimizer)
        )
        self.train_loss = 0.0
        self.images = torch.rand(len(PROMPTS), 3, size, size) * 2 - 1
        self.ids = self.tokenizer(PROMPTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt")

    def remember(self) -> None:
        """Returns latents and states of every image, for `cached`."""
        with torch.no_grad():
            parts = [self.encode(torch.tensor([k])) for k in range(len(PROMPTS))]
        self.kept = [torch.cat(part) for part in zip(*parts, strict=True)]

    def encode(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Returns latents and text states, computed as in every step of the example."""
        device = self.accelerator.device
        pixels = self.images[rows].to(device, self.dtype)
        latents = self.vae.encode(pixels).latent_dist.sample() * self.vae.config.scaling_factor
        return latents, self.text(self.ids["input_ids"][rows].to(device), return_dict=False)[0]

    def batch(self, cached: bool) -> dict[str, Any]:
        """Returns latents, states, noise and t, drawn as in the example."""
        rows = torch.randint(len(PROMPTS), (self.size,))
        latents, states = [part[rows] for part in self.kept] if cached else self.encode(rows)
        t = torch.randint(0, TOP_T, (self.size,), device=latents.device)
        return {"latents": latents, "states": states, "noise": torch.randn_like(latents), "t": t}

    def step(self, batch: dict[str, Any] | None = None, cached: bool = False) -> Tensor:
        """Takes one step, on a new batch unless one is given; returns the loss."""
        with self.accelerator.accumulate(self.unet):
            batch = batch or self.batch(cached)
            noisy = self.scheduler.add_noise(batch["latents"], batch["noise"], batch["t"])
            predicted = self.unet(noisy, batch["t"], batch["states"], return_dict=False)[0]
            loss = F.mse_loss(predicted.float(), batch["noise"].float(), reduction="mean")
            gathered: Any = self.accelerator.gather(loss.repeat(self.size))
            self.train_loss += gathered.mean().item()
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.layers, CLIP)
            self.optimizer.step()
            self.rate.step()
            self.optimizer.zero_grad()
        return loss.detach()

    def lora(self) -> dict[str, Tensor]:
        """Returns the LoRA's parameters by name."""
        named = self.network.named_parameters()
        ends = {".lora_A.default.weight": ".A", ".lora_B.default.weight": ".B"}
        return {name.replace(k, v): p.detach() for name, p in named for k, v in ends.items() if name.endswith(k)}


def compare(ours: Ours, peer: Peer, precision: str) -> dict[str, Any]:
    """Returns the differences of losses and LoRA updates in the first steps, on equal batches."""
    mine, theirs = ours.lora(), peer.lora()
    assert mine.keys() == theirs.keys()
    for name, weight in theirs.items():
        weight.copy_(mine[name])
    before = {name: weight.clone() for name, weight in mine.items()}
    losses = []
    for _ in range(PARITY_STEPS):
        (batch,) = next(ours.batches)
        moved = {"latents": batch["latents"], "states": batch["cond"].tokens, "noise": batch["eps"]}
        same = {k: v.to(peer.accelerator.device, peer.dtype) for k, v in moved.items()}
        same["t"] = (batch["t"] - 1).to(peer.accelerator.device)
        losses.append((ours.step(batch).item(), peer.step(same).item()))
    moved, apart = (
        torch.cat([(theirs[k] - other[k]).flatten() for k in before]).norm().item() for other in (before, mine)
    )
    loss = max(abs(a - b) / b for a, b in losses)
    allowed = ALLOWED[precision]
    ok = loss <= allowed[0] and moved > 0 and apart / moved <= allowed[1]
    return {"ok": ok, "loss": loss, "update": apart / moved}


def child(side: str, options: argparse.Namespace) -> None:
    """Prints the peak memory of three steps of one side alone, after loading."""
    [precision] = options.precision
    sides = {"ours": Ours, "peer": Peer}
    runner = sides[side](options.folder, options.size, options.batch, precision)
    benching.forget_peak()
    for _ in range(3):
        runner.step()
    benching.print_peak()


def bench(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Checks the parity of every precision, then times it; the memory is that of the last precision."""
    parity, cells = {}, {}
    size, batch = options.size, options.batch
    for precision in options.precision:
        AcceleratorState._reset_state(reset_partial_state=True)  # it holds the precision of the whole process
        ours, peer = Ours(folder, size, batch, precision), Peer(folder, size, batch, precision)
        parity[precision] = compare(ours, peer, precision)
        if not parity[precision]["ok"]:
            benching.fail(parity)
        peer.remember()
        for figure in ("loop", "cached"):
            name = f"{figure} {precision}, {size}x{size}, batch {batch}"
            rounds = benching.interleave(
                ours.step, partial(peer.step, cached=figure == "cached"), options.rounds, options.warmups
            )
            cells[name] = benching.summary(rounds)
            benching.show(name, cells[name])
        del ours, peer
    command = [__file__, "--folder", str(folder), "--size", str(size), "--batch", str(batch)]
    return benching.report(cells, parity, benching.peaks([*command, "--precision", options.precision[-1]]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="few channels, 64x64: for a test of this script")
    parser.add_argument("--size", type=int, help="side of the images; by default 256")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--precision", nargs="+", choices=ALLOWED, default=["no", "bf16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warmups", type=int, default=1)
    parser.add_argument("--child", choices=benching.SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.size = options.size or (64 if options.tiny else 256)
    if options.child:
        child(options.child, options)
        return
    with tempfile.TemporaryDirectory() as root:
        write("tiny" if options.tiny else "sd15", options.size, Path(root))
        print(json.dumps(bench(options, Path(root))))


if __name__ == "__main__":
    main()
