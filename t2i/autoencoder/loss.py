"""The training loss of the autoencoder, term by term."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from t2i.autoencoder.kl import Gaussian

RECONSTRUCTIONS = {"l1": F.l1_loss, "l2": F.mse_loss}


def autoencoder_loss(
    x: Float[Tensor, "b c h w"],
    reconstruction: Float[Tensor, "b c h w"],
    posterior: Gaussian,
    *,
    kind: str = "l1",
    beta: float,
) -> dict[str, Float[Tensor, ""]]:
    """Returns loss = reconstruction + beta * kl and both terms, each a mean over the images, per pixel value.

    reconstruction: |x - y| (`l1`) or (x - y)^2 (`l2`), averaged over the pixel values of an image.
    kl: nats, summed over the latent of an image, divided by the number of its pixel values.
    So beta weighs sums against sums at any resolution, as in Rombach et al. 2022 (theirs: 1e-6), and
    l2 with beta = 2 s^2 is the negative ELBO of a decoder N(y, s^2), times 2 s^2 and up to a constant.
    """
    if kind not in RECONSTRUCTIONS:
        raise ValueError(f"reconstruction loss {kind!r} is unknown; choose one of {', '.join(RECONSTRUCTIONS)}")
    terms = {
        "reconstruction": RECONSTRUCTIONS[kind](reconstruction.float(), x.float()),
        "kl": posterior.kl().mean() / x[0].numel(),
    }
    return {"loss": terms["reconstruction"] + beta * terms["kl"]} | terms
