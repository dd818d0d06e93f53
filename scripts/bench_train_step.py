"""One optimiser step of U-Net training: t2i's loop against the loop of diffusers' text_to_image example.

Both start from the same weights and train on the same cached latents and text states. A step is all of it: the batch
out of the cache, noise and t, forward, backward, clipping, AdamW, EMA. `--tuned` gives diffusers what its example
leaves out: fused AdamW and an EMA by foreach.

usage: python scripts/bench_train_step.py [--cells NAME ...] [--rounds N] [--tuned]
The last line is JSON. Exit 1 when the losses or the updated weights differ.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from scripts import benching

LR, DECAY, CLIP, WEIGHT_DECAY = 1e-4, 0.9995, 1.0, 0.01
TOKENS, ROWS, SCALE, PARITY_STEPS = 32, 512, 0.18215, 2
# What losses (relative) and updates (norm of the difference, relative) may differ by. AdamW's first steps are as long
# as the learning rate whatever the gradient is, so weights whose gradient is all rounding error go either way.
ALLOWED = {"no": (1e-5, 1e-2), "bf16": (5e-3, 0.3)}
PARTS: dict[str, str] = dict.fromkeys(("data", "size", "vae", "text_encoder"), "random")
_TOP = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
_SMALL = {"block_out_channels": (64, 128, 256), "attention_head_dim": (1, 2, 4), "cross_attention_dim": 256, **_TOP}
_TINY = {"block_out_channels": (32, 32, 32), "norm_num_groups": 8, "layers_per_block": 1, **_TOP}
_TINY |= {"attention_head_dim": 2, "cross_attention_dim": 32}


@dataclass(frozen=True)
class Cell:
    """A U-Net, its schedule and the settings of its training step."""

    unet: dict[str, Any]
    scheduler: dict[str, Any]
    batch: int
    precision: str
    channels: int  # of the latents, `side` a side
    side: int
    width: int  # of the text states

    @property
    def config(self) -> dict[str, Any]:
        follows = {"in_channels": self.channels, "out_channels": self.channels, "sample_size": self.side}
        follows |= {"dropout": 0}  # the two sides would draw different masks
        return self.unet | follows | {"encoder_hid_dim": self.width, "encoder_hid_dim_type": "text_proj"}


def cells() -> dict[str, Cell]:
    """Returns the cells by name; the last one is for tests."""
    glyphs = benching.section("configs/glyphs/unet.yaml", "unet")
    scheduler = benching.section("configs/glyphs/unet.yaml", "scheduler")
    schedule = {key: scheduler[key] for key in ("beta_schedule", "prediction_type")}
    return {
        "glyphs fp32": Cell(glyphs, schedule, 64, "no", 8, 8, 160),
        "glyphs bf16": Cell(glyphs, schedule, 64, "bf16", 8, 8, 160),
        "64-128-256 fp32": Cell(_SMALL, {"beta_schedule": "scaled_linear"}, 8, "no", 4, 16, 768),
        "tiny fp32": Cell(_TINY, {"beta_schedule": "linear"}, 2, "no", 4, 8, 16),
    }


def write(cell: Cell, folder: Path) -> None:
    """Writes the weights, t2i's cache, and the same tensors in one file for the peer."""
    from t2i.conditioning import Conditioning
    from t2i.data.cache import build_cache
    from t2i.generator.unet import UNet
    from t2i.generator.unet_config import UNetConfig

    torch.manual_seed(0)
    UNet(UNetConfig(**cell.config)).save(folder / "unet")
    shape = (ROWS, cell.channels, cell.side, cell.side)
    mean, logvar = torch.randn(shape) / SCALE, torch.full(shape, -4.0)
    tokens = torch.randn(ROWS + 1, TOKENS, cell.width)  # row 0 is the null
    save_file({"mean": mean, "logvar": logvar, "tokens": tokens}, folder / "peer.safetensors")

    def states(captions: list[str]) -> Conditioning:
        rows = torch.tensor([int(caption or 0) for caption in captions])
        return Conditioning(tokens[rows], torch.ones(len(rows), TOKENS, dtype=torch.bool))

    captions = [str(i + 1) for i in range(ROWS)]
    build_cache(folder / "cache", PARTS, ROWS, lambda i: (mean[i], logvar[i]), captions, states, 64)


