"""The conditional U-Net of latent diffusion (Rombach et al. 2022), parameter for parameter a `UNet2DConditionModel`."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from torch import Tensor, nn

from t2i.component import Component
from t2i.conditioning import Conditioning
from t2i.generator.blocks import Context, DownLevel, Level, MidLevel, UpLevel
from t2i.generator.unet_config import UNetConfig
from t2i.nn.embeddings import TimestepEmbedding, sinusoid


class UNet(Component):
    """A UNet2DConditionModel in three parts: `down`, `mid`, `up`.

    `mask_padding` = True masks padding tokens in cross-attention. It is an attribute and not a config key because
    Stable Diffusion attends to padding, and diffusers has no key to change that.
    """

    Config = UNetConfig
    diffusers_class = "UNet2DConditionModel"
    config: UNetConfig

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        widths = config.block_out_channels
        self.mask_padding = False
        self.conv_in = _conv(config.in_channels, widths[0], config.conv_in_kernel)
        self.time_embedding = TimestepEmbedding(widths[0], config.time_dim)
        self.encoder_hid_proj = None
        if config.encoder_hid_dim is not None:
            assert isinstance(config.cross_attention_dim, int)
            self.encoder_hid_proj = nn.Linear(config.encoder_hid_dim, config.cross_attention_dim)
        self.down_blocks = nn.ModuleList(DownLevel(config, i) for i in range(len(widths)))
        self.mid_block = None if config.mid_block_type is None else MidLevel(config)
        self.up_blocks = nn.ModuleList(UpLevel(config, i) for i in reversed(range(len(widths))))
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[0], config.norm_eps)
        self.conv_out = _conv(widths[0], config.out_channels, config.conv_out_kernel)

    def forward(
        self, x: Float[Tensor, "b c h w"], t: Num[Tensor, "b"], cond: Conditioning
    ) -> Float[Tensor, "b out h w"]:
        """Returns the raw output at `t`, the network's index, which counts from 0 (the paper's t - 1)."""
        context = Context(self.embed_time(t), *self.embed_text(cond))
        skips = self.down(x, context)
        x = self.mid(skips[-1], context)
        x = self.up(x, skips, context)
        return self.conv_out(F.silu(self.conv_norm_out(x)))

    def embed_time(self, t: Num[Tensor, "b"]) -> Float[Tensor, "b d"]:
        """Returns the embedding of `t`; the sinusoid is computed in float32 in any precision."""
        config, weight = self.config, self.time_embedding.linear_1.weight
        wave = sinusoid(t, config.block_out_channels[0], config.flip_sin_to_cos, config.freq_shift)
        return self.time_embedding(wave.to(weight.dtype))

    def embed_text(self, cond: Conditioning) -> tuple[Tensor, Tensor | None]:
        """Returns the states for cross-attention, and their mask if padding is masked."""
        tokens = cond.tokens
        if self.encoder_hid_proj is not None:
            # Not in autocast's precision: the projector takes differences of states that are nearly equal.
            with torch.autocast(tokens.device.type, enabled=False):
                tokens = self.encoder_hid_proj(tokens)
        return tokens, cond.mask if self.mask_padding else None

    def down(self, x: Tensor, context: Context) -> list[Tensor]:
        """Returns every feature map of the down path, the lowest resolution last."""
        maps = [self.conv_in(2 * x - 1 if self.config.center_input_sample else x)]
        for level in self.down_blocks:
            maps += level(maps[-1], context)
        return maps

    def mid(self, x: Tensor, context: Context) -> Tensor:
        """Returns the feature map after the middle block."""
        return x if self.mid_block is None else self.mid_block(x, context)

    def up(self, x: Tensor, skips: list[Tensor], context: Context) -> Tensor:
        """Returns the feature map after the up path, which consumes `skips`."""
        for level in self.up_blocks:
            x = level(x, skips, context)
        return x

    def enable_gradient_checkpointing(self, enabled: bool = True) -> None:
        """Keeps only each layer's input for the backward pass, which recomputes the layer."""
        for module in self.modules():
            if isinstance(module, Level | MidLevel):
                module.gradient_checkpointing = enabled


def _conv(in_channels: int, out_channels: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
