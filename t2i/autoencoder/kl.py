"""The KL-regularised autoencoder of latent diffusion (Kingma & Welling 2013; Rombach et al. 2022, 3.1)."""

from typing import Any, NamedTuple

from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from t2i.autoencoder.encoder_decoder import Decoder, Encoder
from t2i.component import Component, ComponentConfig

DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"
MAX_SIZE, MAX_LAYERS = 2**24, 64  # of any size; of layers in a block
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class AutoencoderKLConfig(ComponentConfig):
    """The keys of `vae/config.json` and their defaults.

    `scaling_factor` multiplies the latents that the generator sees, and is applied there, not here.
    `sample_size` (the image size in training) and `force_upcast` (half precision overflows) are hints for pipelines.
    """

    in_channels: int = Field(3, ge=1, le=MAX_SIZE)
    out_channels: int = Field(3, ge=1, le=MAX_SIZE)
    down_block_types: tuple[str, ...] = (DOWN,)
    up_block_types: tuple[str, ...] = (UP,)
    block_out_channels: tuple[int, ...] = Field((64,), min_length=1)
    layers_per_block: int = Field(1, ge=1, le=MAX_LAYERS)
    act_fn: str = "silu"
    latent_channels: int = Field(4, ge=1, le=MAX_SIZE)
    norm_num_groups: int = Field(32, ge=1)
    sample_size: int = Field(32, ge=1)
    scaling_factor: float = Field(0.18215, gt=0)
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    @model_validator(mode="before")
    @classmethod
    def _fill_block_types(cls, values: Any) -> Any:
        widths = values.get("block_out_channels") if isinstance(values, dict) else None
        if not isinstance(widths, list | tuple):
            return values
        return {"down_block_types": (DOWN,) * len(widths), "up_block_types": (UP,) * len(widths)} | values

    @model_validator(mode="after")
    def _check_supported(self) -> "AutoencoderKLConfig":
        for key in ("act_fn", "shift_factor", "latents_mean", "latents_std"):
            value, default = getattr(self, key), type(self).model_fields[key].default
            if value != default:
                raise ValueError(f"`{key}` = {value!r} is not supported (only {default!r})")
        widths = self.block_out_channels
        for key, only in (("down_block_types", DOWN), ("up_block_types", UP)):
            value = getattr(self, key)
            if value != (only,) * len(widths):
                raise ValueError(
                    f"`{key}` = {value!r} is not supported (only {only!r}, once for each of the {len(widths)} "
                    f"`block_out_channels`); leave `{key}` out for the default"
                )
        if odd := [width for width in widths if not 1 <= width <= MAX_SIZE or width % self.norm_num_groups]:
            raise ValueError(
                f"`block_out_channels` = {widths} holds {odd[0]}, not a multiple of "
                f"`norm_num_groups` = {self.norm_num_groups} in 1..{MAX_SIZE}; change one of the two"
            )
        return self


class Gaussian(NamedTuple):
    """A diagonal normal distribution over latents, q(z | x)."""

    mean: Float[Tensor, "b c h w"]
    logvar: Float[Tensor, "b c h w"]

    def sample(self, eps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Returns mean + std * eps, for eps ~ N(0, 1)."""
        return self.mean + (0.5 * self.logvar).exp() * eps

    def kl(self) -> Float[Tensor, " b"]:
        """Returns KL(q || N(0, 1)) in nats, summed over the latent of each image (Kingma & Welling 2013, app. B)."""
        return self.kl_map().sum(dim=(1, 2, 3))

    def kl_map(self) -> Float[Tensor, "b c h w"]:
        """Returns 1/2 (mean^2 + var - 1 - logvar) of every latent value, in nats and in float32."""
        mean, logvar = self.mean.float(), self.logvar.float()
        return 0.5 * (mean.square() + logvar.exp() - 1 - logvar)


class AutoencoderKL(Component):
    """Maps images in [-1, 1] to unscaled latents, `factor` times smaller per side, and back."""

    Config = AutoencoderKLConfig
    diffusers_class = "AutoencoderKL"
    config: AutoencoderKLConfig

    def __init__(self, config: AutoencoderKLConfig):
        super().__init__(config)
        c, latent = config, config.latent_channels
        shared = (c.block_out_channels, c.layers_per_block, c.norm_num_groups, c.mid_block_add_attention)
        self.encoder = Encoder(c.in_channels, 2 * latent, *shared)
        self.decoder = Decoder(latent, c.out_channels, *shared)
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1) if c.use_quant_conv else nn.Identity()
        self.post_quant_conv = nn.Conv2d(latent, latent, 1) if c.use_post_quant_conv else nn.Identity()
        self.factor = 2 ** (len(c.block_out_channels) - 1)

    def encode(self, x: Float[Tensor, "b i h w"]) -> Gaussian:
        """Returns q(z | x)."""
        height, width = x.shape[2:]
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"an image of {width}x{height} pixels does not fit the autoencoder: "
                f"both sides must be multiples of {self.factor}; resize or crop it"
            )
        mean, logvar = self.quant_conv(self.encoder(x)).chunk(2, dim=1)
        return Gaussian(mean, logvar.clamp(-30, 20))

    def decode(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o h2 w2"]:
        """Returns the mean of p(x | z), not clamped to [-1, 1]."""
        return self.decoder(self.post_quant_conv(z))

    def forward(
        self, x: Float[Tensor, "b i h w"], eps: Float[Tensor, "b c h2 w2"]
    ) -> tuple[Float[Tensor, "b o h w"], Gaussian]:
        """Decodes one sample of q(z | x); one forward pass for the whole training step, as DDP needs."""
        posterior = self.encode(x)
        return self.decode(posterior.sample(eps)), posterior

    @classmethod
    def rename_keys(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Renames attention that was saved as query, key, value, proj_attn, and flattens 1x1 convolutions."""
        renamed = {}
        for key, tensor in state.items():
            if ".attentions." in key:
                place, layer, kind = key.rsplit(".", 2)
                key = f"{place}.{OLD_NAMES.get(layer, layer)}.{kind}"
                tensor = tensor.flatten(1) if tensor.ndim == 4 else tensor
            renamed[key] = tensor
        return renamed
