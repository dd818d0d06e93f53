"""Tiny components of Stable Diffusion's build, and files of them as others write them, renamed by other rules."""

from pathlib import Path
from typing import Any

import torch
from data.build import BUFFERS, ldm_unet, ldm_vae
from safetensors.torch import save_file
from torch import Tensor

from t2i.interop.single_file import PARTS, layout

UNET: dict[str, Any] = {"_class_name": "UNet2DConditionModel", "norm_num_groups": 32, "layers_per_block": 2}
VAE: dict[str, Any] = {"_class_name": "AutoencoderKL", "block_out_channels": [32, 32, 32, 32], "layers_per_block": 2}
TEXT: dict[str, Any] = {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "num_hidden_layers": 1}
TEXT |= {"intermediate_size": 48, "vocab_size": 40, "max_position_embeddings": 9}
SD1: dict[str, dict[str, Any]] = {
    "unet": UNET | {"block_out_channels": [32, 32, 64, 64], "cross_attention_dim": 768, "attention_head_dim": 8},
    "vae": VAE,
    "text_encoder": TEXT | {"hidden_size": 768, "num_attention_heads": 12, "hidden_act": "quick_gelu"},
}
SD2: dict[str, dict[str, Any]] = {
    "unet": UNET
    | {"block_out_channels": [64, 64, 64, 128], "cross_attention_dim": 1024, "attention_head_dim": [1, 1, 1, 2]}
    | {"use_linear_projection": True},
    "vae": VAE,
    "text_encoder": TEXT | {"hidden_size": 1024, "num_attention_heads": 16, "hidden_act": "gelu"},
}
# No family's: levels, layers and depths that differ, a middle without attention, a projection.
ODD: dict[str, dict[str, Any]] = {
    "unet": {
        "block_out_channels": [8, 16, 24],
        "norm_num_groups": 4,
        "layers_per_block": [1, 2, 3],
        "transformer_layers_per_block": [1, 2, 1],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"],
        "cross_attention_dim": 12,
        "attention_head_dim": 2,
        "in_channels": 9,
    },
    "vae": {"block_out_channels": [8, 16], "norm_num_groups": 4, "use_quant_conv": False}
    | {"mid_block_add_attention": False, "scaling_factor": 0.7},
    "text_encoder": TEXT
    | {"hidden_size": 12, "num_attention_heads": 2, "hidden_act": "gelu", "projection_dim": 10}
    | {"architectures": ["CLIPTextModelWithProjection"], "num_hidden_layers": 2},
}
SCHEDULER = {"_class_name": "DDIMScheduler", "beta_start": 0.001, "prediction_type": "sample"}


def make(configs: dict[str, dict[str, Any]], seed: int = 0) -> dict[str, tuple[dict[str, Any], dict[str, Tensor]]]:
    """Components with random tensors."""
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for name in PARTS:
        shapes = layout(name, configs[name], Path("tiny"), None).shapes
        found[name] = (configs[name], {k: torch.randn(shape, generator=draw) for k, shape in shapes.items()})
    return found


def foreign(components: dict[str, tuple[dict[str, Any], dict[str, Tensor]]]) -> dict[str, Tensor]:
    """What a single file of others holds of them, extras included: of four levels of two layers alone."""
    unet, vae, text = (components[name][1] for name in PARTS)
    state = {f"model.diffusion_model.{ldm_unet(k)}": v for k, v in unet.items()}
    for key, tensor in vae.items():
        key, shape = ldm_vae(key, list(tensor.shape))
        state[f"first_stage_model.{key}"] = tensor.reshape(shape)
    if components["text_encoder"][0]["hidden_act"] == "gelu":
        state |= {f"cond_stage_model.model.{k}": v for k, v in openclip(text).items()}
    else:
        state |= {f"cond_stage_model.transformer.{k}": v for k, v in text.items()}
        state["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(9)[None]
    return state | {key: torch.zeros(1000) for key in BUFFERS}


def openclip(text: dict[str, Tensor]) -> dict[str, Tensor]:
    """A tower by OpenCLIP's names, with the one block more, the projection and the scale of the whole."""
    tower = {k.removeprefix("text_model."): v for k, v in text.items()}
    width = tower["final_layer_norm.bias"].numel()
    state = {
        "token_embedding.weight": tower["embeddings.token_embedding.weight"],
        "positional_embedding": tower["embeddings.position_embedding.weight"],
        "ln_final.weight": tower["final_layer_norm.weight"],
        "ln_final.bias": tower["final_layer_norm.bias"],
        "text_projection": torch.ones(width, 7),
        "logit_scale": torch.tensor(4.6),
    }
    names = {"attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    names |= {"ln_1": "layer_norm1", "ln_2": "layer_norm2"}
    layers = sum(key.endswith(".mlp.fc1.bias") for key in tower)
    for i in range(layers + 1):
        layer, block = f"encoder.layers.{min(i, layers - 1)}.", f"transformer.resblocks.{i}."
        for leaf in ("weight", "bias"):
            fused = [tower[f"{layer}self_attn.{x}_proj.{leaf}"] for x in "qkv"]
            state[f"{block}attn.in_proj_{leaf}"] = torch.cat(fused)
            state |= {f"{block}{theirs}.{leaf}": tower[f"{layer}{ours}.{leaf}"] for theirs, ours in names.items()}
    return {k: v.clone() for k, v in state.items()}


def write(path: Path, state: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({k: v.contiguous() for k, v in state.items()}, path, metadata)
    return path


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    """The same keys, types and bits."""
    return found.keys() == expected.keys() and all(
        found[k].dtype == v.dtype and torch.equal(found[k], v) for k, v in expected.items()
    )
