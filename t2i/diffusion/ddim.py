"""Denoising diffusion implicit models (Song et al. 2020, 2010.02502)."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor

from t2i.diffusion.prediction import AfterStep, Prediction, unchanged
from t2i.diffusion.schedule import Level
from t2i.errors import ConfigError


def sample(
    predict: Callable[[Tensor, Level], Prediction],
    x: Float[Tensor, "b *d"],
    levels: Sequence[Level],
    noise: Sequence[Tensor] = (),
    eta: float = 0.0,
    after_step: AfterStep = unchanged,
) -> Iterator[Tensor]:
    """Yields x after each step of eq. 12 with the sigma of eq. 16; `noise` holds one tensor per step if eta > 0."""
    if not 0 <= eta <= 1:
        raise ConfigError("eta", "not in 0..1 (0: deterministic, 1: as noisy as DDPM)", eta)
    for i, (t, s) in enumerate(pairwise(levels)):
        ratio = (1 - (t.alpha / s.alpha) ** 2) / t.sigma**2
        sigma = eta * s.sigma * math.sqrt(ratio)
        x0, eps = predict(x, t)
        # sqrt(1 - alpha_bar_s - sigma^2); ratio <= 1 but for the last bit
        x = s.alpha * x0 + s.sigma * math.sqrt(max(0.0, 1 - eta**2 * ratio)) * eps
        if eta > 0:
            x = x + sigma * noise[i]
        x = after_step(x, s)
        yield x
