"""The variational bound of a model on captioned images, and the information that their captions add.

The bound is that of the latents, a density in the coordinates that the generator sees (scaled by `scaling_factor`), in
nats a dimension; it only compares models of one autoencoder. No guidance and no sampler are part of it.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from t2i import randomness
from t2i.conditioning import Conditioning
from t2i.diffusion import bound
from t2i.evaluation.bound_measure import Batch, Measured, Terms, measure
from t2i.evaluation.jackknife import interval
from t2i.generator.latent_diffusion import LatentDiffusion, require_diffusion
from t2i.pipeline import Pipeline
from t2i.progress import progress

DRAWS = 64  # values of t for each image
CAPTION, UNCOND, CONTRAST = "caption", "null", "contrast"  # names in rows
PARTS = ("prior", "denoising", "reconstruction")


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
            for rows in _rows(n, batch_size):
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
    return BoundReport(measured, _groups(captions), seed, len(cut))


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
            for rows in _rows(n, batch_size):
                yield Batch(rows, x0[rows], {CAPTION: cond[torch.tensor(rows)], UNCOND: uncond.expand(len(rows))})
                report(rows[-1] + 1)

    measured = measure(generator, batches(), _plan(generator, n, draws, seed), seed, bins=True)
    return BoundReport(measured, groups, seed, 0)


def _plan(generator: LatentDiffusion, n: int, draws: int, seed: int) -> bound.Draws:
    start = randomness.uniform((1,), seed, "bound", "t").item()
    return bound.Draws.plan(generator.schedule, n, draws, start)


def _rows(n: int, batch_size: int) -> list[list[int]]:
    return [list(range(first, min(first + batch_size, n))) for first in range(0, n, batch_size)]


def sample_latents(pipeline: Pipeline, images: Tensor, rows: list[int], seed: int) -> Float[Tensor, "b c h w"]:
    """Returns scaled samples of the autoencoder's posterior, as the generator is trained on."""
    posterior = pipeline.vae_runner.encode(pipeline.autoencoder, images.to(pipeline.device))
    shape = posterior.mean.shape[1:]
    eps = torch.stack([randomness.normal(shape, seed, "bound", i, "latent") for i in rows])
    return posterior.sample(eps.to(pipeline.device)) * pipeline.autoencoder.config.scaling_factor


def _groups(captions: Sequence[str]) -> Int[Tensor, " n"]:
    numbers = {text: i for i, text in enumerate(dict.fromkeys(captions))}
    return torch.tensor([numbers[text] for text in captions])
