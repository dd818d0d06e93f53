"""Embeddings of the time step."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from torch import Tensor, nn


def sinusoid(
    t: Num[Tensor, " b"], dim: int, flip_sin_to_cos: bool = False, freq_shift: float | int = 0
) -> Float[Tensor, "b {dim}"]:
    """Returns [sin(t w_i), cos(t w_i)], w_i = 10000^(-i / (dim/2 - freq_shift)) in float32 (1706.03762, 3.5)."""
    half = dim // 2
    # In bfloat16 999 and 1000 would be the same number.
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / (half - freq_shift)
    angle = t.float()[:, None] * exponent.exp()
    pair = (angle.cos(), angle.sin()) if flip_sin_to_cos else (angle.sin(), angle.cos())
    return F.pad(torch.cat(pair, dim=1), (0, dim % 2))


class TimestepEmbedding(nn.Module):
    """linear_2(silu(linear_1(x)))."""

    def __init__(self, in_dim: int, dim: int):
        super().__init__()
        self.linear_1 = nn.Linear(in_dim, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b i"]) -> Float[Tensor, "b d"]:
        return self.linear_2(F.silu(self.linear_1(x)))
