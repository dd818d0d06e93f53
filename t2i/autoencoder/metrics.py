"""Metrics of an autoencoder's reconstructions and latents. Images are floats in [-1, 1]."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from t2i.autoencoder.kl import Gaussian

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601


def eight_bit(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Rounds the pixels to the whole numbers 0..255 of an image file, in float64."""
    return ((x.double().clamp(-1, 1) + 1) * 127.5).round()


def psnr(x: Float[Tensor, "b c h w"], y: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """Returns 10 log10(255^2 / mse) of each image on 8-bit pixels, in dB; inf for equal images."""
    mse = (eight_bit(x) - eight_bit(y)).square().mean(dim=(1, 2, 3))
    return 10 * (255**2 / mse).log10()


def ssim(x: Float[Tensor, "b c h w"], y: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """Returns the mean structural similarity of each image (Wang et al. 2004, eq. 13) on the luminance of 8-bit pixels.

    An 11x11 Gaussian window of sigma 1.5, without padding; K1 = 0.01, K2 = 0.03, L = 255.
    """
    if min(x.shape[2:]) < 11:
        raise ValueError(f"ssim needs images of at least 11x11 pixels, not {x.shape[3]}x{x.shape[2]}")
    x, y = luminance(eight_bit(x)), luminance(eight_bit(y))
    window = torch.exp(-torch.arange(-5, 6, dtype=x.dtype, device=x.device).square() / (2 * 1.5**2))
    window = window / window.sum()
    maps = torch.cat([x, y, x * x, y * y, x * y])
    maps = F.conv2d(F.conv2d(maps, window.view(1, 1, 11, 1)), window.view(1, 1, 1, 11))
    mean_x, mean_y, xx, yy, xy = maps.chunk(5)
    var_x, var_y, cov = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return similarity.mean(dim=(1, 2, 3))


def luminance(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
    """Returns Y of RGB; an image of one channel is returned as it is."""
    if x.shape[1] == 1:
        return x
    return (x * x.new_tensor(LUMINANCE).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)


def kl_per_dimension(posterior: Gaussian) -> Float[Tensor, "c h w"]:
    """Returns KL(q(z_i | x) || N(0, 1)) of every latent dimension, in nats, averaged over the images."""
    return posterior.kl_map().mean(dim=0)


def active_units(means: Float[Tensor, "n c h w"], threshold: float = 0.01) -> Bool[Tensor, "c h w"]:
    """Marks the latent dimensions that carry information: Var_x(E[z_i | x]) > threshold (Burda et al. 2015, 5.2)."""
    if len(means) < 2:
        raise ValueError(f"active units need at least 2 images, not {len(means)}")
    return means.double().var(dim=0) > threshold


def elbo(
    x: Float[Tensor, "b c h w"], reconstruction: Float[Tensor, "b c h w"], posterior: Gaussian, variance: float = 1.0
) -> Float[Tensor, " b"]:
    """Returns log N(x; reconstruction, variance) - KL of each image, in nats per pixel value: the ELBO (beta = 1).

    `reconstruction` decodes one sample of the posterior. The density is that of pixel values in [-1, 1];
    bits per value of an 8-bit image are about log2(127.5) - elbo / ln 2.
    """
    error = (x.double() - reconstruction.double()).square().flatten(1).mean(dim=1)
    log_likelihood = -0.5 * (error / variance + math.log(2 * math.pi * variance))
    return log_likelihood - posterior.kl().double() / x[0].numel()


def latent_scale(moments: Gaussian) -> float:
    """Returns 1 / std of posterior samples over all values of all images (Rombach et al. 2022, app. G).

    Exact, without sampling: Var[z] = E[mean^2 + var] - E[mean]^2.
    """
    mean, logvar = moments.mean.double(), moments.logvar.double()
    return float(((mean.square() + logvar.exp()).mean() - mean.mean().square()).rsqrt())
