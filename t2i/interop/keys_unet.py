"""The U-Net's keys in the layout of latent diffusion's original code (`model.diffusion_model.*`), from its config."""

from collections.abc import Iterable

from t2i.generator.unet_config import UNetConfig
from t2i.interop.layout import Place, rename

PREFIX, EMA = "model.diffusion_model.", "model_ema."
ROOT = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def unet_places(config: UNetConfig, names: Iterable[str]) -> dict[str, Place]:
    """Returns the place of each tensor of `names` in a single file."""
    modules = unet_modules(config)
    return {name: Place(PREFIX + rename(name, modules, {"resnets": RESNET})) for name in names}


def unet_modules(config: UNetConfig) -> dict[str, str]:
    """Returns the single file's name of every module; layers and downsamplers are numbered through."""
    layers, last = config.per_level("layers_per_block"), len(config.block_out_channels) - 1
    modules, n = dict(ROOT), 1
    for i, count in enumerate(layers):
        for j in range(count):
            modules[f"down_blocks.{i}.resnets.{j}"] = f"input_blocks.{n}.0"
            modules[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{n}.1"
            n += 1
        if i < last:
            modules[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{n}.0.op"
            n += 1
    n = 0
    for i, count in enumerate(reversed(layers)):
        for j in range(count + 1):
            modules[f"up_blocks.{i}.resnets.{j}"] = f"output_blocks.{n}.0"
            modules[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{n}.1"
            n += 1
        if i < last:
            behind = 2 if config.up_block_types[i] == "CrossAttnUpBlock2D" else 1
            modules[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{n - 1}.{behind}.conv"
    return modules


def ema_key(key: str) -> str:
    """Returns the key of the EMA weights of a U-Net's tensor, which has no dots."""
    return EMA + key.removeprefix("model.").replace(".", "")
