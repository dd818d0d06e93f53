"""Running the autoencoder: in slices and tiles, and again in a wider dtype if float16 overflows."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from t2i.autoencoder.kl import AutoencoderKL, Gaussian
from t2i.autoencoder.tiles import tiled_decode, tiled_encode
from t2i.errors import check_finite

MAX_ELEMENTS = 2**31 - 1  # of one activation: kernels index with int32


@dataclass
class VAERunner:
    """Runs an autoencoder in tiles of `tile` pixels, one image at a time if `sliced`, and in `retry` after float16
    overflowed."""

    tile: int | None = None
    sliced: bool = False
    retry: torch.dtype = torch.float32

    def decode(self, vae: AutoencoderKL, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        """Decodes scaled latents to float32 images in [-1, 1], not clamped."""

        def run(z: Tensor) -> Tensor:
            return vae.decode(z) if self.tile is None else tiled_decode(vae, z, self.tile)

        return self._run(vae, run, latents / vae.config.scaling_factor, vae.factor)

    def encode(self, vae: AutoencoderKL, images: Float[Tensor, "b 3 h w"]) -> Gaussian:
        """Encodes images in [-1, 1] to q(z | x), unscaled, in float32."""

        def run(x: Tensor) -> Tensor:
            return torch.cat(vae.encode(x) if self.tile is None else tiled_encode(vae, x, self.tile), dim=1)

        return Gaussian(*self._run(vae, run, images, 1).chunk(2, dim=1))

    @torch.no_grad()
    def _run(self, vae: AutoencoderKL, run: Callable[[Tensor], Tensor], x: Tensor, factor: int) -> Tensor:
        height, width = (side * factor if self.tile is None else min(side * factor, self.tile) for side in x.shape[2:])
        most_images = max(1, MAX_ELEMENTS // (height * width * max(vae.config.block_out_channels)))
        parts = x.split(1 if self.sliced else most_images)
        output = torch.cat([run(part.to(_dtype(vae))).float() for part in parts])
        if _dtype(vae) == torch.float16 and not output.isfinite().all():
            warnings.warn(f"the VAE overflows in float16: it runs in {str(self.retry)[6:]} from now on", stacklevel=3)
            vae.to(dtype=self.retry)
            output = torch.cat([run(part.to(self.retry)).float() for part in parts])
        check_finite(output, "VAE")
        return output


def _dtype(vae: AutoencoderKL) -> torch.dtype:
    return next(vae.parameters()).dtype
