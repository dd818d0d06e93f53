"""Classifier-free guidance (Ho & Salimans 2022, 2207.12598), its rescaling and its interval."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from t2i.conditioning import Conditioning
from t2i.errors import ConfigError


@dataclass(frozen=True)
class Guidance:
    """`scale` as in `guided`; `rescale` is phi of 2305.08891; guidance is applied only for t / T in `interval`."""

    scale: float
    rescale: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale >= 0):
            raise ConfigError("guidance_scale", "must be a number >= 0; 1 is no guidance", self.scale)
        if not 0 <= self.rescale <= 1:
            raise ConfigError("guidance_rescale", "not in 0..1 (0: off; the paper takes 0.7)", self.rescale)
        low, high = self.interval
        if not 0 <= low < high <= 1:
            raise ConfigError(
                "guidance_interval",
                "fractions of the noise levels, 0 <= LO < HI <= 1, are needed (0 is the image, 1 pure noise)",
                self.interval,
            )


def guided(
    network: Callable[[Tensor, Tensor, Conditioning], Tensor],
    cond: Conditioning,
    uncond: Conditioning,
    guidance: float | Guidance,
) -> Callable[..., Tensor]:
    """Returns a network with output uncond + scale (cond - uncond), computed in one batch, unconditional half first.

    `uncond` has one row, or one per sample. The scale is diffusers' guidance_scale: 1 means no guidance and no
    unconditional pass. (The paper's w is scale - 1.) The result is called as (x, t) or (x, t, t / T); outside of the
    interval it makes no unconditional pass either (2404.07724).
    """
    settings = guidance if isinstance(guidance, Guidance) else Guidance(guidance)
    if settings.scale == 1:
        return lambda x, t, fraction=0.0: network(x, t, cond)
    both = Conditioning.cat([uncond.expand(len(cond)), cond])
    low, high = settings.interval

    def guided_network(x: Tensor, t: Tensor, fraction: float | None = None) -> Tensor:
        assert fraction is not None or settings.interval == (0, 1)
        if fraction is not None and not low <= fraction <= high:
            return network(x, t, cond)
        without_text, with_text = network(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        output = without_text + settings.scale * (with_text - without_text)
        return rescaled(output, with_text, settings.rescale) if settings.rescale else output

    return guided_network


def rescaled(output: Float[Tensor, "b *d"], with_text: Float[Tensor, "b *d"], phi: float) -> Float[Tensor, "b *d"]:
    """Returns phi output std(with_text) / std(output) + (1 - phi) output, per sample (2305.08891, eq. 15, 16)."""
    axes = tuple(range(1, output.ndim))
    ratio = with_text.std(axes, keepdim=True) / output.std(axes, keepdim=True)
    return output * (phi * ratio + 1 - phi)
