"""Small random pipelines shaped as Stable Diffusion's, written by stock diffusers alone."""

import json
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    PNDMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file
from text.tiny import t5_tokenizer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel

from t2i.text.tokenizer import SMALLEST, learn_tokenizer

from .tiny import CAPTIONS

MAX_TOKENS = 12
# scheduler_config.json as it was published, from before there was a `timestep_spacing`
_BETAS: dict[str, Any] = {
    "_diffusers_version": "0.8.0",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
SCHEDULERS: dict[str, dict[str, Any]] = {
    "sd1": {"_class_name": "PNDMScheduler"} | _BETAS,
    "sd2": {"_class_name": "PNDMScheduler", "prediction_type": "epsilon"} | _BETAS,
    "sd2-v": {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"} | _BETAS,
    "t5": {"_class_name": "DDIMScheduler", "timestep_spacing": "trailing"} | _BETAS,
}
_UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (16, 32, 32, 32),
    "norm_num_groups": 8,
    "cross_attention_dim": 32,
}
UNETS: dict[str, dict[str, Any]] = {
    "sd1": {"attention_head_dim": 2},
    "sd2": {"attention_head_dim": (1, 2, 4, 4), "use_linear_projection": True, "dual_cross_attention": False},
    "t5": {"attention_head_dim": 2, "encoder_hid_dim": 32, "encoder_hid_dim_type": "text_proj"}
    | {"cross_attention_dim": 24},
}
UNETS["sd2-v"] = UNETS["sd2"] | {"upcast_attention": True}
_VAE: dict[str, Any] = {
    "block_out_channels": (8, 8, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "norm_num_groups": 8,
    "latent_channels": 4,
    "sample_size": 64,
}


def make_words(kind: str) -> tuple[Any, Any]:
    """Text encoder and tokenizer."""
    if kind == "t5":
        words = t5_tokenizer()
        words.model_max_length = MAX_TOKENS
        sizes: dict[str, Any] = {"d_model": 32, "d_ff": 48, "d_kv": 16, "num_layers": 2, "num_heads": 2}
        return T5EncoderModel(T5Config(vocab_size=len(words), feed_forward_proj="gated-gelu", **sizes)), words
    words = cast(CLIPTokenizer, learn_tokenizer(CAPTIONS, SMALLEST + 40, MAX_TOKENS))
    second = kind != "sd1"
    if second:
        words.pad_token = "!"
    ends: dict[str, Any] = {
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=MAX_TOKENS,
        hidden_act="gelu" if second else "quick_gelu",
        projection_dim=16,
        **ends,
    )
    return CLIPTextModel(config), words


def write_stock(kind: str, folder: Path, in_channels: int = 4, layers: int = 1) -> Path:
    """A pipeline's folder by stock, its scheduler's file as it was published; `layers` a block."""
    torch.manual_seed(0)
    text, words = make_words(kind)
    depth: dict[str, Any] = {"layers_per_block": layers}
    vae = AutoencoderKL(**_VAE | depth)
    blocks: dict[str, Any] = {
        "in_channels": in_channels,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    }
    unet = UNet2DConditionModel(**_UNET | blocks | depth | UNETS[kind])
    with torch.no_grad():
        unet.conv_out.weight.mul_(3)  # so that its output, as a trained one's, is as large as noise
    values = SCHEDULERS[kind]
    scheduler = {"PNDMScheduler": PNDMScheduler, "DDIMScheduler": DDIMScheduler}[values["_class_name"]]
    pipeline_class = StableDiffusionInpaintPipeline if in_channels != 4 else StableDiffusionPipeline
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = pipeline_class(
            vae=vae,
            text_encoder=text,
            tokenizer=words,
            unet=unet,
            scheduler=cast(Any, scheduler()),
            safety_checker=cast(Any, None),
            feature_extractor=cast(Any, None),
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(values))
    return folder


def read_folder(folder: Path) -> dict[str, tuple[dict[str, Any], dict[str, torch.Tensor]]]:
    """Each network's config and tensors as they lie in a folder, the tower's keys with their prefix."""
    found = {}
    for part in ("unet", "vae", "text_encoder"):
        [file] = (folder / part).glob("*.safetensors")
        state = load_file(file)
        if part == "text_encoder":
            state = {f"text_model.{key.removeprefix('text_model.')}": tensor for key, tensor in state.items()}
        found[part] = (json.loads((folder / part / "config.json").read_text()), state)
    return found


def load_stock(folder: Path, pipeline_class: Any = StableDiffusionPipeline) -> Any:
    """The folder in stock, silent."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = pipeline_class.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_stock_file(file: Path, folder: Path, pipeline_class: Any = StableDiffusionPipeline) -> Any:
    """A single file in stock, silent, by the configs of `folder`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = pipeline_class.from_single_file(
            str(file), config=str(folder), local_files_only=True, torch_dtype=torch.float32
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
