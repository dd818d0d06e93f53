"""Latent consistency models (Luo et al. 2023, 2310.04378): sampling in a few steps with a distilled network."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor

from t2i.diffusion.prediction import AfterStep, Prediction, unchanged
from t2i.diffusion.schedule import Level

SIGMA_DATA = 0.5
TIMESTEP_SCALING = 10.0


def sample(
    predict: Callable[[Tensor, Level], Prediction],
    x: Float[Tensor, "b *d"],
    levels: Sequence[Level],
    noise: Sequence[Tensor],
    after_step: AfterStep = unchanged,
) -> Iterator[Tensor]:
    """Yields x after each step of Algorithm 3; `noise` holds z for every step but the last.

    f = c_skip x + c_out x_0 (section 4.1), with the scalings of the published models.
    """
    for (t, s), z in zip(pairwise(levels), [*noise[: len(levels) - 2], 0.0], strict=True):
        scaled = TIMESTEP_SCALING * (t.t - 1)
        c_skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
        c_out = scaled / math.hypot(scaled, SIGMA_DATA)
        f = c_skip * x + c_out * predict(x, t).x0
        x = s.alpha * f + s.sigma * z
        x = after_step(x, s)
        yield x
