"""Previews of latents during sampling, without the decoder: a linear map from each latent to a colour."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from t2i.data.transforms import to_pixels


class LatentRGB(NamedTuple):
    """colour = factors^T latent + bias, in [-1, 1]."""

    factors: Float[Tensor, "c 3"]
    bias: Float[Tensor, "3"]

    def __call__(self, latents: Float[Tensor, "b c h w"]) -> list[Image.Image]:
        """Returns an image of each, at the size of the latents."""
        colours = torch.einsum("bchw,cr->brhw", latents.float().cpu(), self.factors)
        return to_pixels(colours + self.bias[:, None, None])


def fit_latent_rgb(latents: Float[Tensor, "b c h w"], images: Float[Tensor, "b 3 h2 w2"]) -> LatentRGB:
    """Returns the least-squares map from scaled latents to the mean colour of the pixels that they decode to."""
    colours = F.adaptive_avg_pool2d(images.float().cpu().clamp(-1, 1), (latents.shape[2], latents.shape[3]))
    inputs = latents.float().cpu().movedim(1, -1).flatten(0, -2).double()
    targets = colours.movedim(1, -1).flatten(0, -2).double()
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1, dtype=inputs.dtype)], dim=1)
    if len(inputs) <= inputs.shape[1]:
        raise ValueError(f"{len(inputs)} latent vectors are too few to fit {inputs.shape[1]} coefficients a colour")
    solution = torch.linalg.lstsq(inputs, targets).solution.float()
    return LatentRGB(solution[:-1], solution[-1])


def smooth_noise(shape: tuple[int, int, int, int]) -> Float[Tensor, "b c h w"]:
    """Returns latents to fit with if there are no others: unit variance, and smooth, as those of images."""
    rng = torch.Generator().manual_seed(0)
    b, c, h, w = shape
    coarse = torch.randn(b, c, max(h // 4, 1), max(w // 4, 1), generator=rng)
    return F.interpolate(coarse, size=(h, w), mode="nearest") * 0.9 + torch.randn(shape, generator=rng) * 0.45
