"""Prediction types, the meaning of the network's output: eps, x_0 or v, and the conversion to x_0 and eps."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from t2i.diffusion.schedule import Level, Schedule

KINDS = ("epsilon", "v_prediction", "sample")
# Every solver calls it as (x, level) after each step and goes on from the x that it returns: inpainting restores what
# is kept, a callback of a user's may change the latents.
AfterStep = Callable[[Tensor, Level], Tensor]


def unchanged(x: Tensor, level: Level) -> Tensor:
    """Returns x: the solver goes on from its own result."""
    return x


class Prediction(NamedTuple):
    """x_0 and eps of one network output."""

    x0: Float[Tensor, "b *d"]
    eps: Float[Tensor, "b *d"]


def check_kind(kind: str, schedule: Schedule) -> None:
    """Raises ValueError unless `kind` is known and determines x_0 at every level of the schedule."""
    if kind not in KINDS:
        raise ValueError(f"prediction_type = {kind!r} is unknown: choose one of {', '.join(KINDS)}")
    if kind == "epsilon" and schedule.zero_terminal_snr:
        raise ValueError(_PURE_NOISE)


def to_prediction(output: Float[Tensor, "b *d"], x: Float[Tensor, "b *d"], level: Level, kind: str) -> Prediction:
    """Returns (x_0, eps) of the output at x_t; v as in 2202.00512: x_0 = alpha x - sigma v, eps = alpha v + sigma x."""
    _, alpha, sigma = level
    if kind == "epsilon":
        if alpha == 0:
            raise ValueError(_PURE_NOISE)
        return Prediction((x - sigma * output) / alpha, output)
    if kind == "v_prediction":
        return Prediction(alpha * x - sigma * output, alpha * output + sigma * x)
    if kind == "sample":
        return Prediction(output, (x - alpha * output) / sigma)
    raise ValueError(f"prediction_type = {kind!r} is unknown: choose one of {', '.join(KINDS)}")


def target(
    x0: Float[Tensor, "b *d"],
    eps: Float[Tensor, "b *d"],
    alpha: Float[Tensor, "b *_"] | float,
    sigma: Float[Tensor, "b *_"] | float,
    kind: str,
) -> Float[Tensor, "b *d"]:
    """Returns the target of the network's output: eps, x_0, or v = alpha eps - sigma x_0 (2202.00512)."""
    if kind == "epsilon":
        return eps
    if kind == "v_prediction":
        return alpha * eps - sigma * x0
    if kind == "sample":
        return x0
    raise ValueError(f"prediction_type = {kind!r} is unknown: choose one of {', '.join(KINDS)}")


_PURE_NOISE = (
    "prediction_type = 'epsilon' does not determine x_0 at alpha_bar = 0 (zero terminal SNR): "
    "choose v_prediction or sample, or rescale_betas_zero_snr: false"
)
