"""Writes `sd15.json.gz` and `sd21.json.gz`: every key and shape of Stable Diffusion 1.5 and 2.1, and their configs.

Shapes are stock's on the meta device; the names in a single file are derived here, for this one shape, by the rules of
the original code, so that they are no copy of what `t2i.interop` derives. Run it again: `python tests/data/build.py`.
"""

import gzip
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

Shapes = dict[str, list[int]]
HERE = Path(__file__).parent
DOWN = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
UP = ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3

# The configs as they were published, with what they leave out (scaling_factor, timestep_spacing, prediction_type).
UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "down_block_types": DOWN,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "up_block_types": UP,
}
VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
TEXT: dict[str, Any] = {
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "pad_token_id": 1,
    "torch_dtype": "float32",
    "vocab_size": 49408,
}
SCHEDULER: dict[str, Any] = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
INDEX: dict[str, Any] = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": ["transformers", "CLIPFeatureExtractor"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
CONFIGS: dict[str, dict[str, dict[str, Any]]] = {
    "sd15": {
        "model_index.json": INDEX
        | {
            "_diffusers_version": "0.6.0",
            "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
            "scheduler": ["diffusers", "PNDMScheduler"],
        },
        "unet/config.json": UNET
        | {"_diffusers_version": "0.6.0", "attention_head_dim": 8, "cross_attention_dim": 768, "sample_size": 64},
        "vae/config.json": VAE | {"_diffusers_version": "0.6.0", "sample_size": 512},
        "text_encoder/config.json": TEXT
        | {"hidden_act": "quick_gelu", "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
        | {"num_hidden_layers": 12, "projection_dim": 768, "transformers_version": "4.22.0.dev0"},
        "scheduler/scheduler_config.json": SCHEDULER | {"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0"},
    },
    "sd21": {
        "model_index.json": INDEX
        | {
            "_diffusers_version": "0.8.0",
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", "DDIMScheduler"],
        },
        "unet/config.json": UNET
        | {"_diffusers_version": "0.10.0.dev0", "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024}
        | {"dual_cross_attention": False, "num_class_embeds": None, "only_cross_attention": False, "sample_size": 96}
        | {"upcast_attention": True, "use_linear_projection": True},
        "vae/config.json": VAE | {"_diffusers_version": "0.10.0.dev0", "sample_size": 768},
        "text_encoder/config.json": TEXT
        | {"hidden_act": "gelu", "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
        | {"num_hidden_layers": 23, "projection_dim": 512, "transformers_version": "4.25.0.dev0"},
        "scheduler/scheduler_config.json": SCHEDULER
        | {"_class_name": "DDIMScheduler", "_diffusers_version": "0.8.0", "prediction_type": "v_prediction"},
    },
}
BUFFERS = [
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
]
RESNET = ["norm1", "conv1", "norm2", "conv2"]
LDM_RESNET = dict(zip(RESNET, ["in_layers.0", "in_layers.2", "out_layers.0", "out_layers.3"], strict=True)) | {
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def shapes(model_class: Any, config: Any) -> Shapes:
    """Of a stock model that is built without memory."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = model_class(config) if model_class is CLIPTextModel else model_class.from_config(config)
    return {k: list(v.shape) for k, v in model.state_dict().items()}


def ldm_unet(key: str) -> str:
    """A U-Net's key in a single file, for four levels of two layers."""
    part = key.split(".")
    leaf = part[-1]
    if key.startswith(("time_embedding", "conv_in", "conv_norm_out", "conv_out")):
        heads = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
        heads |= {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
        return f"{heads['.'.join(part[:-1])]}.{leaf}"
    if part[0] == "mid_block":
        if part[1] == "attentions":
            return ".".join(["middle_block.1", *part[3:]])
        return f"middle_block.{2 * int(part[2])}.{LDM_RESNET[part[3]]}.{leaf}"
    i, kind, j = int(part[1]), part[2], int(part[3])
    if kind == "downsamplers":
        return f"input_blocks.{3 * (i + 1)}.0.op.{leaf}"
    if kind == "upsamplers":
        return f"output_blocks.{3 * i + 2}.{1 if i == 0 else 2}.conv.{leaf}"
    block = f"input_blocks.{3 * i + j + 1}" if part[0] == "down_blocks" else f"output_blocks.{3 * i + j}"
    if kind == "attentions":
        return ".".join([f"{block}.1", *part[4:]])
    return f"{block}.0.{LDM_RESNET[part[4]]}.{leaf}"


def ldm_vae(key: str, shape: list[int]) -> tuple[str, list[int]]:
    """An autoencoder's key and shape in a single file, for four levels."""
    part = key.split(".")
    if part[0].endswith("quant_conv") or part[1] in ("conv_in", "conv_out"):
        return key, shape
    half, leaf = part[0], part[-1]
    if part[1] == "conv_norm_out":
        return f"{half}.norm_out.{leaf}", shape
    if part[1] == "mid_block" and part[2] == "attentions":
        name = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out"}[part[4]]
        return f"{half}.mid.attn_1.{name}.{leaf}", [*shape, 1, 1] if len(shape) == 2 else shape
    tail = ".".join(part[-2:]).replace("conv_shortcut", "nin_shortcut")
    if part[1] == "mid_block":
        return f"{half}.mid.block_{int(part[3]) + 1}.{tail}", shape
    level = int(part[2]) if half == "encoder" else 3 - int(part[2])
    way = {"encoder": "down", "decoder": "up"}[half]
    if part[3] == "resnets":
        return f"{half}.{way}.{level}.block.{part[4]}.{tail}", shape
    return f"{half}.{way}.{level}.{way}sample.conv.{leaf}", shape


def openclip_text(width: int, inner: int, blocks: int) -> Shapes:
    """OpenCLIP's whole text tower: with the block that is not used, the projection and the scale."""
    found = {
        "positional_embedding": [77, width],
        "token_embedding.weight": [49408, width],
        "ln_final.weight": [width],
        "ln_final.bias": [width],
        "text_projection": [width, width],
        "logit_scale": [],
    }
    for i in range(blocks):
        block = f"transformer.resblocks.{i}."
        found |= {f"{block}attn.in_proj_weight": [3 * width, width], f"{block}attn.in_proj_bias": [3 * width]}
        for name, out, into in (
            ("attn.out_proj", width, width),
            ("mlp.c_fc", inner, width),
            ("mlp.c_proj", width, inner),
        ):
            found |= {f"{block}{name}.weight": [out, into], f"{block}{name}.bias": [out]}
        for name in ("ln_1", "ln_2"):
            found |= {f"{block}{name}.weight": [width], f"{block}{name}.bias": [width]}
    return {f"cond_stage_model.model.{k}": v for k, v in found.items()}


def build(name: str) -> dict[str, Any]:
    """Everything of one model."""
    configs = CONFIGS[name]
    unet = shapes(UNet2DConditionModel, configs["unet/config.json"])
    vae = shapes(AutoencoderKL, configs["vae/config.json"])
    config = configs["text_encoder/config.json"]
    flat = shapes(CLIPTextModel, CLIPTextConfig(**{k: v for k, v in config.items() if k != "architectures"}))
    text = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in flat.items() if "position_ids" not in k}
    text["text_model.embeddings.position_ids"] = [1, 77]
    single = {f"model.diffusion_model.{ldm_unet(k)}": v for k, v in unet.items()}
    assert len(single) == 686 and len(vae) == 248
    if name == "sd15":  # the file with both sets of weights
        single |= {"model_ema." + k.removeprefix("model.").replace(".", ""): v for k, v in single.items()}
        single |= {"model_ema.decay": [], "model_ema.num_updates": []}
        single |= {f"cond_stage_model.transformer.{k}": v for k, v in text.items()}
    else:
        single |= openclip_text(config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"] + 1)
    for key, shape in vae.items():
        key, shape = ldm_vae(key, shape)
        single[f"first_stage_model.{key}"] = shape
    single |= {key: [1000] for key in BUFFERS}
    folder = {"unet": unet, "vae": {old_name(k): v for k, v in vae.items()}, "text_encoder": text}
    return {"configs": configs, "folder": folder, "single_file": single}


def old_name(key: str) -> str:
    """A VAE's key as the hub's folders have it."""
    for new, old in OLD_ATTENTION.items():
        if ".attentions." in key:
            key = key.replace(f".{new}.", f".{old}.")
    return key


def main() -> None:
    for name in CONFIGS:
        text = json.dumps(build(name), sort_keys=True, separators=(",", ":"))
        (HERE / f"{name}.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    main()
