"""Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020), by nearest neighbours."""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from t2i.evaluation.frechet import check_dims
from t2i.evaluation.jackknife import Replicates, mean_of

NEAREST = 5
BLOCK = 512  # rows of a distance matrix that are in memory at once


def prdc(
    fake: Float[Tensor, "n d"], real: Float[Tensor, "m e"], groups: Int[Tensor, " n"], nearest: int = NEAREST
) -> dict[str, Replicates]:
    """Computes all four of a sample, in groups, against a reference; balls reach the `nearest`-th neighbour."""
    check_dims(fake.shape[1], real.shape[1])
    fewest = min(len(fake) - int(torch.bincount(groups).max()), len(real))
    if fewest <= nearest:
        raise ValueError(f"{fewest} samples (without a group) are too few for the {nearest}-th nearest of each")
    fake, real = fake.double(), real.double()
    radius = torch.cat([d.kthvalue(nearest + 1).values for _, d in _blocks(real, real)])
    inside, closest = [], []
    for _, d in _blocks(fake, real):
        within = d <= radius
        inside.append(within.sum(1))
    count = torch.cat(inside)
    reach = _reach(fake, groups, nearest)
    recalled, covered = [], []
    for rows, d in _blocks(real, fake):
        recalled.append(_any_without(d <= reach[0], d, reach, groups))
        closest = d <= radius[rows, None]
        covered.append(torch.cat([closest.any(1)[None], _hit_without(closest, groups).T]).T)
    return {
        "precision": mean_of((count > 0).double(), groups),
        "recall": _fractions(torch.cat(recalled)),
        "density": mean_of(count.double() / nearest, groups),
        "coverage": _fractions(torch.cat(covered)),
    }


def _blocks(a: Float64[Tensor, "n d"], b: Float64[Tensor, "m d"]) -> Iterator[tuple[slice, Float64[Tensor, "r m"]]]:
    """Yields distances of some rows of `a` from all of `b`; never by expanding the square, which cancels."""
    for start in range(0, len(a), BLOCK):
        rows = slice(start, min(start + BLOCK, len(a)))
        yield rows, torch.cdist(a[rows], b, compute_mode="donot_use_mm_for_euclid_dist")


def _reach(fake: Float64[Tensor, "n d"], groups: Int[Tensor, " n"], nearest: int) -> Float64[Tensor, "g1 n"]:
    """Computes the radius of every fake's ball: among all (row 0), and among all but group g (row g + 1)."""
    count = int(groups.max()) + 1
    radii = []
    for _, d in _blocks(fake, fake):
        closest = []
        for g in range(count):
            part = d[:, groups == g]
            closest.append(part.topk(min(nearest + 1, part.shape[1]), largest=False).values)
        every = torch.cat(closest, 1).kthvalue(nearest + 1).values
        without = [torch.cat(closest[:g] + closest[g + 1 :], 1).kthvalue(nearest + 1).values for g in range(count)]
        radii.append(torch.stack([every, *without]))
    return torch.cat(radii, 1)


def _any_without(
    every: Bool[Tensor, "r n"], d: Float64[Tensor, "r n"], reach: Float64[Tensor, "g1 n"], groups: Int[Tensor, " n"]
) -> Bool[Tensor, "r g1"]:
    """Tests if each real lies in a fake's ball: of all, and of all but each group (whose balls are then wider)."""
    without = [((d <= reach[g + 1]) & (groups != g)).any(1) for g in range(len(reach) - 1)]
    return torch.stack([every.any(1), *without], 1)


def _hit_without(hit: Bool[Tensor, "r n"], groups: Int[Tensor, " n"]) -> Bool[Tensor, "r g"]:
    """Tests if any column hits that is not of group g."""
    count = int(groups.max()) + 1
    hits = torch.zeros(len(hit), count, dtype=torch.float64).index_add(1, groups, hit.double())
    return (hits.sum(1, keepdim=True) - hits) > 0


def _fractions(table: Bool[Tensor, "m g1"]) -> Replicates:
    full, *without = table.double().mean(0).tolist()
    return Replicates(full, tuple(without))
