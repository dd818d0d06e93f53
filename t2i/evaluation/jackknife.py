"""Intervals by the delete-a-group jackknife (Kott 2001; Efron & Tibshirani 1993, ch. 11), paired differences, FD∞."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from t2i import randomness
from t2i.evaluation.bound import student
from t2i.evaluation.frechet import Moments, Reference, distance, merged, warn_of_few

GROUPS = 20
POINTS = 15  # of the extrapolation, as Chong & Forsyth have it


class Estimate(NamedTuple):
    """A statistic of n samples: its standard error, 95% interval, and how far n samples lift its expectation."""

    value: float
    se: float
    ci95: tuple[float, float]
    bias: float

    @property
    def debiased(self) -> float:
        """What it tends to with ever more samples, to first order in 1/n; the interval moves along."""
        return self.value - self.bias


@dataclass(frozen=True)
class Replicates:
    """A statistic of everything, and of everything without each group."""

    full: float
    without: tuple[float, ...]

    def estimate(self) -> Estimate:
        """bias = (G - 1)(mean - full), se^2 = (G - 1)/G sum (x_g - mean)^2; a Student interval, G - 1 degrees."""
        each, groups = np.array(self.without), len(self.without)
        mean = each.mean()
        se = math.sqrt((groups - 1) / groups * ((each - mean) ** 2).sum())
        half = student(groups - 1) * se
        return Estimate(self.full, se, (self.full - half, self.full + half), float((groups - 1) * (mean - self.full)))

    def minus(self, other: "Replicates") -> "Replicates":
        """The difference, replicate by replicate: the same groups on both sides, so what they share cancels."""
        if len(self.without) != len(other.without):
            raise ValueError(
                f"{len(self.without)} groups against {len(other.without)}: a paired difference needs the same prompts"
            )
        each = tuple(a - b for a, b in zip(self.without, other.without, strict=True))
        return Replicates(self.full - other.full, each)


def group_by(prompts: Sequence[str], groups: int = GROUPS) -> Int[Tensor, " n"]:
    """The group of every sample: pictures of one prompt share one, and the groups differ by one prompt at the most."""
    unique = sorted(set(prompts), key=lambda p: hashlib.blake2b(p.encode("utf-8", "surrogatepass")).digest())
    if len(unique) < 2:
        raise ValueError(f"{len(unique)} different prompts: an interval needs at least 2")
    place = {prompt: i % min(groups, len(unique)) for i, prompt in enumerate(unique)}
    return torch.tensor([place[prompt] for prompt in prompts])


def moments_by_group(features: Float[Tensor, "n d"], groups: Int[Tensor, " n"]) -> list[Moments]:
    """The moments of every group, from which those of any union follow."""
    return [Moments.of(features[groups == g]) for g in range(int(groups.max()) + 1)]


def replicates(groups: Sequence[Moments], statistic: Callable[[Moments], float]) -> Replicates:
    """A statistic of the moments of all groups, and of all but each."""
    count = len(groups)
    if count < 2:
        raise ValueError(f"{count} groups: a jackknife needs at least 2")
    total = merged(groups)

    def rest(g: int) -> Moments:
        if total.rows is None:
            return total.minus(groups[g])
        return merged([part for i, part in enumerate(groups) if i != g])

    return Replicates(statistic(total), tuple(statistic(rest(g)) for g in range(count)))


def jackknife(groups: Sequence[Moments], statistic: Callable[[Moments], float]) -> Estimate:
    """A statistic of moments with its interval and bias."""
    return replicates(groups, statistic).estimate()


def paired(ours: Sequence[Moments], theirs: Sequence[Moments], statistic: Callable[[Moments], float]) -> Estimate:
    """statistic(ours) - statistic(theirs) of two samples of the same prompts and noise, in the same groups."""
    return replicates(ours, statistic).minus(replicates(theirs, statistic)).estimate()


def distances(groups: Sequence[Moments], reference: Reference) -> Replicates:
    """The Fréchet distance of all groups and of all but each (once warned of few samples)."""
    warn_of_few(sum(part.n for part in groups), reference.dim)
    return replicates(groups, lambda moments: distance(moments, reference).value)


def mean_of(values: Float[Tensor, " n"], groups: Int[Tensor, " n"]) -> Replicates:
    """The mean of a number of each sample, of all groups and of all but each."""
    values, count = values.double(), int(groups.max()) + 1
    sums = torch.zeros(count, dtype=torch.float64).index_add(0, groups, values)
    sizes = torch.bincount(groups, minlength=count)
    total = sums.sum()
    return Replicates((total / len(values)).item(), tuple(((total - sums) / (len(values) - sizes)).tolist()))


def infinity(features: Float[Tensor, "n d"], reference: Reference, seed: int = 0) -> float:
    """FD∞ by Chong & Forsyth (2020): a line in 1/N through FD_N of seeded subsets of 15 sizes, read at 1/N = 0.

    The smallest size is 5000, or a tenth of the samples where that is less than half of them.
    """
    n = len(features)
    least = max(2, 5000 if n >= 10000 else n // 10)
    if n < 4 or least >= n:
        raise ValueError(f"{n} samples are too few to extrapolate from")
    sizes = np.linspace(least, n, POINTS).astype(int)
    values = [
        distance(Moments.of(features[randomness.permutation(n, seed, "fd", int(m))[:m]]), reference).value
        for m in sizes
    ]
    return float(np.polyfit(1 / sizes, values, 1)[1])
