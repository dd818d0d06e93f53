"""CMMD (Jayasumana et al. 2024): MMD^2 of unit features under a Gaussian kernel of sigma 10, times 1000."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int
from torch import Tensor

from t2i.evaluation.jackknife import Replicates
from t2i.evaluation.mmd import kernel_sums, mmd

SIGMA, SCALE = 10.0, 1000.0


def gaussian(x: Float64[Tensor, "a d"], y: Float64[Tensor, "b d"]) -> Float64[Tensor, "a b"]:
    """exp(-|x - y|^2 / (2 sigma^2)) of unit vectors."""
    return torch.exp((x @ y.T - 1) / SIGMA**2)


def cmmd(x: Float[Tensor, "n d"], y: Float[Tensor, "m e"], groups: Int[Tensor, " n"]) -> Replicates:
    """The distance of a sample, in groups, from a reference; the biased estimate, as it was defined.

    The published numbers are of CLIP ViT-L/14@336; with other features it is another number.
    """
    unit_x, unit_y = F.normalize(x.double(), dim=1), F.normalize(y.double(), dim=1)
    return mmd(kernel_sums(gaussian, unit_x, unit_y, groups), unbiased=False, scale=SCALE)
