"""Skills of many images as rates, with standard errors clustered by prompt."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import nan, sqrt

import numpy as np

from t2i.evaluation.scene_parser.score import MEANING, Skills

Z = 1.959964  # 95%


@dataclass(frozen=True)
class Rate:
    """`hits` out of `n`, in `groups` that are independent of one another."""

    hits: int
    n: int
    groups: int
    se: float  # nan of fewer than two groups

    @property
    def value(self) -> float:
        """The rate; nan for n = 0."""
        return self.hits / self.n if self.n else nan

    @property
    def ci95(self) -> tuple[float, float]:
        """Wilson (1927): (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).

        n is the effective one, p(1-p)/se^2 (Korn & Graubard 1998); where nothing varies, the number of groups.
        """
        if not self.n:
            return 0.0, 1.0
        p = self.value
        n = min(self.n, p * (1 - p) / self.se**2) if self.se > 0 else self.groups
        middle, half = p + Z**2 / (2 * n), Z * sqrt(p * (1 - p) / n + Z**2 / (4 * n * n))
        low, high = ((middle + sign * half) / (1 + Z**2 / n) for sign in (-1, 1))
        return max(0.0, low), min(1.0, high)


def aggregate(skills: Sequence[Skills], groups: Sequence[Hashable] | None = None) -> dict[str, Rate]:
    """Computes the rate of every skill of MEANING over many images; n = 0 for one that no caption asks for.

    `groups` names the group of each image, for example its prompt; by default each image is its own group.
    """
    if not skills:
        raise ValueError("no image was scored: there is nothing to average")
    names = range(len(skills)) if groups is None else groups
    if len(names) != len(skills):
        raise ValueError(f"{len(skills)} scored images, {len(names)} groups: give one for every image")
    number = {name: k for k, name in enumerate(dict.fromkeys(names))}
    at = np.array([number[name] for name in names])
    rates = {}
    for name in MEANING:
        parts = np.array([skill.get(name, (0, 0)) for skill in skills], np.float64)
        rates[name] = _rate(*(np.bincount(at, column, len(number)) for column in parts.T))
    return rates


def _rate(hits: np.ndarray, n: np.ndarray) -> Rate:
    """Computes a rate from each group's hits and counts.

    se^2 = m/(m-1) sum_g (hits_g - p n_g)^2 / n^2, the ratio's linearisation (Cochran 1977, 6.4).
    """
    groups, total = int((n > 0).sum()), float(n.sum())
    if groups < 2:
        return Rate(int(hits.sum()), int(total), groups, nan)
    off = hits - hits.sum() / total * n
    return Rate(int(hits.sum()), int(total), groups, sqrt(groups / (groups - 1) * float(off @ off)) / total)
