"""Heun's method (Karras et al. 2022, 2206.00364), deterministic and with churn."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor

from t2i.diffusion.euler import step
from t2i.diffusion.prediction import AfterStep, Prediction, unchanged
from t2i.diffusion.schedule import Level
from t2i.errors import ConfigError


def sample(
    predict: Callable[[Tensor, Level], Prediction],
    x: Float[Tensor, "b *d"],
    levels: Sequence[Level],
    noise: Sequence[Tensor] = (),
    after_step: AfterStep = unchanged,
) -> Iterator[Tensor]:
    """Yields x after each step of Algorithm 1; two network calls per step, one in the last."""
    assert not noise, "Heun's method is deterministic"
    for t, s in pairwise(levels):
        x = _step(predict, x, t, s)
        x = after_step(x, s)
        yield x


def sample_edm(
    predict: Callable[[Tensor, Level], Prediction],
    x: Float[Tensor, "b *d"],
    levels: Sequence[Level],
    noise: Sequence[Tensor] = (),
    eta: float = 0.0,
    at: Callable[[float], Level] | None = None,
    after_step: AfterStep = unchanged,
) -> Iterator[Tensor]:
    """Yields x after each step of Algorithm 2; `noise` holds one tensor per step if eta > 0.

    S_churn = 40 eta (the paper's for ImageNet at eta = 1), if the raised level lies below the first one (S_tmax);
    S_noise = 1. `at` returns the level with a given sigma / alpha.
    """
    if not 0 <= eta <= 1:
        raise ConfigError("eta", "not in 0..1 (0: no churn, 1: S_churn = 40)", eta)
    gamma = min(40 * eta / (len(levels) - 1), math.sqrt(2) - 1)
    for i, (t, s) in enumerate(pairwise(levels)):
        if gamma > 0 and (1 + gamma) * t.ratio <= levels[0].ratio:
            assert at is not None, "churn needs levels between those of the list"
            raised = at((1 + gamma) * t.ratio)
            x = raised.alpha * (x / t.alpha + math.sqrt(raised.ratio**2 - t.ratio**2) * noise[i])
            t = raised
        x = _step(predict, x, t, s)
        x = after_step(x, s)
        yield x


def _step(predict: Callable[[Tensor, Level], Prediction], x: Tensor, t: Level, s: Level) -> Tensor:
    """Takes an Euler step, corrected by the slope at its end (lines 4-8).

    From pure noise, where sigma / alpha is unbounded, the error of the mean of the two slopes is unbounded, while
    Euler's step is exact in the limit; so no correction is made there.
    """
    first = predict(x, t)
    x = step(first, s)
    if s.sigma > 0 and not t.is_noise:
        x = x + s.alpha * (s.ratio - t.ratio) / 2 * (predict(x, s).eps - first.eps)
    return x
