"""The variational bound of a model on captioned images, and the information that their captions add.

The bound is that of the latents, a density in the coordinates that the generator sees (scaled by `scaling_factor`), in
nats a dimension; it only compares models of one autoencoder. No guidance and no sampler are part of it. One pass of the
network gives the errors from which every term of every bound follows.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from t2i import randomness
from t2i.conditioning import Conditioning
from t2i.diffusion import bound
from t2i.diffusion.ddpm import q_sample
from t2i.diffusion.prediction import to_prediction
from t2i.diffusion.schedule import Schedule
from t2i.evaluation.image_sets import batches as split
from t2i.evaluation.jackknife import interval, numbered
from t2i.generator.kv_cache import cached_text
from t2i.generator.latent_diffusion import LatentDiffusion, require_diffusion
from t2i.pipeline import Pipeline
from t2i.progress import progress

DRAWS = 64  # values of t for each image
CAPTION, UNCOND, CONTRAST = "caption", "null", "contrast"  # names in rows
PARTS = ("prior", "denoising", "reconstruction")


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


@dataclass(frozen=True)
class BoundReport:
    """The bound of a model on `n` images under one or several conditionings.

    `groups` numbers the caption of each image: intervals are those of the jackknife that leaves one group out.
    """

    measured: Measured
    groups: Int[Tensor, " n"]
    seed: int
    truncated: int  # number of captions that were cut off

    @property
    def n(self) -> int:
        return len(self.groups)

    @property
    def unit(self) -> str:
        return "nats/dim" if self.measured.bins is None else "bits/dim"

    def terms(self, variance: str = "optimal", conditioning: str = CAPTION) -> Terms:
        """Returns the bound's terms for each image, in nats a dimension."""
        return self.measured.terms(conditioning, variance)

    def caption_info(self, variance: str = "optimal", than: str = UNCOND) -> Float64[Tensor, " n"]:
        """Returns bound(uncond) - bound(caption) of each image in bits: estimates log2 p(x | caption) / p(x).

        See arXiv:2310.07972. `than` = "contrast" compares with other captions, if those were given.
        """
        if than not in self.measured.errors:
            raise ValueError(f"the bound was not measured under {than!r}: only under {', '.join(self.measured.errors)}")
        return (self.terms(variance, than).total - self.terms(variance).total) * self._bits

    @property
    def _bits(self) -> float:
        """The number of bits an image in one nat a dimension."""
        return self.measured.dims / math.log(2)

    def rows(self) -> list[dict[str, Any]]:
        """Returns every number as a row of metrics.json."""
        rows = []
        for variance in bound.VARIANCES:
            for name in self.measured.errors:
                rows += self._rows_of(variance, name)
            for name in self.measured.errors:
                if name != CAPTION:
                    metric = "caption_info" if name == UNCOND else "caption_margin"
                    values = self.caption_info(variance, name)
                    keys = {"variance": variance, "unit": "bits/picture", "conditioning": name}
                    rows.append(self._row(metric, values, **keys))
                    curves = self.terms(variance, name).curve, self.terms(variance).curve
                    rows += [
                        self._row(f"{metric}_t", (curves[0][t] - curves[1][t]) * self._bits, **keys, t=list(t))
                        for t in curves[1]
                    ]
        return rows

    def _rows_of(self, variance: str, name: str) -> list[dict[str, Any]]:
        terms = self.terms(variance, name)
        scale = 1.0 if self.measured.bins is None else 1 / math.log(2)
        common = {"variance": variance, "unit": self.unit, "conditioning": name}
        parts = {"vlb": terms.total} | {f"vlb_{part}": getattr(terms, part) for part in PARTS}
        rows = [self._row(metric, scale * values, **common) for metric, values in parts.items()]
        return rows + [
            self._row("vlb_t", scale * values, **common, t=list(span)) for span, values in terms.curve.items()
        ]

    def _row(self, metric: str, values: Float64[Tensor, " n"], **keys: Any) -> dict[str, Any]:
        value, se, ci95 = interval(values, self.groups)
        drawn = self.measured.draws.t.shape[1]
        row = {"metric": metric, "value": value, "se": se, "ci95": ci95, "n": self.n, "features": None, "cfg": None}
        return row | keys | {"dims": self.measured.dims, "draws": drawn, "seed": self.seed, "truncated": self.truncated}


