"""One pass of the network over captioned images, from which every term of every bound follows."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from t2i import randomness
from t2i.conditioning import Conditioning
from t2i.diffusion import bound
from t2i.diffusion.ddpm import q_sample
from t2i.diffusion.prediction import to_prediction
from t2i.diffusion.schedule import Schedule
from t2i.generator.kv_cache import cached_text
from t2i.generator.latent_diffusion import LatentDiffusion


@dataclass(frozen=True)
class Terms:
    """The bound's terms for each image, in nats a dimension; `curve` has the contribution of each span of t."""

    prior: Float64[Tensor, " n"]
    denoising: Float64[Tensor, " n"]
    reconstruction: Float64[Tensor, " n"]
    curve: dict[tuple[int, int], Float64[Tensor, " n"]] = field(default_factory=dict)

    @property
    def total(self) -> Float64[Tensor, " n"]:
        """An upper bound of -log p(x_0)."""
        return self.prior + self.denoising + self.reconstruction


@dataclass(frozen=True)
class Measured:
    """The network's errors: the bounds of every conditioning and every posterior variance follow from them."""

    schedule: Schedule
    draws: bound.Draws
    prior: Float64[Tensor, " n"]
    errors: dict[str, Float64[Tensor, "n k"]]  # of x_0, at t = draws.t
    dims: int
    bins: dict[str, tuple[Tensor, Tensor]] | None = None  # (x_0, x_0hat) at t = 1 of uint8 images, else densities

    def terms(self, conditioning: str, variance: str) -> Terms:
        """Computes the bound; `optimal` variances are fitted to these images."""
        errors, draws = self.errors[conditioning], self.draws
        table = self.mean_errors(conditioning) if variance == "optimal" else None
        sigma2 = bound.variances(self.schedule, variance, table)
        t = draws.t[:, 1:]
        each = draws.weight[t] * bound.denoising_matching(self.schedule, errors[:, 1:], t, sigma2)
        if self.bins is None:
            first = bound.reconstruction(errors[:, 0], sigma2[1].item())
        else:
            first = bound.reconstruction_of_bins(*self.bins[conditioning], sigma2[1].item())
        spans = [(low, high - 1) for low, high in pairwise(_edges(self.schedule.T))]
        curve = {(low, high): (each * ((t >= low) & (t <= high))).sum(1) for low, high in spans}
        return Terms(self.prior, each.sum(1), first, curve)

    def mean_errors(self, conditioning: str) -> Float64[Tensor, "levels"]:
        """Estimates E[(x_0 - x_0hat)^2] at every t: divided by sigma_t^2, its log is linear between the bins' means."""
        errors, t, T = self.errors[conditioning], self.draws.t, self.schedule.T
        sigma2 = 1 - self.schedule.alpha_bar
        flat, ratio = t[:, 1:].flatten(), (errors[:, 1:] / sigma2[t[:, 1:]]).flatten()
        bins, of_bin, count = self.draws.bin[flat].unique(return_inverse=True, return_counts=True)
        zeros = torch.zeros(len(bins), dtype=torch.float64)
        at = zeros.index_add(0, of_bin, flat.double()) / count
        mean = zeros.index_add(0, of_bin, ratio) / count
        assert bool((at.diff() > 0).all())
        logs = np.interp(np.arange(2, T + 1), at.numpy(), mean.clamp(min=1e-300).log().numpy())
        tail = torch.from_numpy(logs).exp() * sigma2[2:]
        return torch.cat([torch.zeros(1).double(), errors[:, 0].mean()[None], tail])


@dataclass(frozen=True)
class Batch:
    """Some images: their indices, the generator's targets x_0, and the conditionings by name."""

    rows: list[int]
    x0: Float[Tensor, "b c h w"]
    conds: dict[str, Conditioning]


@torch.inference_mode()
def measure(
    generator: LatentDiffusion, batches: Iterable[Batch], draws: bound.Draws, seed: int, bins: bool = False
) -> Measured:
    """Runs the network on every image at its t, under each conditioning with the same noise."""
    schedule, kind, unet = generator.schedule, generator.prediction, generator.unet
    dtype = next(unet.parameters()).dtype
    prior, errors, firsts, dims = [], [], [], 0
    for batch in batches:
        x0, rows = batch.x0, batch.rows
        dims = x0[0].numel()

        def eps(column: int, x0: Tensor = x0, rows: list[int] = rows) -> Tensor:
            drawn = [randomness.normal(x0.shape[1:], seed, "bound", i, column) for i in rows]
            return torch.stack(drawn).to(x0.device, x0.dtype)

        networks = {name: _network(unet, dtype) for name in batch.conds}
        losses = {
            name: partial(_loss, generator, networks[name], cond.to(dtype=dtype)) for name, cond in batch.conds.items()
        }
        batch_errors = bound.errors_at(losses, schedule, kind, x0, draws.t[rows], eps)
        if not all(error.isfinite().all() for error in batch_errors.values()):
            raise ValueError(
                f"images {rows[0]} to {rows[-1]}: the network's errors are not finite; look at these images"
            )
        prior.append(bound.prior_matching(schedule, x0))
        errors.append(batch_errors)
        if bins:
            x = q_sample(x0, schedule.level(1).alpha, schedule.level(1).sigma, eps(0))
            zero = torch.zeros(len(x0), device=x0.device)
            outputs = {name: networks[name](x, zero, cond.to(dtype=dtype)) for name, cond in batch.conds.items()}
            means = {name: to_prediction(out, x, schedule.level(1), kind).x0 for name, out in outputs.items()}
            firsts.append({name: (x0.cpu(), mean.cpu()) for name, mean in means.items()})
    together = {name: torch.cat([e[name] for e in errors]) for name in errors[0]}
    kept = {name: tuple(torch.cat(part) for part in zip(*(f[name] for f in firsts), strict=True)) for name in together}
    return Measured(schedule, draws, torch.cat(prior), together, dims, kept if bins else None)  # pyright: ignore


def _network(unet: Any, dtype: torch.dtype) -> Callable[..., Tensor]:
    network_for = cached_text(unet)
    return lambda x, t, cond: network_for(cond)(x.to(dtype), t, cond).to(x.dtype)


def _loss(
    generator: LatentDiffusion, network: Any, cond: Conditioning, x0: Tensor, t: Tensor, eps: Tensor
) -> Float[Tensor, " b"]:
    return generator.loss(network, x0, cond, {"t": t, "eps": eps})


def _edges(T: int) -> list[int]:
    """Returns the edges of the curve's spans: doubling, then tenths of T; the last edge is T + 1."""
    tenths = [1 + T * i // 10 for i in range(1, 11)]
    doubling = [2**i + 1 for i in range(20) if 2**i + 1 < tenths[0]]
    return sorted({2, *doubling, *(edge for edge in tenths if edge > 2)})
