"""Kernel sums between groups of samples, from which a maximum mean discrepancy and its jackknife follow exactly."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from t2i.evaluation.frechet import check_dims
from t2i.evaluation.jackknife import Replicates

BLOCK = 1024  # rows of a kernel matrix that are in memory at once

Kernel = Callable[[Float64[Tensor, "a d"], Float64[Tensor, "b d"]], Float64[Tensor, "a b"]]


class Sums(NamedTuple):
    """Sums of the kernel: within the sample by pair of groups and along its diagonal by group, across by group."""

    within: Float64[Tensor, "g g"]
    diagonal: Float64[Tensor, " g"]
    across: Float64[Tensor, " g"]
    sizes: Int[Tensor, " g"]
    reference: float  # the sum over all pairs of the reference
    reference_diagonal: float
    n_reference: int


def kernel_sums(kernel: Kernel, x: Float[Tensor, "n d"], y: Float[Tensor, "m e"], groups: Int[Tensor, " n"]) -> Sums:
    """The sums for a sample `x` in groups and a reference `y`, in blocks of a fixed size and in float64."""
    check_dims(x.shape[1], y.shape[1])
    x, y = x.double(), y.double()
    count = int(groups.max()) + 1
    one_hot = torch.nn.functional.one_hot(groups, count).double()
    within = torch.zeros(count, count, dtype=torch.float64)
    diagonal, across = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    for a, member in zip(x.split(BLOCK), one_hot.split(BLOCK), strict=True):
        for b, other in zip(x.split(BLOCK), one_hot.split(BLOCK), strict=True):
            within += member.T @ kernel(a, b) @ other
        for b in y.split(BLOCK):
            across += member.T @ kernel(a, b).sum(1)
        diagonal += member.T @ _diagonal(kernel, a)
    reference = sum(kernel(a, b).sum().item() for a in y.split(BLOCK) for b in y.split(BLOCK))
    own = sum(_diagonal(kernel, a).sum().item() for a in y.split(BLOCK))
    return Sums(within, diagonal, across, torch.bincount(groups, minlength=count), reference, own, len(y))


def _diagonal(kernel: Kernel, x: Float64[Tensor, "a d"]) -> Float64[Tensor, " a"]:
    return torch.cat([kernel(part, part).diagonal() for part in x.split(64)])


def mmd(sums: Sums, unbiased: bool, scale: float = 1.0) -> Replicates:
    """MMD^2 (Gretton et al. 2012: eq. 3 unbiased, eq. 5 biased) of all groups, and of all but each."""
    within, diagonal, across = sums.within.sum(), sums.diagonal.sum(), sums.across.sum()
    n = int(sums.sizes.sum())
    cut = sums.within.sum(0) + sums.within.sum(1) - sums.within.diagonal()  # all pairs that touch a group

    def value(xx: Tensor, own: Tensor, xy: Tensor, n: Tensor) -> Tensor:
        m = sums.n_reference
        if unbiased:
            yy = (sums.reference - sums.reference_diagonal) / (m * (m - 1))
            return scale * ((xx - own) / (n * (n - 1)) + yy - 2 * xy / (n * m))
        return scale * (xx / n**2 + sums.reference / m**2 - 2 * xy / (n * m))

    full = value(within, diagonal, across, torch.tensor(n, dtype=torch.float64))
    without = value(within - cut, diagonal - sums.diagonal, across - sums.across, (n - sums.sizes).double())
    return Replicates(full.item(), tuple(without.tolist()))
