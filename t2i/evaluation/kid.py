"""The kernel distance (Binkowski et al. 2018): unbiased MMD^2 under (x.y / d + 1)^3, over all samples, not subsets."""

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from t2i.evaluation.jackknife import Replicates
from t2i.evaluation.mmd import kernel_sums, mmd


def polynomial(x: Float64[Tensor, "a d"], y: Float64[Tensor, "b d"]) -> Float64[Tensor, "a b"]:
    """(x.y / d + 1)^3."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def kid(x: Float[Tensor, "n d"], y: Float[Tensor, "m e"], groups: Int[Tensor, " n"]) -> Replicates:
    """The distance of a sample, in groups, from a reference; about 0, also below, where they are of one kind."""
    if min(len(x) - int(torch.bincount(groups).max()), len(y)) < 2:
        raise ValueError(f"KID needs at least 2 samples on both sides without any one group: {len(x)} and {len(y)}")
    return mmd(kernel_sums(polynomial, x, y, groups), unbiased=True)
