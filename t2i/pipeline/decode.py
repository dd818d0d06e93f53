"""The autoencoder at work: by slices and tiles, and again in a wider dtype where half precision overflows."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from t2i.autoencoder.kl import AutoencoderKL, Gaussian
from t2i.autoencoder.tiles import tiled_decode, tiled_encode
from t2i.errors import RunFailed

MOST_ELEMENTS = 2**31 - 1  # of one activation: kernels count in int32
RETRIES = (torch.float32, torch.bfloat16)


@dataclass
class Coder:
    """How a pipeline runs its autoencoder: tiles of `tile` pixels, one picture at a time if `sliced`, and `retry`,
    the dtype that it goes over to where float16 overflows."""

    tile: int | None = None
    sliced: bool = False
    retry: torch.dtype = torch.float32

    def decode(self, vae: AutoencoderKL, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        """Scaled latents -> pictures in [-1, 1] (not clamped), in float32."""

        def run(z: Tensor) -> Tensor:
            return vae.decode(z) if self.tile is None else tiled_decode(vae, z, self.tile)

        return self._run(vae, run, latents / vae.config.scaling_factor, vae.factor)

    def encode(self, vae: AutoencoderKL, pictures: Float[Tensor, "b 3 h w"]) -> Gaussian:
        """Pictures in [-1, 1] -> q(z | x), unscaled, in float32."""

        def run(x: Tensor) -> Tensor:
            return torch.cat(vae.encode(x) if self.tile is None else tiled_encode(vae, x, self.tile), dim=1)

        return Gaussian(*self._run(vae, run, pictures, 1).chunk(2, dim=1))

    @torch.no_grad()
    def _run(self, vae: AutoencoderKL, run: Callable[[Tensor], Tensor], x: Tensor, factor: int) -> Tensor:
        height, width = (side * factor if self.tile is None else min(side * factor, self.tile) for side in x.shape[2:])
        most = max(1, MOST_ELEMENTS // (height * width * max(vae.config.block_out_channels)))
        parts = x.split(1 if self.sliced else most)
        found = torch.cat([run(part.to(_dtype(vae))).float() for part in parts])
        if _dtype(vae) == torch.float16 and not found.isfinite().all():
            warnings.warn(f"the VAE overflows in float16: it runs in {str(self.retry)[6:]} from here on", stacklevel=3)
            vae.to(dtype=self.retry)
            found = torch.cat([run(part.to(self.retry)).float() for part in parts])
        check_finite(found, "VAE")
        return found


def check_finite(x: Tensor, stage: str) -> None:
    """Raise RunFailed that names the stage, rather than go on to a black picture."""
    if not x.isfinite().all():
        raise RunFailed(f"the {stage} put out non-finite values: use dtype float32 or bfloat16, or other weights")


def _dtype(vae: AutoencoderKL) -> torch.dtype:
    return next(vae.parameters()).dtype
