"""The variational bound of a model on captioned pictures, and what their captions tell it.

The bound is that of the latents, a density in the coordinates that the generator sees (scaled by `scaling_factor`), in
nats a dimension; it compares models of one autoencoder alone. It knows no guidance and no sampler.
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
from t2i.generator.latent_diffusion import LatentDiffusion
from t2i.pipeline import Pipeline
from t2i.progress import progress

DRAWS = 64  # of t, a picture
CAPTION, NULL, CONTRAST = "caption", "null", "contrast"
Interval = tuple[float, float, tuple[float, float]]  # value, standard error, 95% interval
PARTS = ("prior", "denoising", "reconstruction")


@dataclass(frozen=True)
class BoundReport:
    """The bound of a model on `n` pictures, and what the captions told it.

    `groups` are pictures that share a caption: intervals are those of the jackknife that leaves one group out.
    """

    measured: Measured
    groups: Int[Tensor, " n"]
    seed: int
    truncated: int  # captions

    @property
    def n(self) -> int:
        return len(self.groups)

    @property
    def unit(self) -> str:
        return "nats/dim" if self.measured.bins is None else "bits/dim"

    def terms(self, variance: str = "optimal", conditioning: str = CAPTION) -> Terms:
        """The bound's parts for each picture, in nats a dimension."""
        return self.measured.terms(conditioning, variance)

    def caption_info(self, variance: str = "optimal", than: str = NULL) -> Float64[Tensor, " n"]:
        """bound(null) - bound(caption) of each picture in bits, an estimate of log2 p(x | caption) / p(x) (2310.07972).

        `than` = "contrast" compares with other captions, where those were given.
        """
        if than not in self.measured.errors:
            raise ValueError(f"nothing was measured under {than!r}: only {', '.join(self.measured.errors)}")
        return (self.terms(variance, than).total - self.terms(variance).total) * self._bits

    @property
    def _bits(self) -> float:
        """Bits a picture in a nat a dimension."""
        return self.measured.dims / math.log(2)

    def rows(self) -> list[dict[str, Any]]:
        """Every number as a row of metrics.json."""
        found = []
        for variance in bound.VARIANCES:
            for name in self.measured.errors:
                found += self._rows_of(variance, name)
            for name in self.measured.errors:
                if name != CAPTION:
                    metric = "caption_info" if name == NULL else "caption_margin"
                    values = self.caption_info(variance, name)
                    keys = {"variance": variance, "unit": "bits/picture", "conditioning": name}
                    found.append(self._row(metric, values, **keys))
                    curves = self.terms(variance, name).curve, self.terms(variance).curve
                    found += [
                        self._row(f"{metric}_t", (curves[0][t] - curves[1][t]) * self._bits, **keys, t=list(t))
                        for t in curves[1]
                    ]
        return found

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


def interval(values: Float64[Tensor, " n"], groups: Int[Tensor, " n"]) -> Interval:
    """Mean, standard error and 95% interval by the jackknife that leaves out one group after the other."""
    _, of_group = groups.unique(return_inverse=True)
    count = int(of_group.max()) + 1
    if count < 2:
        raise ValueError("an interval needs at least 2 different captions: give more pictures")
    zeros = torch.zeros(count, dtype=torch.float64)
    sums, sizes = zeros.index_add(0, of_group, values), zeros.index_add(0, of_group, torch.ones_like(values))
    return around(values.mean().item(), (sums.sum() - sums) / (len(values) - sizes))


def around(value: float, left: Float64[Tensor, " g"]) -> Interval:
    """The same for any statistic, from its values without each group."""
    count = len(left)
    se = math.sqrt((count - 1) / count * (left - left.mean()).square().sum().item())
    reach = student(count - 1) * se
    return value, se, (value - reach, value + reach)


def student(df: int) -> float:
    """The 97.5% quantile of Student's t."""
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


