"""The autoencoder's keys in the layout of latent diffusion's original code (`first_stage_model.*`), from its config."""

from collections.abc import Iterable

from t2i.autoencoder.kl import AutoencoderKLConfig
from t2i.interop.layout import Place, rename

PREFIX = "first_stage_model."
RESNET = {"conv_shortcut": "nin_shortcut"}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def vae_places(config: AutoencoderKLConfig, names: Iterable[str], prefix: str = PREFIX) -> dict[str, Place]:
    """Returns the place of each tensor of `names` in a single file, where attention's matrices are 1x1 convolutions."""
    modules, inner = vae_modules(config), {"resnets": RESNET, "attentions": ATTENTION}
    places = {}
    for name in names:
        matrix = ".attentions." in name and name.endswith(".weight") and "group_norm" not in name
        places[name] = Place(prefix + rename(name, modules, inner), "pixels" if matrix else "same")
    return places


def vae_modules(config: AutoencoderKLConfig) -> dict[str, str]:
    """Returns the single file's name of every module; it counts the decoder's levels from the full resolution."""
    modules = {name: name for name in ("quant_conv", "post_quant_conv")}
    last = len(config.block_out_channels) - 1
    for half in ("encoder", "decoder"):
        modules |= {f"{half}.{conv}": f"{half}.{conv}" for conv in ("conv_in", "conv_out")}
        modules[f"{half}.conv_norm_out"] = f"{half}.norm_out"
        modules |= {f"{half}.mid_block.resnets.{j}": f"{half}.mid.block_{j + 1}" for j in range(2)}
        modules[f"{half}.mid_block.attentions.0"] = f"{half}.mid.attn_1"
    for i in range(last + 1):
        for j in range(config.layers_per_block + 1):
            modules[f"encoder.down_blocks.{i}.resnets.{j}"] = f"encoder.down.{i}.block.{j}"
            modules[f"decoder.up_blocks.{i}.resnets.{j}"] = f"decoder.up.{last - i}.block.{j}"
        modules[f"encoder.down_blocks.{i}.downsamplers.0.conv"] = f"encoder.down.{i}.downsample.conv"
        modules[f"decoder.up_blocks.{i}.upsamplers.0.conv"] = f"decoder.up.{last - i}.upsample.conv"
    return modules
