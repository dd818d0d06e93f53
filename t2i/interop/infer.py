"""The configs of a single file that carries none, from the names and shapes of its tensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from t2i.interop import keys_text, keys_unet, keys_vae
from t2i.interop.layout import Shape, number

Shapes = Mapping[str, Shape]
HEAD_WIDTH = 64  # of both families' text towers, and of SD 2's U-Nets
# Of the embeddings of tokens and positions, of the blocks, and of a block's widest matrix.
CLIP_NAMES = (
    "embeddings.token_embedding.weight",
    "embeddings.position_embedding.weight",
    "encoder.layers.",
    "0.mlp.fc1.weight",
)
OPENCLIP_NAMES = ("token_embedding.weight", "positional_embedding", "transformer.resblocks.", "0.mlp.c_fc.weight")
VIT_H_BLOCKS = 24  # of the OpenCLIP tower of SD 2, read at its penultimate


class Family(NamedTuple):
    """The parts of a config that a family fixes and no shape determines."""

    name: str
    width: int  # of the text states
    unet_heads: int | None  # the same at every level; None: by the head's width


SD1 = Family("Stable Diffusion 1", 768, 8)
SD2 = Family("Stable Diffusion 2", 1024, None)


def context_width(shapes: Shapes) -> int | None:
    """Returns the width of the text states that cross-attention reads."""
    ends = ".transformer_blocks.0.attn2.to_k.weight"
    keys = (key for key in shapes if key.startswith(keys_unet.PREFIX) and key.endswith(ends))
    return next((shapes[key][1] for key in keys if len(shapes[key]) == 2), None)


def find_family(path: Path, shapes: Shapes) -> Family:
    """Returns SD 1 or 2, by the text tower's names and the width of its states; anything else needs its configs."""
    openclip = any(key.startswith(keys_text.OPENCLIP) for key in shapes)
    family, width = (SD2 if openclip else SD1), context_width(shapes)
    if width == family.width:
        return family
    kind = "OpenCLIP" if openclip else "CLIP"
    raise ValueError(
        f"{path}: cross-attention reads states {width} wide, the text encoder is {kind}'s: "
        f"neither Stable Diffusion 1 (CLIP, {SD1.width}) nor 2 (OpenCLIP, {SD2.width}), so its config cannot be "
        "inferred from its shapes; give a diffusers folder with its JSON configs as --config DIR"
    )


