"""Small U-Nets and conditionings for the tests of this folder."""

from typing import Any

import torch

from t2i.conditioning import Conditioning
from t2i.generator.unet import UNet
from t2i.generator.unet_config import UNetConfig

SMALL: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
}


def small_unet(seed: int = 0, **keys: Any) -> UNet:
    torch.manual_seed(seed)
    return UNet(UNetConfig(**(SMALL | keys))).eval()


def conditioning(b: int, width: int = 12, n: int = 5, seed: int = 1) -> Conditioning:
    """Random tokens, the last two of which are padding."""
    tokens = torch.randn(b, n, width, generator=torch.Generator().manual_seed(seed))
    return Conditioning(tokens, torch.arange(n).expand(b, n) < n - 2)


def latents(*shape: int, seed: int = 2) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
