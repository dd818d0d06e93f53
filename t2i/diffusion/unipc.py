"""UniPC (Zhao et al. 2023, 2302.04867)."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor

from t2i.diffusion.prediction import AfterStep, Prediction, unchanged
from t2i.diffusion.schedule import Level


def sample(
    predict: Callable[[Tensor, Level], Prediction],
    x: Float[Tensor, "b *d"],
    levels: Sequence[Level],
    noise: Sequence[Tensor] = (),
    after_step: AfterStep = unchanged,
) -> Iterator[Tensor]:
    """Yields x after each step of UniPC-2 for x_0 with B_2(h) = e^h - 1; the first and last steps are of first order.

    Each network call corrects the step that led to it; the yielded x is not corrected yet, as in diffusers.
    """
    assert not noise, "UniPC is deterministic"
    past: list[tuple[Level, Tensor]] = []  # (level, x_0), newest first
    before, order = x, 0
    for i, (t, s) in enumerate(pairwise(levels)):
        x0, _ = predict(x, t)
        x = x if i == 0 else _correct(before, t, x0, past[:order])
        past = [(t, x0), *past[:1]]
        before, order = x, min(2, i + 1, len(levels) - 1 - i)
        x = _predict(x, s, past[:order])
        x = after_step(x, s)
        yield x


def _predict(x: Tensor, s: Level, past: list[tuple[Level, Tensor]]) -> Tensor:
    """Takes a step of UniP-2 (section 3.2, a_1 = 1 / 2): x at s from x at past[0]."""
    (t, x0), *older = past
    h = s.half_log_snr - t.half_log_snr
    D = x0
    for t1, x1 in older:
        D = x0 + h / (t.half_log_snr - t1.half_log_snr) / 2 * (x0 - x1)
    return s.sigma / t.sigma * x - s.alpha * math.expm1(-h) * D


def _correct(x: Tensor, s: Level, x0_s: Tensor, past: list[tuple[Level, Tensor]]) -> Tensor:
    """Repeats the step from past[0] to s with x_0 at its end (UniC, section 3.1); a = R^-1 phi / B, or 1 / 2 alone."""
    (t, x0), *older = past
    h = s.half_log_snr - t.half_log_snr
    D = x0 + (x0_s - x0) / 2
    for t1, x1 in older:
        r = (t1.half_log_snr - t.half_log_snr) / h
        phi = math.expm1(-h) / -h - 1
        b1, b2 = phi / math.expm1(-h), 2 * (phi / -h - 1 / 2) / math.expm1(-h)
        a1 = (b1 - b2) / (1 - r)
        D = x0 + a1 / r * (x1 - x0) + (b1 - a1) * (x0_s - x0)
    return s.sigma / t.sigma * x - s.alpha * math.expm1(-h) * D