def latent_bound(
    pipeline: Pipeline,
    pictures: Callable[[list[int]], Float[Tensor, "b 3 h w"]],
    captions: Sequence[str],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    batch_size: int = 32,
    contrast: Sequence[str] | None = None,
    quiet: bool = False,
) -> BoundReport:
    """The bound of pictures 0..n-1, in [-1, 1], under their captions and under the null, on the same t and noise.

    Each picture's latent is a sample of the autoencoder's posterior, as in training. `contrast` are other captions, one
    a picture: `caption_margin` = bound(contrast) - bound(caption). Costs (draws + 1) evaluations a conditioning.
    """
    n, unet = len(captions), pipeline.generator.unet
    if n < 2:
        raise ValueError(f"{n} pictures: a bound with an interval needs at least 2")
    if pipeline.joined:
        raise ValueError(
            f"in_channels = {unet.config.in_channels}: a U-Net for inpainting has no bound of whole pictures"
        )
    if contrast is not None and len(contrast) != n:
        raise ValueError(f"contrast has {len(contrast)} captions for {n} pictures: give one a picture")
    plan = _plan(pipeline.generator, n, draws, seed)
    cut: set[int] = set()
    asked = {CAPTION: captions} | ({} if contrast is None else {CONTRAST: contrast})
    with torch.inference_mode():
        null = pipeline.text_encoder([""]).conditioning

    def batches() -> Iterator[Batch]:
        with progress("bound: pictures", n, quiet=quiet) as report:
            for rows in _rows(n, batch_size):
                conds = {}
                for name, texts in asked.items():
                    encoded = pipeline.text_encoder([texts[i] for i in rows])
                    cut.update(i for i, rest in zip(rows, encoded.truncated, strict=True) if rest)
                    conds[name] = encoded.conditioning
                x0 = sample_latents(pipeline, pictures(rows), rows, seed)
                yield Batch(rows, x0, conds | {NULL: null.expand(len(rows))})
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
    null: Conditioning,
    groups: Int[Tensor, " n"],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    batch_size: int = 32,
    quiet: bool = False,
) -> BoundReport:
    """The bound of a generator of pixels on uint8 pictures / 127.5 - 1: bits a dimension, L_0 over 256 bins."""
    n = len(x0)

    def batches() -> Iterator[Batch]:
        with progress("bound: pictures", n, quiet=quiet) as report:
            for rows in _rows(n, batch_size):
                yield Batch(rows, x0[rows], {CAPTION: cond[torch.tensor(rows)], NULL: null.expand(len(rows))})
                report(rows[-1] + 1)

    measured = measure(generator, batches(), _plan(generator, n, draws, seed), seed, bins=True)
    return BoundReport(measured, groups, seed, 0)


def _plan(generator: LatentDiffusion, n: int, draws: int, seed: int) -> bound.Draws:
    start = randomness.uniform((1,), seed, "bound", "t").item()
    return bound.Draws.plan(generator.schedule, n, draws, start)


def _rows(n: int, batch_size: int) -> list[list[int]]:
    return [list(range(first, min(first + batch_size, n))) for first in range(0, n, batch_size)]


def sample_latents(pipeline: Pipeline, pictures: Tensor, rows: list[int], seed: int) -> Float[Tensor, "b c h w"]:
    """Scaled samples of the autoencoder's posterior, as the generator is trained on."""
    posterior = pipeline.vae_runner.encode(pipeline.autoencoder, pictures.to(pipeline.device))
    shape = posterior.mean.shape[1:]
    eps = torch.stack([randomness.normal(shape, seed, "bound", i, "latent") for i in rows])
    return posterior.sample(eps.to(pipeline.device)) * pipeline.autoencoder.config.scaling_factor


def _groups(captions: Sequence[str]) -> Int[Tensor, " n"]:
    numbers = {text: i for i, text in enumerate(dict.fromkeys(captions))}
    return torch.tensor([numbers[text] for text in captions])