class Ours(benching.OurLoop):
    """t2i's side: the U-Net's task."""

    def __init__(self, cell: Cell, folder: Path) -> None:
        from t2i.autoencoder.kl import AutoencoderKL, AutoencoderKLConfig
        from t2i.config import TrainConfig
        from t2i.data.cache import open_cache
        from t2i.generator.latent_diffusion import LatentDiffusion
        from t2i.generator.scheduler_config import SchedulerConfig
        from t2i.generator.unet import UNet
        from t2i.training.generator import GeneratorRecipe, GeneratorTask
        from t2i.training.precompute import Frozen

        config = TrainConfig(
            steps=10**6,
            global_batch=cell.batch,
            lr=LR,
            lr_schedule="constant",
            weight_decay=WEIGHT_DECAY,
            clip_norm=CLIP,
            ema=DECAY,
            mixed_precision=cell.precision,  # pyright: ignore[reportArgumentType]
        )

        class CachedTask(GeneratorTask):
            """The task on an existing cache, without the images and networks that the cache was made from."""

            def __init__(self) -> None:
                self.recipe = GeneratorRecipe.model_construct(
                    out="benchmark", seed=0, caption_dropout=0.1, timestep_bias=1.0, train=config
                )
                self.cache = open_cache(
                    folder / "cache", dict.fromkeys(("data", "size", "vae", "text_encoder"), "random")
                )
                self.uncond, self.scale, self.short = self.cache.uncond, SCALE, None
                text: Any = None
                self.frozen = Frozen(
                    text, AutoencoderKL(AutoencoderKLConfig.parse({"scaling_factor": SCALE}, "here")), None
                )
                unet = UNet.load(folder / "unet")
                self.generator = LatentDiffusion.from_config(unet, SchedulerConfig(**cell.scheduler))
                self.networks = {"unet": unet}

        task = CachedTask()
        super().__init__(task, task.recipe)
        self.network = task.generator.unet


class Peer:
    """diffusers' side: the lines between data loader and progress bar of examples/text_to_image."""

    def __init__(self, cell: Cell, folder: Path, tuned: bool) -> None:
        from diffusers import DDPMScheduler, UNet2DConditionModel
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel

        self.data, self.size = load_file(folder / "peer.safetensors"), cell.batch
        self.scheduler = DDPMScheduler(**cell.scheduler)
        self.network = UNet2DConditionModel.from_pretrained(folder / "unet").train()
        # The groups are ours: the example decays norms and biases too, which costs the same.
        parameters = list(self.network.parameters())
        groups = [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
        self.accelerator = Accelerator(mixed_precision=cell.precision)
        optimizer = torch.optim.AdamW(groups, lr=LR, eps=1e-8, fused=True if tuned else None)
        rate = get_scheduler("constant", optimizer)
        self.ema = EMAModel(self.network.parameters(), decay=DECAY, foreach=tuned)
        self.unet, self.optimizer, self.rate = self.accelerator.prepare(self.network, optimizer, rate)
        self.train_loss = 0.0

    def batch(self) -> dict[str, Any]:
        """Returns latents, states, noise and t, drawn as in the example from the tensors in memory."""
        rows = torch.randint(ROWS, (self.size,))
        mean, logvar = self.data["mean"][rows], self.data["logvar"][rows]
        latents = (mean + (0.5 * logvar).exp() * torch.randn_like(mean)) * SCALE
        noise = torch.randn_like(latents)
        t = torch.randint(0, self.scheduler.config["num_train_timesteps"], (self.size,))
        return {"latents": latents, "states": self.data["tokens"][rows + 1], "noise": noise, "t": t}

    def step(self, batch: dict[str, Any] | None = None) -> Tensor:
        """Takes one step, on a new batch unless one is given; returns the loss."""
        batch = batch or self.batch()
        latents, noise, t = batch["latents"], batch["noise"], batch["t"]
        with self.accelerator.accumulate(self.unet):
            noisy = self.scheduler.add_noise(latents, noise, t)
            if self.scheduler.config["prediction_type"] == "epsilon":
                target = noise
            else:
                target = self.scheduler.get_velocity(latents, noise, t)
            predicted = self.unet(noisy, t, batch["states"], return_dict=False)[0]
            loss = F.mse_loss(predicted.float(), target.float(), reduction="mean")
            gathered: Any = self.accelerator.gather(loss.repeat(self.size))
            self.train_loss += gathered.mean().item()
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.unet.parameters(), CLIP)
            self.optimizer.step()
            self.rate.step()
            self.optimizer.zero_grad()
        if self.accelerator.sync_gradients:
            self.ema.step(self.unet.parameters())
        return loss.detach()


