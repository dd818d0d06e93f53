"""Residual blocks, downsampling and upsampling."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from t2i.nn.memory_format import match_memory_format


class ResnetBlock(nn.Module):
    """x + conv2(silu(norm2(conv1(silu(norm1(x))) + time))), over `output_scale` (Ho et al. 2020, app. B)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        time_dim: int | None,
        groups: int,
        eps: float,
        dropout: float = 0.0,
        output_scale: float = 1.0,
    ):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = None if time_dim is None else nn.Linear(time_dim, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = None if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        self.output_scale = output_scale

    def forward(
        self, x: Float[Tensor, "b i h w"], temb: Float[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b o h w"]:
        h = self.conv1(match_memory_format(F.silu(self.norm1(x)), self.conv1.weight))
        if self.time_emb_proj is not None:
            assert temb is not None
            h = h + self.time_emb_proj(F.silu(temb))[:, :, None, None]
        h = self.conv2(match_memory_format(self.dropout(F.silu(self.norm2(h))), self.conv2.weight))
        h = (x if self.conv_shortcut is None else self.conv_shortcut(x)) + h
        return h if self.output_scale == 1 else h / self.output_scale


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2; `padding` is 1 on all sides, or 0: one row below and one column to the right."""

    def __init__(self, channels: int, *, padding: int):
        super().__init__()
        assert padding in (0, 1)
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)
        self.padding = padding

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.conv(x if self.padding else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour upsampling by 2 (or to `size`), then a 3x3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"], size: tuple[int, int] | None = None) -> Float[Tensor, "b c h2 w2"]:
        size = size or (2 * x.shape[2], 2 * x.shape[3])
        return self.conv(F.interpolate(x, size=size, mode="nearest"))
