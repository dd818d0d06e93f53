"""DPM-Solver++ (Lu et al. 2022, 2211.01095)."""

import math
from collections.abc import Callable, Iterator, Sequence

from jaxtyping import Float
from torch import Tensor

from t2i.diffusion.prediction import Prediction
from t2i.diffusion.schedule import Level


def sample_2m(
    predict: Callable[[Tensor, Level], Prediction],
    x: Float[Tensor, "b *d"],
    levels: Sequence[Level],
    noise: Sequence[Tensor] = (),
) -> Iterator[Tensor]:
    """DPM-Solver++(2M) (Algorithm 2), yielding x after each step; the first and the last step are of first order."""
    assert not noise, "DPM-Solver++(2M) is deterministic"
    n = len(levels) - 1
    lambdas = [_half_log_snr(level) for level in levels]
    previous = None
    for i in range(n):
        t, s = levels[i], levels[i + 1]
        h = lambdas[i + 1] - lambdas[i]
        x0, _ = predict(x, t)
        D = x0
        # The last step may end in lambda = inf, where extrapolating over h means nothing.
        if previous is not None and i < n - 1:
            h_previous = lambdas[i] - lambdas[i - 1]
            D = x0 + h / (2 * h_previous) * (x0 - previous)
        x = s.sigma / t.sigma * x - s.alpha * math.expm1(-h) * D
        previous = x0
        yield x


def _half_log_snr(level: Level) -> float:
    """lambda = log(alpha / sigma), infinite where one of them is 0."""
    if level.alpha == 0:
        return -math.inf
    if level.sigma == 0:
        return math.inf
    return math.log(level.alpha) - math.log(level.sigma)
