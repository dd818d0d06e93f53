"""The Fréchet distance between Gaussians (Dowson & Landau 1982; Heusel et al. 2017), from moments that merge exactly.

d^2 = |m1 - m2|^2 + tr S1 + tr S2 - 2 ||F1^T F2||_*, where S = F F^T: the nuclear norm of the product of two factors is
tr (S1 S2)^(1/2) without a square root of a matrix. All of it in float64.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple, Self

import torch
from jaxtyping import Float, Float64
from torch import Tensor

SMALLEST_EIGENVALUE = 1e-14  # relative to the largest: below it is rounding


class Distance(NamedTuple):
    """value = mean + trace - 2 cross, not clamped: rounding may leave it a little below 0."""

    value: float
    mean: float
    trace: float
    cross: float


@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter (the sum of centred outer products) of features; its covariance is scatter / (n - 1).

    Fewer samples than dimensions are stored as `rows`, with scatter = rows^T rows: no rank is lost to rounding.
    """

    n: int
    mean: Float64[Tensor, " d"]
    rows: Float64[Tensor, "k d"] | None = None
    dense: Float64[Tensor, "d d"] | None = None

    @classmethod
    def of(cls, features: Float[Tensor, "n d"]) -> Self:
        """Computes the moments of features, in two passes in float64."""
        n, d = features.shape
        if n < 1:
            raise ValueError("no features: moments need at least 1 sample")
        if not features.isfinite().all():
            row = int((~features.isfinite().all(1)).nonzero()[0])
            raise ValueError(f"features of sample {row} are not finite: look at its image and at the feature network")
        x = features.double()
        mean = x.mean(0)
        x = x - mean
        return cls(n, mean, rows=x) if n < d else cls(n, mean, dense=x.T @ x)

    @property
    def dim(self) -> int:
        """The number of dimensions."""
        return len(self.mean)

    @property
    def scatter(self) -> Float64[Tensor, "d d"]:
        """The sum of centred outer products."""
        if self.dense is not None:
            return self.dense
        assert self.rows is not None
        return self.rows.T @ self.rows

    @property
    def trace(self) -> float:
        """The trace of the covariance."""
        total = self.rows.square().sum() if self.rows is not None else self.scatter.trace()
        return total.item() / (self.n - 1)

    def merge(self, other: "Moments") -> "Moments":
        """Returns the moments of both samples together (Chan et al. 1979, eq. 2.1)."""
        check_dims(self.dim, other.dim)
        n = self.n + other.n
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.n / n)
        between = delta * (self.n * other.n / n) ** 0.5
        if self.rows is not None and other.rows is not None and len(self.rows) + len(other.rows) + 1 < self.dim:
            return Moments(n, mean, rows=torch.cat([self.rows, other.rows, between[None]]))
        return Moments(n, mean, dense=self.scatter + other.scatter + between.outer(between))

    def minus(self, other: "Moments") -> "Moments":
        """Returns the moments of this sample without a part of it: inverts `merge`."""
        check_dims(self.dim, other.dim)
        n = self.n - other.n
        if n < 1:
            raise ValueError(f"{other.n} samples cannot be removed from {self.n}: none would remain")
        delta = (self.mean - other.mean) * (self.n / n)  # from the part's mean to that of the others
        mean = other.mean + delta
        between = delta.outer(delta) * (n * other.n / self.n)
        return Moments(n, mean, dense=self.scatter - other.scatter - between)


def merged(parts: Sequence[Moments]) -> Moments:
    """Merges all parts in their order, which the last bits depend on."""
    return reduce(Moments.merge, parts)


@dataclass(frozen=True)
class Reference:
    """The Gaussian that samples are compared with; its factor is computed once. `n` is None if unrecorded.

    `identity` describes the features and the images; statistics written by other programs have none.
    """

    n: int | None
    mean: Float64[Tensor, " d"]
    trace: float
    factor: Float64[Tensor, "d r"]
    identity: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, moments: Moments, identity: dict[str, str] | None = None) -> Self:
        """Returns the reference with these moments."""
        if moments.n < 2:
            raise ValueError(f"a reference needs at least 2 samples, not {moments.n}: it has no covariance")
        if moments.rows is not None:
            factor = moments.rows.T / (moments.n - 1) ** 0.5
        else:
            factor = factor_of(moments.scatter / (moments.n - 1), moments.n - 1)
        return cls(moments.n, moments.mean, moments.trace, factor, tuple(sorted((identity or {}).items())))

    @property
    def dim(self) -> int:
        """The number of dimensions."""
        return len(self.mean)


def factor_of(covariance: Float64[Tensor, "d d"], rank: int | None = None) -> Float64[Tensor, "d r"]:
    """Computes F with F F^T = covariance of at most `rank`: by Cholesky if possible, else from the eigenvectors."""
    if rank is None or rank >= len(covariance):
        lower, failed = torch.linalg.cholesky_ex(covariance)
        if not failed.item():
            return lower
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    values, vectors = values[-rank:] if rank else values, vectors[:, -rank:] if rank else vectors
    kept = values > SMALLEST_EIGENVALUE * values[-1]
    return vectors[:, kept] * values[kept].sqrt()


def frechet(moments: Moments, reference: Reference) -> Distance:
    """Computes the squared distance of a sample from a reference; warns of fewer samples than dimensions."""
    warn_of_few(moments.n, moments.dim)
    return distance(moments, reference)


def warn_of_few(n: int, dim: int) -> None:
    """Warns if a covariance cannot have full rank."""
    if n <= dim:
        warnings.warn(
            f"{n} samples for features of {dim} dimensions: the distance is mostly the bias of so few; use more "
            "samples, or features of fewer dimensions",
            stacklevel=3,
        )


def distance(moments: Moments, reference: Reference) -> Distance:
    """Computes `frechet` without its warning, as for the replicates of an interval."""
    check_dims(moments.dim, reference.dim)
    n = moments.n
    if n < 2:
        raise ValueError(f"a Fréchet distance needs at least 2 samples, not {n}")
    factor = reference.factor
    if moments.rows is not None:
        product = moments.rows @ factor
        gram = product @ product.T if len(product) < factor.shape[1] else product.T @ product
    else:
        gram = factor.T @ (moments.scatter @ factor)
    values = torch.linalg.eigvalsh((gram + gram.T) / (2 * (n - 1)))
    most = [len(values), n - 1] + ([] if reference.n is None else [reference.n - 1])
    values = values[-min(most) :].clamp(min=0)  # the product has no larger rank: smaller values are rounding
    cross = values.sqrt().sum().item()
    mean = (moments.mean - reference.mean).square().sum().item()
    trace = moments.trace + reference.trace
    return Distance(mean + trace - 2 * cross, mean, trace, cross)


def check_dims(ours: int, theirs: int) -> None:
    """Raises ValueError for features of unlike width."""
    if ours != theirs:
        raise ValueError(
            f"features have {ours} dimensions, those that they are compared with {theirs}: they come from unlike "
            "feature networks; use one for both"
        )
