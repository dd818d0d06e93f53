"""Linear multistep methods: Adams-Bashforth over sigma / alpha, and PNDM (Liu et al. 2022, 2202.09778)."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor

from t2i.diffusion.euler import step
from t2i.diffusion.prediction import AfterStep, Prediction, unchanged
from t2i.diffusion.schedule import Level

# 2202.09778, eq. 12 and its lower orders: the weights of eps, newest first.
_ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def sample_lms(
    predict: Callable[[Tensor, Level], Prediction],
    x: Float[Tensor, "b *d"],
    levels: Sequence[Level],
    noise: Sequence[Tensor] = (),
    after_step: AfterStep = unchanged,
) -> Iterator[Tensor]:
    """Yields x after each step of d(x / alpha) / d(sigma / alpha) = eps (2206.00364, eq. 3), with a cubic for eps.

    The cubic interpolates the last four eps. Pure noise (alpha = 0) lies at infinity and is not one of its points.
    """
    assert not noise, "LMS is deterministic"
    past: list[tuple[float, Tensor]] = []
    for t, s in pairwise(levels):
        now = predict(x, t)
        past = [(t.ratio, now.eps), *past[:3]]
        x = step(now, s)
        if t.alpha == 0:
            past = []
        else:
            weights = _integrals([ratio for ratio, _ in past], s.ratio)
            for weight, (_, eps) in zip(weights[1:], past[1:], strict=True):
                x = x + s.alpha * weight * (eps - now.eps)
        x = after_step(x, s)
        yield x


def _integrals(nodes: list[float], to: float) -> list[float]:
    """Integrates each Lagrange polynomial from nodes[0] to `to`, exactly up to degree 3 (two Gauss points)."""
    middle, half = (nodes[0] + to) / 2, (to - nodes[0]) / 2
    points = [middle - half / math.sqrt(3), middle + half / math.sqrt(3)]

    def basis(i: int, r: float) -> float:
        return math.prod((r - other) / (nodes[i] - other) for j, other in enumerate(nodes) if j != i)

    return [half * sum(basis(i, r) for r in points) for i in range(len(nodes))]


def sample_plms(
    predict: Callable[[Tensor, Level], Prediction],
    x: Float[Tensor, "b *d"],
    levels: Sequence[Level],
    noise: Sequence[Tensor] = (),
    after_step: AfterStep = unchanged,
) -> Iterator[Tensor]:
    """Yields x after each step of the pseudo linear multistep method (2202.09778), started as in Stable Diffusion.

    The first step is taken twice, the second time with the mean of the two eps, so n steps make n + 1 network calls.
    diffusers' PNDM differs in two points. It steps by T // n, which leaves its list if n does not divide T or the list
    is linspace; here steps go from entry to entry. And it combines raw outputs, which for v_prediction is only of
    first order; here eps are combined, as in the paper. From pure noise the first step is Euler's, as in `heun`.
    """
    assert not noise, "PLMS is deterministic"
    past: list[Tensor] = []
    for i, (t, s) in enumerate(pairwise(levels)):
        now = predict(x, t)
        past = [now.eps, *past[:3]]
        x = step(now, s)
        if i == 0:
            if len(levels) > 2 and not t.is_noise:
                x = x + s.alpha * (s.ratio - t.ratio) / 2 * (predict(x, s).eps - now.eps)
        else:
            weights = _ADAMS_BASHFORTH[len(past) - 1]
            for weight, eps in zip(weights[1:], past[1:], strict=True):
                x = x + s.alpha * (s.ratio - t.ratio) * weight * (eps - now.eps)
        x = after_step(x, s)
        yield x
