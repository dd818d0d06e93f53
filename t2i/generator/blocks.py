"""The levels of the U-Net: residual blocks, each followed by a transformer if the level attends to the text."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from t2i.generator.unet_config import UNetConfig
from t2i.nn.attention import SpatialTransformer
from t2i.nn.resnet import Downsample, ResnetBlock, Upsample


class Context(NamedTuple):
    """The inputs of every layer in a forward pass beside the feature map."""

    temb: Float[Tensor, "b t"]
    tokens: Float[Tensor, "b n d"]
    mask: Bool[Tensor, "b n"] | None


class Level(nn.Module):
    """Pairs of residual block and transformer, in two lists for the names of the weights."""

    gradient_checkpointing = False

    def __init__(self, resnets: list[ResnetBlock], transformers: list[SpatialTransformer]):
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        if transformers:
            self.attentions = nn.ModuleList(transformers)

    def layer(self, j: int, x: Tensor, context: Context) -> Tensor:
        """Applies residual block `j` and its transformer; gradient checkpointing keeps only its input."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(self._layer, j, x, context, use_reentrant=False)
        return self._layer(j, x, context)

    def _layer(self, j: int, x: Tensor, context: Context) -> Tensor:
        x = self.resnets[j](x, context.temb)
        return self.attentions[j](x, context.tokens, context.mask) if hasattr(self, "attentions") else x


class DownLevel(Level):
    """A level of the down path; all but the last end at half the resolution."""

    def __init__(self, config: UNetConfig, i: int):
        widths, depth = config.block_out_channels, config.per_level("layers_per_block")[i]
        inputs = [widths[max(i - 1, 0)], *[widths[i]] * (depth - 1)]
        attends = config.down_block_types[i] == "CrossAttnDownBlock2D"
        super().__init__(
            [_resnet(config, channels, widths[i]) for channels in inputs],
            [_transformer(config, i) for _ in inputs] if attends else [],
        )
        if i < len(widths) - 1:
            self.downsamplers = nn.ModuleList([Downsample(widths[i], padding=config.downsample_padding)])

    def forward(self, x: Tensor, context: Context) -> list[Tensor]:
        """Returns every feature map of this level; the last one is the input of the next level."""
        maps = []
        for j in range(len(self.resnets)):
            x = self.layer(j, x, context)
            maps.append(x)
        if hasattr(self, "downsamplers"):
            maps.append(self.downsamplers[0](x))
        return maps


class MidLevel(nn.Module):
    """The middle block: residual block, transformer, residual block at the lowest resolution."""

    gradient_checkpointing = False

    def __init__(self, config: UNetConfig):
        super().__init__()
        width, scale = config.block_out_channels[-1], config.mid_block_scale_factor
        self.resnets = nn.ModuleList(_resnet(config, width, width, scale) for _ in range(2))
        self.attentions = nn.ModuleList([_transformer(config, len(config.block_out_channels) - 1)])

    def forward(self, x: Tensor, context: Context) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(self._forward, x, context, use_reentrant=False)
        return self._forward(x, context)

    def _forward(self, x: Tensor, context: Context) -> Tensor:
        x = self.resnets[0](x, context.temb)
        x = self.attentions[0](x, context.tokens, context.mask)
        return self.resnets[1](x, context.temb)


class UpLevel(Level):
    """A level of the up path, `i` counted from the full resolution.

    It has one block more than the level of the down path; each block's input is concatenated with a skip connection.
    """

    def __init__(self, config: UNetConfig, i: int):
        widths, depth = config.block_out_channels, config.per_level("layers_per_block")[i] + 1
        below, above = widths[min(i + 1, len(widths) - 1)], widths[max(i - 1, 0)]
        skips = [*[widths[i]] * (depth - 1), above]
        inputs = [below, *[widths[i]] * (depth - 1)]
        attends = config.up_block_types[-1 - i] == "CrossAttnUpBlock2D"
        super().__init__(
            [_resnet(config, channels + skip, widths[i]) for channels, skip in zip(inputs, skips, strict=True)],
            [_transformer(config, i) for _ in inputs] if attends else [],
        )
        if i > 0:
            self.upsamplers = nn.ModuleList([Upsample(widths[i])])

    def forward(self, x: Tensor, skips: list[Tensor], context: Context) -> Tensor:
        """Pops its skip connections off `skips`; ends at the size of the next level's skip connection."""
        for j in range(len(self.resnets)):
            x = self.layer(j, torch.cat([x, skips.pop()], dim=1), context)
        return self.upsamplers[0](x, tuple(skips[-1].shape[2:])) if hasattr(self, "upsamplers") else x


def _resnet(config: UNetConfig, in_channels: int, out_channels: int, output_scale: float = 1.0) -> ResnetBlock:
    return ResnetBlock(
        in_channels,
        out_channels,
        time_dim=config.time_dim,
        groups=config.norm_num_groups,
        eps=config.norm_eps,
        dropout=config.dropout,
        output_scale=output_scale,
    )


def _transformer(config: UNetConfig, i: int) -> SpatialTransformer:
    width, heads = config.block_out_channels[i], config.per_level("attention_head_dim")[i]
    return SpatialTransformer(
        width,
        heads,
        width // heads,
        context_dim=config.per_level("cross_attention_dim")[i],
        depth=config.per_level("transformer_layers_per_block")[i],
        groups=config.norm_num_groups,
        linear=config.use_linear_projection,
    )
