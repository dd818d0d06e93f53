"""Tiny recipes on the built-in scenes, and how the tests run them."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml

from t2i.autoencoder.kl import AutoencoderKL, AutoencoderKLConfig
from t2i.autoencoder.metrics import latent_scale
from t2i.data.data_config import DataConfig
from t2i.text.clip import CLIPTextEncoder
from t2i.text.tokenizer import SMALLEST, learn_tokenizer
from t2i.text.towers import TextTowerConfig, text_tower
from t2i.training.generator import GeneratorRecipe, GeneratorTask
from t2i.training.images import open_images
from t2i.training.loop import train
from t2i.training.text_encoder import TextEncoderRecipe, TextEncoderTask
from t2i.training.vae import VAERecipe, VAETask

TASKS: dict[str, tuple[Any, Any]] = {
    "vae": (VAERecipe, VAETask),
    "unet": (GeneratorRecipe, GeneratorTask),
    "text-encoder": (TextEncoderRecipe, TextEncoderTask),
}
VAE = {"block_out_channels": [8, 16], "latent_channels": 2, "norm_num_groups": 4, "mid_block_add_attention": False}
UNET = {
    "block_out_channels": [16, 32],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
}
TRAIN = {"global_batch": 4, "lr": 3e-3, "log_every": 1, "validate_every": 1000, "sample_every": 1000}


def scenes(count: int, seed: int = 0) -> dict[str, Any]:
    return {"source": "scenes", "count": count, "seed": seed}


def vae(out: Path, pictures: int = 8, **train: Any) -> dict[str, Any]:
    data = {"data": scenes(pictures), "validation": scenes(2, seed=1)}
    return {"out": str(out), "size": 16, **data, "vae": VAE, "train": TRAIN | train}


def unet(out: Path, components: Path, pictures: int = 8, **train: Any) -> dict[str, Any]:
    return {
        "out": str(out),
        "size": 16,
        "data": scenes(pictures),
        "validation": scenes(3, seed=1),
        "text_encoder": str(components),
        "vae": str(components / "vae"),
        "cache": str(components / "cache"),
        "unet": UNET,
        "train": TRAIN | train,
    }


def text_encoder(out: Path, pictures: int = 8, **train: Any) -> dict[str, Any]:
    return {
        "out": str(out),
        "size": 16,
        "data": scenes(pictures),
        "validation": scenes(2, seed=1),
        "tokenizer": {"vocab_size": SMALLEST + 40, "max_tokens": 48},
        "text": {"width": 16, "layers": 1, "heads": 2, "mlp_ratio": 2},
        "image": {"patch": 4, "channels": [8, 16], "blocks": [1, 1], "groups": 4, "projection_dim": 12},
        "contrast": {"shift": 1},
        "train": TRAIN | train,
    }


def make_components(folder: Path) -> None:
    """A random frozen text encoder and autoencoder."""
    torch.manual_seed(0)
    tokenizer = learn_tokenizer(["a large red circle on the left of a cyan square at the top"], SMALLEST + 60, 48)
    tower = text_tower(TextTowerConfig(width=16, layers=1, heads=2, mlp_ratio=2), tokenizer, 8)
    with torch.no_grad():
        tower.text_model.embeddings.token_embedding.weight.mul_(50)  # so that words, not positions, tell states apart
    CLIPTextEncoder(tower.text_model, None, tokenizer).save(folder)
    autoencoder = AutoencoderKL(AutoencoderKLConfig(**VAE))
    quant, latent = autoencoder.quant_conv, autoencoder.config.latent_channels
    with torch.no_grad():  # latents that tell pictures apart: means that differ more, and little noise
        quant.weight[latent:].zero_()  # pyright: ignore
        quant.bias[latent:].fill_(-6)  # pyright: ignore
        quant.weight[:latent].mul_(4)  # pyright: ignore
        pictures = open_images(DataConfig.model_validate(scenes(8)), 16, "", quiet=True).batch(list(range(8)))
        scale = latent_scale(autoencoder.encode(pictures))
    autoencoder.config = autoencoder.config.model_copy(update={"scaling_factor": scale})
    autoencoder.save(folder / "vae")


def task(kind: str, values: dict[str, Any]) -> Any:
    model, made = TASKS[kind]
    return made(model.model_validate(values), quiet=True)


def run(kind: str, values: dict[str, Any]) -> Any:
    """Train in this process, as the command line does; returns the task."""
    made = task(kind, values)
    train(made, made.recipe)
    return made


def written(values: dict[str, Any], path: Path) -> str:
    """The recipe in a YAML file."""
    path.write_text(yaml.safe_dump(values), encoding="utf8")
    return str(path)


def rows(out: Path, key: str = "loss") -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that hold `key`."""
    lines = (out / "metrics.jsonl").read_text(encoding="utf8").splitlines()
    return [row for row in map(json.loads, lines) if key in row]


def curve(out: Path, key: str = "loss") -> torch.Tensor:
    return torch.tensor([row[key] for row in rows(out, key)], dtype=torch.float64)
