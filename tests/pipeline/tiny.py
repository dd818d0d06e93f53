"""A tiny random pipeline: prompts and guidance move its pictures."""

from typing import Any

import torch

from t2i.autoencoder.kl import AutoencoderKL, AutoencoderKLConfig
from t2i.generator.latent_diffusion import LatentDiffusion
from t2i.generator.scheduler_config import SchedulerConfig
from t2i.generator.unet import UNet
from t2i.generator.unet_config import UNetConfig
from t2i.pipeline import Defaults, Pipeline
from t2i.text.clip import CLIPTextEncoder
from t2i.text.tokenizer import SMALLEST, learn_tokenizer
from t2i.text.towers import TextTowerConfig, text_tower

CAPTIONS = ["a red circle", "a blue square on grey", "two green triangles", "a large red square"]
WIDTH = 32
UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 24,
    "encoder_hid_dim": WIDTH,
    "attention_head_dim": 2,
}
VAE: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "latent_channels": 4,
    "norm_num_groups": 8,
    "sample_size": 16,
    "scaling_factor": 0.7,
}
SCHEDULER: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "trailing",
}


def make_text(width: int = WIDTH) -> CLIPTextEncoder:
    torch.manual_seed(0)
    tokenizer = learn_tokenizer(CAPTIONS, SMALLEST + 40, model_max_length=12)
    tower = text_tower(TextTowerConfig(width=width, layers=2, heads=2), tokenizer, 16)
    with torch.no_grad():
        tower.text_model.embeddings.token_embedding.weight.mul_(50)  # so that words, not positions, tell states apart
    return CLIPTextEncoder(tower.text_model, None, tokenizer)


def make_unet(**keys: Any) -> UNet:
    torch.manual_seed(1)
    return UNet(UNetConfig(**(UNET | keys))).eval()


def make_vae(**keys: Any) -> AutoencoderKL:
    torch.manual_seed(2)
    return AutoencoderKL(AutoencoderKLConfig(**(VAE | keys))).eval()


def make_pipeline(
    defaults: Defaults | None = None,
    unet: dict[str, Any] | None = None,
    vae: dict[str, Any] | None = None,
    scheduler: dict[str, Any] | None = None,
) -> Pipeline:
    config = SchedulerConfig(**(SCHEDULER | (scheduler or {})))
    generator = LatentDiffusion.from_config(make_unet(**(unet or {})), config)
    return Pipeline(make_text(), generator, make_vae(**(vae or {})), config, defaults or Defaults(steps=5, guidance=4))


def apart(found: torch.Tensor, reference: torch.Tensor) -> float:
    """max |difference| / max |reference|."""
    return ((found - reference).abs().max() / reference.abs().max()).item()
