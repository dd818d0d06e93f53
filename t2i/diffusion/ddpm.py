"""Denoising diffusion probabilistic models (Ho et al. 2020, 2006.11239): Algorithms 1 and 2."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from jaxtyping import Float, Int
from torch import Tensor

from t2i.diffusion.prediction import AfterStep, Prediction, target, unchanged
from t2i.diffusion.schedule import Level, Schedule

VARIANCES = ("beta", "beta_tilde", "zero")


def q_sample(
    x0: Float[Tensor, "b *d"],
    alpha: Float[Tensor, "b *_"] | float,
    sigma: Float[Tensor, "b *_"] | float,
    eps: Float[Tensor, "b *d"],
) -> Float[Tensor, "b *d"]:
    """Returns x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps (eq. 4)."""
    return alpha * x0 + sigma * eps


def posterior(
    x0: Float[Tensor, "b *d"], x: Float[Tensor, "b *d"], t: Level, s: Level
) -> tuple[Float[Tensor, "b *d"], float]:
    """Returns mean and variance of q(x_s | x_t, x_0), s < t (eq. 6, 7 with alpha_bar_t / alpha_bar_s for alpha_t)."""
    alpha_ts = (t.alpha / s.alpha) ** 2
    beta_ts = 1 - alpha_ts
    mean = (math.sqrt(alpha_ts) * s.sigma**2 * x + s.alpha * beta_ts * x0) / t.sigma**2
    return mean, s.sigma**2 / t.sigma**2 * beta_ts


def training_loss(
    network: Callable[[Tensor, Tensor], Tensor],
    schedule: Schedule,
    x0: Float[Tensor, "b *d"],
    t: Int[Tensor, "b"],
    eps: Float[Tensor, "b *d"],
    kind: str,
) -> Float[Tensor, "b"]:
    """Algorithm 1, lines 2-5, with a loss per sample: || target - network(x_t, t) ||^2 per element, t in 1..T."""
    alpha, sigma = schedule.at(t, x0)
    x_t = q_sample(x0, alpha, sigma, eps)
    return (target(x0, eps, alpha, sigma, kind) - network(x_t, t)).square().flatten(1).mean(1)


def sample(
    predict: Callable[[Tensor, Level], Prediction],
    x: Float[Tensor, "b *d"],
    levels: Sequence[Level],
    noise: Sequence[Tensor],
    variance: str = "beta_tilde",
    after_step: AfterStep = unchanged,
) -> Iterator[Tensor]:
    """Yields x after each step of Algorithm 2; `noise` holds z for every step but the last, where z = 0."""
    if variance not in VARIANCES:
        raise ValueError(f"variance = {variance!r} is unknown: choose one of {', '.join(VARIANCES)}")
    for (t, s), z in zip(pairwise(levels), [*noise[: len(levels) - 2], 0.0], strict=True):
        alpha_t = (t.alpha / s.alpha) ** 2
        beta_t = 1 - alpha_t
        beta_tilde_t = s.sigma**2 / t.sigma**2 * beta_t
        sigma_t = math.sqrt({"beta": beta_t, "beta_tilde": beta_tilde_t, "zero": 0.0}[variance])
        x0, eps = predict(x, t)
        # Where alpha_t = 0 (zero terminal SNR) the paper's line is 0 / 0; its limit is the mean of q(x_s | x_0).
        mean = (x - beta_t / t.sigma * eps) / math.sqrt(alpha_t) if alpha_t > 0 else s.alpha * x0
        x = mean + sigma_t * z
        x = after_step(x, s)
        yield x