def latent_bound(
    pipeline: Pipeline,
    images: Callable[[list[int]], Float[Tensor, "b 3 h w"]],
    captions: Sequence[str],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    batch_size: int = 32,
    contrast: Sequence[str] | None = None,
    quiet: bool = False,
) -> BoundReport:
    """Computes the bound of images 0..n-1, in [-1, 1], with captions and unconditionally, on the same t and noise.

    Each image's latent is a sample of the autoencoder's posterior, as in training. `contrast` are other captions, one
    an image: `caption_margin` = bound(contrast) - bound(caption). Costs (draws + 1) evaluations a conditioning.
    """
    n, unet = len(captions), require_diffusion(pipeline.generator, "the variational bound").unet
    if n < 2:
        raise ValueError(f"{n} images: a bound with an interval needs at least 2")
    if pipeline.joined:
        raise ValueError(
            f"in_channels = {unet.config.in_channels}: a U-Net for inpainting has no bound of whole images"
        )
    if contrast is not None and len(contrast) != n:
        raise ValueError(f"contrast has {len(contrast)} captions for {n} images: give one an image")
    plan = _plan(pipeline.generator, n, draws, seed)
    cut: set[int] = set()
    texts_of = {CAPTION: captions} | ({} if contrast is None else {CONTRAST: contrast})
    with torch.inference_mode():
        uncond = pipeline.text_encoder([""]).conditioning

    def batches() -> Iterator[Batch]:
        with progress("bound: images", n, quiet=quiet) as report:
            for rows in map(list, split(n, batch_size)):
                conds = {}
                for name, texts in texts_of.items():
                    encoded = pipeline.text_encoder([texts[i] for i in rows])
                    cut.update(i for i, text in zip(rows, encoded.truncated, strict=True) if text)
                    conds[name] = encoded.conditioning
                x0 = sample_latents(pipeline, images(rows), rows, seed)
                yield Batch(rows, x0, conds | {UNCOND: uncond.expand(len(rows))})
                report(rows[-1] + 1)

    measured = measure(pipeline.generator, batches(), plan, seed)
    if cut:
        limit = pipeline.text_encoder.max_tokens
        warnings.warn(f"{len(cut)} captions are longer than the text encoder's {limit} tokens: cut off", stacklevel=2)
    return BoundReport(measured, numbered(captions), seed, len(cut))


def pixel_bound(
    generator: LatentDiffusion,
    x0: Float[Tensor, "n c h w"],
    cond: Conditioning,
    uncond: Conditioning,
    groups: Int[Tensor, " n"],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    batch_size: int = 32,
    quiet: bool = False,
) -> BoundReport:
    """Computes the bound of a generator of pixels on uint8 images / 127.5 - 1: bits a dimension, L_0 over 256 bins."""
    n = len(x0)

    def batches() -> Iterator[Batch]:
        with progress("bound: images", n, quiet=quiet) as report:
            for rows in map(list, split(n, batch_size)):
                yield Batch(rows, x0[rows], {CAPTION: cond[torch.tensor(rows)], UNCOND: uncond.expand(len(rows))})
                report(rows[-1] + 1)

    measured = measure(generator, batches(), _plan(generator, n, draws, seed), seed, bins=True)
    return BoundReport(measured, groups, seed, 0)


def _plan(generator: LatentDiffusion, n: int, draws: int, seed: int) -> bound.Draws:
    start = randomness.uniform((1,), seed, "bound", "t").item()
    return bound.Draws.plan(generator.schedule, n, draws, start)


def sample_latents(pipeline: Pipeline, images: Tensor, rows: list[int], seed: int) -> Float[Tensor, "b c h w"]:
    """Returns scaled samples of the autoencoder's posterior, as the generator is trained on."""
    posterior = pipeline.vae_runner.encode(pipeline.autoencoder, images.to(pipeline.device))
    shape = posterior.mean.shape[1:]
    eps = torch.stack([randomness.normal(shape, seed, "bound", i, "latent") for i in rows])
    return posterior.sample(eps.to(pipeline.device)) * pipeline.autoencoder.config.scaling_factor


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
