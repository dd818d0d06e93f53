"""The encoder and the decoder of the VAE (Rombach et al. 2022, app. G): convolutions and one attention block."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from t2i.nn.attention import PixelAttention
from t2i.nn.resnet import Downsample, ResnetBlock, Upsample

EPS = 1e-6


class Stage(nn.Module):
    """Residual blocks, then the change of resolution, if any."""

    def __init__(
        self, in_channels: int, channels: int, count: int, groups: int, *, down: bool = False, up: bool = False
    ):
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(channels if i else in_channels, channels, time_dim=None, groups=groups, eps=EPS)
            for i in range(count)
        )
        self.downsamplers = nn.ModuleList([Downsample(channels, padding=0)] if down else [])
        self.upsamplers = nn.ModuleList([Upsample(channels)] if up else [])

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h2 w2"]:
        for layer in (*self.resnets, *self.downsamplers, *self.upsamplers):
            x = layer(x)
        return x


class Middle(nn.Module):
    """Residual block, attention over the pixels (optional), residual block."""

    def __init__(self, channels: int, groups: int, attention: bool):
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(channels, channels, time_dim=None, groups=groups, eps=EPS) for _ in range(2)
        )
        self.attentions = nn.ModuleList([PixelAttention(channels, groups=groups, eps=EPS)] if attention else [])

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        first, last = self.resnets
        x = first(x)
        for attention in self.attentions:
            x = attention(x)
        return last(x)


class Encoder(nn.Module):
    """Maps an image to the stacked mean and log variance of its latent, 2^(stages - 1) times smaller per side."""

    def __init__(
        self, in_channels: int, out_channels: int, widths: tuple[int, ...], layers: int, groups: int, attention: bool
    ):
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            Stage(widths[max(i - 1, 0)], width, layers, groups, down=i < len(widths) - 1)
            for i, width in enumerate(widths)
        )
        self.mid_block = Middle(widths[-1], groups, attention)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h2 w2"]:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """Maps a latent to an image: the encoder's stages in reverse, with one more residual block per stage."""

    def __init__(
        self, in_channels: int, out_channels: int, widths: tuple[int, ...], layers: int, groups: int, attention: bool
    ):
        super().__init__()
        widths = widths[::-1]
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.mid_block = Middle(widths[0], groups, attention)
        self.up_blocks = nn.ModuleList(
            Stage(widths[max(i - 1, 0)], width, layers + 1, groups, up=i < len(widths) - 1)
            for i, width in enumerate(widths)
        )
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, z: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h2 w2"]:
        if not torch.is_grad_enabled():
            # A third faster on a CPU; not in training, where the backward pass in bfloat16 would be slower.
            z = z.contiguous(memory_format=torch.channels_last)
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))