def infer_unet(path: Path, file_shapes: Shapes, heads: int | None) -> dict[str, Any]:
    """Returns unet/config.json; `heads` is the number at every level, or None for heads 64 wide."""
    shapes = {k.removeprefix(keys_unet.PREFIX): s for k, s in file_shapes.items() if k.startswith(keys_unet.PREFIX)}
    try:
        widths, layers, depths = down_levels(shapes)
        first, last, time = (shapes[k] for k in ("input_blocks.0.0.weight", "out.2.weight", "time_embed.0.weight"))
        ups = up_levels(shapes, layers)
    except (KeyError, IndexError) as error:
        raise ValueError(
            f"{path}: the U-Net is not built as a Stable Diffusion's ({error} is missing or mis-shaped), so its config "
            "cannot be inferred from its shapes; give a diffusers folder with its JSON configs as --config DIR"
        ) from None
    linear = any(k.endswith(".1.proj_in.weight") and len(s) == 2 for k, s in shapes.items())
    middle = "middle_block.0.in_layers.0.weight" in shapes
    return {
        "_class_name": "UNet2DConditionModel",
        "in_channels": first[1],
        "out_channels": last[0],
        "conv_in_kernel": first[-1],
        "conv_out_kernel": last[-1],
        "block_out_channels": widths,
        "layers_per_block": one_or_all(layers),
        "transformer_layers_per_block": one_or_all([depth or 1 for depth in depths]),
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "mid_block_type": "UNetMidBlock2DCrossAttn" if middle else None,
        "up_block_types": ["CrossAttnUpBlock2D" if up else "UpBlock2D" for up in ups],
        "cross_attention_dim": context_width(file_shapes),
        "attention_head_dim": heads if heads else [max(width // HEAD_WIDTH, 1) for width in widths],
        "use_linear_projection": linear,
        "time_embedding_dim": None if time[0] == 4 * widths[0] else time[0],
    }


def down_levels(shapes: Shapes) -> tuple[list[int], list[int], list[int]]:
    """Returns each level's channels, layers and transformer depth (0: no transformer)."""
    blocks = number(shapes, "input_blocks.")
    widths, layers, depths = [0], [0], [0]
    for n in range(1, blocks):
        block = f"input_blocks.{n}."
        if f"{block}0.op.weight" in shapes:
            widths, layers, depths = [*widths, 0], [*layers, 0], [*depths, 0]
            continue
        widths[-1] = shapes[f"{block}0.out_layers.3.weight"][0]
        layers[-1] += 1
        depths[-1] = number(shapes, f"{block}1.transformer_blocks.")
    return widths, layers, depths


def up_levels(shapes: Shapes, layers: list[int]) -> list[bool]:
    """Returns for each up level, the lowest resolution first, True if it attends to the text."""
    attending, n = [], 0
    for count in reversed(layers):
        attending.append(number(shapes, f"output_blocks.{n}.1.transformer_blocks.") > 0)
        n += count + 1
    return attending


def infer_vae(path: Path, file_shapes: Shapes, prefix: str = keys_vae.PREFIX) -> dict[str, Any]:
    """Returns vae/config.json without the latent scale, which no shape determines."""
    shapes = {k.removeprefix(prefix): s for k, s in file_shapes.items() if k.startswith(prefix)}
    try:
        levels = range(number(shapes, "encoder.down."))
        return {
            "_class_name": "AutoencoderKL",
            "in_channels": shapes["encoder.conv_in.weight"][1],
            "out_channels": shapes["decoder.conv_out.weight"][0],
            "latent_channels": shapes["decoder.conv_in.weight"][1],
            "block_out_channels": [shapes[f"encoder.down.{i}.block.0.conv1.weight"][0] for i in levels],
            "layers_per_block": number(shapes, "encoder.down.0.block."),
            "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in shapes,
            "use_quant_conv": "quant_conv.weight" in shapes,
            "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        }
    except (KeyError, IndexError) as error:
        raise ValueError(
            f"{path}: the autoencoder is not built as a Stable Diffusion's ({error} is missing or mis-shaped), so its "
            "config cannot be inferred from its shapes; give a diffusers folder with its JSON configs as --config DIR"
        ) from None


def infer_text(path: Path, file_shapes: Shapes) -> dict[str, Any]:
    """Returns text_encoder/config.json; of a whole OpenCLIP tower without the last block."""
    openclip = any(key.startswith(keys_text.OPENCLIP) for key in file_shapes)
    prefix = keys_text.OPENCLIP if openclip else keys_text.CLIP
    shapes = {
        k.removeprefix(prefix).removeprefix(keys_text.TOWER): s for k, s in file_shapes.items() if k.startswith(prefix)
    }
    tokens, positions, blocks, inner = OPENCLIP_NAMES if openclip else CLIP_NAMES
    try:
        vocabulary, width = shapes[tokens]
        layers = number(shapes, blocks)
        whole = openclip and ("text_projection" in shapes or layers == VIT_H_BLOCKS)
        return {
            "architectures": ["CLIPTextModel"],
            "model_type": "clip_text_model",
            "vocab_size": vocabulary,
            "hidden_size": width,
            "intermediate_size": shapes[blocks + inner][0],
            "num_hidden_layers": layers - 1 if whole else layers,
            "num_attention_heads": max(width // HEAD_WIDTH, 1),
            "max_position_embeddings": shapes[positions][0],
            "hidden_act": "gelu" if openclip else "quick_gelu",
            "layer_norm_eps": 1e-5,
            "projection_dim": 512 if openclip else width,
            "bos_token_id": vocabulary - 2,
            "eos_token_id": vocabulary - 1,
            "pad_token_id": 0 if openclip else vocabulary - 1,
        }
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"{path}: the text encoder is not built as a Stable Diffusion's ({error} is missing or mis-shaped), so its "
            "config cannot be inferred from its shapes; give a diffusers folder with its JSON configs as --config DIR"
        ) from None


def one_or_all(values: list[int]) -> int | list[int]:
    """Returns one number if all levels have the same."""
    return values[0] if len(set(values)) == 1 else values