def compare(ours: Ours, peer: Peer, precision: str) -> dict[str, Any]:
    """Returns the differences of losses and weight updates in the first steps, on equal batches."""
    before = {k: v.detach().clone() for k, v in ours.network.named_parameters()}
    losses = []
    for _ in range(PARITY_STEPS):
        (batch,) = next(ours.batches)
        same = {"latents": batch["latents"], "states": batch["cond"].tokens, "noise": batch["eps"], "t": batch["t"] - 1}
        losses.append((ours.step(batch).item(), peer.step(same).item()))
    weights = dict(ours.network.named_parameters()), dict(peer.network.named_parameters())
    assert weights[0].keys() == weights[1].keys()
    with torch.no_grad():
        moved, apart = (
            torch.cat([(weights[1][k] - other[k]).flatten() for k in before]).norm().item()
            for other in (before, weights[0])
        )
    loss = max(abs(a - b) / b for a, b in losses)
    allowed = ALLOWED[precision]
    return {
        "ok": loss <= allowed[0] and moved > 0 and apart / moved <= allowed[1],
        "loss": loss,
        "update": apart / moved,
    }


def child(side: str, cell: Cell, folder: Path, tuned: bool) -> None:
    """Prints the peak memory of three steps of one side alone."""
    runner = Ours(cell, folder) if side == "ours" else Peer(cell, folder, tuned)
    for _ in range(3):
        runner.step()
    benching.print_peak()


def bench(chosen: dict[str, Cell], options: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Checks the parity of every cell, then times it; the memory is that of the first cell."""
    parity, results = {}, {}
    for name, cell in chosen.items():
        folder = root / name
        folder.mkdir()
        write(cell, folder)
        parity[name] = compare(*_sides(cell, folder, options.tuned), cell.precision)
    if not all(cell["ok"] for cell in parity.values()):
        benching.fail(parity)
    for name, cell in chosen.items():
        ours, peer = _sides(cell, root / name, options.tuned)
        results[name] = benching.summary(benching.interleave(ours.step, peer.step, options.rounds, options.warmups))
        benching.show(name, results[name])
    first = next(iter(chosen))
    command = [__file__, "--cells", first, "--folder", str(root / first), *(["--tuned"] if options.tuned else [])]
    return benching.report(results, parity, benching.peaks(command))


def _sides(cell: Cell, folder: Path, tuned: bool) -> tuple[Ours, Peer]:
    AcceleratorState._reset_state(reset_partial_state=True)  # it holds the precision of the whole process
    return Ours(cell, folder), Peer(cell, folder, tuned)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = cells()
    parser.add_argument("--cells", nargs="+", choices=known, default=list(known)[:-1])
    parser.add_argument("--tuned", action="store_true", help="fused AdamW and foreach EMA for diffusers too")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--warmups", type=int, default=3)
    parser.add_argument("--child", choices=benching.SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, known[options.cells[0]], options.folder, options.tuned)
        return
    with tempfile.TemporaryDirectory() as root:
        print(json.dumps(bench({name: known[name] for name in options.cells}, options, Path(root))))


if __name__ == "__main__":
    main()
