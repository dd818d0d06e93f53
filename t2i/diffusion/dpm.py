"""DPM-Solver++ (Lu et al. 2022, 2211.01095): 2M, its stochastic form, and 2S with ancestral noise."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor

from t2i.diffusion.euler import ancestral
from t2i.diffusion.prediction import AfterStep, Prediction, unchanged
from t2i.diffusion.schedule import Level


def sample_2m(
    predict: Callable[[Tensor, Level], Prediction],
    x: Float[Tensor, "b *d"],
    levels: Sequence[Level],
    noise: Sequence[Tensor] = (),
    after_step: AfterStep = unchanged,
) -> Iterator[Tensor]:
    """Yields x after each step of DPM-Solver++(2M) (Algorithm 2); the first and the last step are of first order."""
    assert not noise, "DPM-Solver++(2M) is deterministic"
    n = len(levels) - 1
    lambdas = [level.half_log_snr for level in levels]
    previous = None
    for i in range(n):
        t, s = levels[i], levels[i + 1]
        h = lambdas[i + 1] - lambdas[i]
        x0, _ = predict(x, t)
        D = x0
        # The last step may end in lambda = inf, where an extrapolation over h is undefined.
        if previous is not None and i < n - 1:
            h_previous = lambdas[i] - lambdas[i - 1]
            D = x0 + h / (2 * h_previous) * (x0 - previous)
        x = s.sigma / t.sigma * x - s.alpha * math.expm1(-h) * D
        previous = x0
        x = after_step(x, s)
        yield x


def sample_2m_sde(
    predict: Callable[[Tensor, Level], Prediction],
    x: Float[Tensor, "b *d"],
    levels: Sequence[Level],
    noise: Sequence[Tensor],
    after_step: AfterStep = unchanged,
) -> Iterator[Tensor]:
    """Yields x after each step of SDE-DPM-Solver++(2M); `noise` holds one tensor per step, the last one unused."""
    n = len(levels) - 1
    lambdas = [level.half_log_snr for level in levels]
    previous = None
    for i in range(n):
        t, s = levels[i], levels[i + 1]
        h = lambdas[i + 1] - lambdas[i]
        x0, _ = predict(x, t)
        D = x0
        if previous is not None and i < n - 1:
            D = x0 + h / (2 * (lambdas[i] - lambdas[i - 1])) * (x0 - previous)
        fresh = -math.expm1(-2 * h)
        x = s.sigma / t.sigma * math.exp(-h) * x + s.alpha * fresh * D + s.sigma * math.sqrt(fresh) * noise[i]
        previous = x0
        x = after_step(x, s)
        yield x


def sample_2s_ancestral(
    predict: Callable[[Tensor, Level], Prediction],
    x: Float[Tensor, "b *d"],
    levels: Sequence[Level],
    noise: Sequence[Tensor],
    after_step: AfterStep = unchanged,
) -> Iterator[Tensor]:
    """Yields x after each step of DPM-Solver++(2S) (Algorithm 1, r = 1/2) to the ancestral level below s, then noise.

    The level below has sigma / alpha = s^2 / t, so that its midpoint in lambda is s itself. `noise` holds z for every
    step but the last, which ends in x_0.
    """
    for (t, s), z in zip(pairwise(levels), [*noise[: len(levels) - 2], 0.0], strict=True):
        down, up = ancestral(t, s)
        x0, _ = predict(x, t)
        if down > 0:
            u = s.sigma / t.sigma * x + s.alpha * (1 - s.ratio / t.ratio) * x0
            x0, _ = predict(u, s)
            x = s.alpha * (down / t.ratio * x / t.alpha + (1 - down / t.ratio) * x0 + up * z)
        else:
            x = s.alpha * (x0 + up * z)
        x = after_step(x, s)
        yield x
