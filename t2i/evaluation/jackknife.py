"""Intervals by the delete-a-group jackknife (Kott 2001; Efron & Tibshirani 1993, ch. 11), and paired differences."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from t2i.evaluation.frechet import Moments, Reference, distance, merged, warn_of_few

GROUPS = 20
Interval = tuple[float, float, tuple[float, float]]  # value, standard error, 95% interval


class Estimate(NamedTuple):
    """A statistic of n samples: its standard error, 95% interval, and the bias that n samples add to it."""

    value: float
    se: float
    ci95: tuple[float, float]
    bias: float

    @property
    def debiased(self) -> float:
        """The limit for n to infinity, to first order in 1/n; the interval moves along."""
        return self.value - self.bias


@dataclass(frozen=True)
class Replicates:
    """A statistic of all samples, and of all samples without each group; `without` is empty where it is unknown."""

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
        """Returns the difference, replicate by replicate: what both sides share cancels. Both need the same groups."""
        if len(self.without) != len(other.without):
            raise ValueError(
                f"{len(self.without)} groups against {len(other.without)}: a paired difference needs the same prompts"
            )
        each = tuple(a - b for a, b in zip(self.without, other.without, strict=True))
        return Replicates(self.full - other.full, each)


def group_by(prompts: Sequence[str], groups: int = GROUPS) -> Int[Tensor, " n"]:
    """Returns the group of each sample: images of one prompt share one; sizes differ by at most one prompt."""
    unique = sorted(set(prompts), key=lambda p: hashlib.blake2b(p.encode("utf-8", "surrogatepass")).digest())
    if len(unique) < 2:
        raise ValueError(f"{len(unique)} different prompts: an interval needs at least 2")
    place = {prompt: i % min(groups, len(unique)) for i, prompt in enumerate(unique)}
    return torch.tensor([place[prompt] for prompt in prompts])


def numbered(texts: Sequence[str]) -> Int[Tensor, " n"]:
    """Returns the number of each text among the different ones, in order of appearance."""
    numbers = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    return torch.tensor([numbers[text] for text in texts])


def moments_by_group(features: Float[Tensor, "n d"], groups: Int[Tensor, " n"]) -> list[Moments]:
    """Computes the moments of each group, from which those of any union follow."""
    return [Moments.of(features[groups == g]) for g in range(int(groups.max()) + 1)]


def leave_one_out(parts: dict[int, Moments], count: int) -> list[Moments]:
    """Returns the moments of all groups, then those without each of `count` groups; a group may have no samples."""
    if count < 2:
        raise ValueError(f"{count} groups: a jackknife needs at least 2")
    total = merged(list(parts.values()))
    if total.rows is None:
        return [total, *(total.minus(parts[g]) if g in parts else total for g in range(count))]
    return [total, *(merged([part for i, part in parts.items() if i != g]) for g in range(count))]


def replicates(groups: Sequence[Moments], statistic: Callable[[Moments], float]) -> Replicates:
    """Computes a statistic of the moments of all groups, and without each."""
    full, *without = map(statistic, leave_one_out(dict(enumerate(groups)), len(groups)))
    return Replicates(full, tuple(without))


def distances(groups: Sequence[Moments], reference: Reference) -> Replicates:
    """Computes the Fréchet distance of all groups and without each; warns once of too few samples."""
    warn_of_few(sum(part.n for part in groups), reference.dim)
    return replicates(groups, lambda moments: distance(moments, reference).value)


def mean_of(values: Float[Tensor, " n"], groups: Int[Tensor, " n"]) -> Replicates:
    """Computes the mean of one number a sample, of all groups and without each."""
    values, count = values.double(), int(groups.max()) + 1
    sums = torch.zeros(count, dtype=torch.float64).index_add(0, groups, values)
    sizes = torch.bincount(groups, minlength=count)
    total = sums.sum()
    return Replicates((total / len(values)).item(), tuple(((total - sums) / (len(values) - sizes)).tolist()))


def ratio_of(hits: Float64[Tensor, " n"], counts: Float64[Tensor, " n"], groups: Int[Tensor, " n"]) -> Replicates:
    """Computes sum of hits / sum of counts, of all groups and without each; no replicates where a group holds all."""
    zeros = torch.zeros(int(groups.max()) + 1, dtype=torch.float64)
    hits_of, counts_of = (zeros.index_add(0, groups, x) for x in (hits, counts))
    remaining = counts.sum() - counts_of
    without = ((hits.sum() - hits_of) / remaining).tolist() if bool((remaining > 0).all()) else ()
    return Replicates((hits.sum() / counts.sum()).item(), tuple(without))


def interval(values: Float64[Tensor, " n"], groups: Int[Tensor, " n"]) -> Interval:
    """Computes the mean with its standard error and 95% interval; each of `groups` is left out once."""
    _, of_group = groups.unique(return_inverse=True)
    count = int(of_group.max()) + 1
    if count < 2:
        raise ValueError("an interval needs at least 2 different captions: give more images")
    zeros = torch.zeros(count, dtype=torch.float64)
    sums, sizes = zeros.index_add(0, of_group, values), zeros.index_add(0, of_group, torch.ones_like(values))
    return around(values.mean().item(), (sums.sum() - sums) / (len(values) - sizes))


def around(value: float, without: Float64[Tensor, " g"]) -> Interval:
    """Computes the interval of any statistic from its values without each group."""
    count = len(without)
    se = math.sqrt((count - 1) / count * (without - without.mean()).square().sum().item())
    half = student(count - 1) * se
    return value, se, (value - half, value + half)


def student(df: int) -> float:
    """Returns the 97.5% quantile of Student's t."""
    if df < 3:
        return {1: 12.706204736, 2: 4.302652730}[df]
    z = 1.959963984540054
    series = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / df**k for k, term in enumerate(series, 1))
