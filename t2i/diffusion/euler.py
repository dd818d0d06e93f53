"""Euler's method, deterministic and ancestral, as in k-diffusion (Karras et al. 2022, 2206.00364; Song et al. 2020)."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor

from t2i.diffusion.prediction import AfterStep, Prediction, unchanged
from t2i.diffusion.schedule import Level


def step(prediction: Prediction, s: Level) -> Float[Tensor, "b *d"]:
    """Returns alpha_s x_0 + sigma_s eps: to level s along d(x / alpha) / d(sigma / alpha) = eps (2206.00364, eq. 3)."""
    return s.alpha * prediction.x0 + s.sigma * prediction.eps


def sample(
    predict: Callable[[Tensor, Level], Prediction],
    x: Float[Tensor, "b *d"],
    levels: Sequence[Level],
    noise: Sequence[Tensor] = (),
    after_step: AfterStep = unchanged,
) -> Iterator[Tensor]:
    """Yields x after each step of 2206.00364, Algorithm 1 without its correction; the step equals DDIM's."""
    assert not noise, "Euler's method is deterministic"
    for t, s in pairwise(levels):
        x = step(predict(x, t), s)
        x = after_step(x, s)
        yield x


def ancestral(t: Level, s: Level) -> tuple[float, float]:
    """Returns (down, up): down^2 + up^2 = s.ratio^2, (alpha_s up)^2 = Var q(x_s | x_t, x_0) (2006.11239, eq. 7)."""
    shrink = s.ratio / t.ratio
    return s.ratio * shrink, s.ratio * math.sqrt(1 - shrink**2)


def sample_ancestral(
    predict: Callable[[Tensor, Level], Prediction],
    x: Float[Tensor, "b *d"],
    levels: Sequence[Level],
    noise: Sequence[Tensor],
    after_step: AfterStep = unchanged,
) -> Iterator[Tensor]:
    """Yields x after each Euler step down and noise up to s; `noise` holds one tensor per step."""
    for (t, s), z in zip(pairwise(levels), noise, strict=True):
        down, up = ancestral(t, s)
        x0, eps = predict(x, t)
        x = s.alpha * (x0 + down * eps + up * z)
        x = after_step(x, s)
        yield x
