"""KID and CMMD: maximum mean discrepancies whose jackknife follows exactly from kernel sums between groups.

KID (Binkowski et al. 2018) is the unbiased MMD^2 under (x.y / d + 1)^3, over all samples instead of subsets. CMMD
(Jayasumana et al. 2024) is the biased MMD^2 of unit features under a Gaussian kernel of sigma 10, times 1000.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int
from torch import Tensor

from t2i.evaluation.frechet import check_dims
from t2i.evaluation.jackknife import Replicates

BLOCK = 1024  # rows of a kernel matrix that are in memory at once
SIGMA, SCALE = 10.0, 1000.0  # of CMMD

Kernel = Callable[[Float64[Tensor, "a d"], Float64[Tensor, "b d"]], Float64[Tensor, "a b"]]


def kid(x: Float[Tensor, "n d"], y: Float[Tensor, "m e"], groups: Int[Tensor, " n"]) -> Replicates:
    """Returns the KID of a sample, in groups, from a reference; about 0, also below it, for equal distributions."""
    if min(len(x) - int(torch.bincount(groups).max()), len(y)) < 2:
        raise ValueError(f"KID needs at least 2 samples on both sides without any one group: {len(x)} and {len(y)}")
    return mmd(kernel_sums(polynomial, x, y, groups), unbiased=True)


def cmmd(x: Float[Tensor, "n d"], y: Float[Tensor, "m e"], groups: Int[Tensor, " n"]) -> Replicates:
    """Returns the CMMD of a sample, in groups, from a reference.

    Published numbers use CLIP ViT-L/14@336; other features give other numbers.
    """
    unit_x, unit_y = F.normalize(x.double(), dim=1), F.normalize(y.double(), dim=1)
    return mmd(kernel_sums(gaussian, unit_x, unit_y, groups), unbiased=False, scale=SCALE)


def polynomial(x: Float64[Tensor, "a d"], y: Float64[Tensor, "b d"]) -> Float64[Tensor, "a b"]:
    """Computes (x.y / d + 1)^3."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def gaussian(x: Float64[Tensor, "a d"], y: Float64[Tensor, "b d"]) -> Float64[Tensor, "a b"]:
    """Computes exp(-|x - y|^2 / (2 sigma^2)) for unit vectors."""
    return torch.exp((x @ y.T - 1) / SIGMA**2)


class Sums(NamedTuple):
    """Kernel sums: within the sample by pair of groups, along its diagonal by group, and across by group."""

    within: Float64[Tensor, "g g"]
    diagonal: Float64[Tensor, " g"]
    across: Float64[Tensor, " g"]
    sizes: Int[Tensor, " g"]
    reference: float  # the sum over all pairs of the reference
    reference_diagonal: float
    n_reference: int


def kernel_sums(kernel: Kernel, x: Float[Tensor, "n d"], y: Float[Tensor, "m e"], groups: Int[Tensor, " n"]) -> Sums:
    """Computes the sums for a sample `x` in groups and a reference `y`, in blocks of a fixed size and in float64."""
    check_dims(x.shape[1], y.shape[1])
    x, y = x.double(), y.double()
    count = int(groups.max()) + 1
    one_hot = F.one_hot(groups, count).double()
    within = torch.zeros(count, count, dtype=torch.float64)
    diagonal, across = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    for a, member in zip(x.split(BLOCK), one_hot.split(BLOCK), strict=True):
        for b, other in zip(x.split(BLOCK), one_hot.split(BLOCK), strict=True):
            within += member.T @ kernel(a, b) @ other
        for b in y.split(BLOCK):
            across += member.T @ kernel(a, b).sum(1)
        diagonal += member.T @ _diagonal(kernel, a)
    reference = sum(kernel(a, b).sum().item() for a in y.split(BLOCK) for b in y.split(BLOCK))
    reference_diagonal = sum(_diagonal(kernel, a).sum().item() for a in y.split(BLOCK))
    sizes = torch.bincount(groups, minlength=count)
    return Sums(within, diagonal, across, sizes, reference, reference_diagonal, len(y))


def _diagonal(kernel: Kernel, x: Float64[Tensor, "a d"]) -> Float64[Tensor, " a"]:
    return torch.cat([kernel(part, part).diagonal() for part in x.split(64)])


def mmd(sums: Sums, unbiased: bool, scale: float = 1.0) -> Replicates:
    """Computes MMD^2 (Gretton et al. 2012: eq. 3 unbiased, eq. 5 biased) of all groups, and without each."""
    within, diagonal, across = sums.within.sum(), sums.diagonal.sum(), sums.across.sum()
    n, m = int(sums.sizes.sum()), sums.n_reference
    cut = sums.within.sum(0) + sums.within.sum(1) - sums.within.diagonal()  # all pairs that touch a group

    def value(xx: Tensor, x_diagonal: Tensor, xy: Tensor, n: Tensor) -> Tensor:
        if unbiased:
            yy = (sums.reference - sums.reference_diagonal) / (m * (m - 1))
            return scale * ((xx - x_diagonal) / (n * (n - 1)) + yy - 2 * xy / (n * m))
        return scale * (xx / n**2 + sums.reference / m**2 - 2 * xy / (n * m))

    full = value(within, diagonal, across, torch.tensor(n, dtype=torch.float64))
    without = value(within - cut, diagonal - sums.diagonal, across - sums.across, (n - sums.sizes).double())
    return Replicates(full.item(), tuple(without.tolist()))
