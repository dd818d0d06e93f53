"""Classifier-free guidance (Ho & Salimans 2022, 2207.12598), its rescaling and its interval."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from t2i.conditioning import Conditioning


@dataclass(frozen=True)
class Guidance:
    """`scale` as `guided` takes it; `rescale` = phi of 2305.08891; guided only where t / T lies in `interval`."""

    scale: float
    rescale: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale >= 0):
            raise ValueError(f"guidance_scale = {self.scale} must be a number >= 0; 1 is no guidance")
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"guidance_rescale = {self.rescale} is not in 0..1 (0: off; the paper takes 0.7)")
        low, high = self.interval
        if not 0 <= low < high <= 1:
            raise ValueError(
                f"guidance_interval = {low}, {high}: shares of the noise levels, 0 <= LO < HI <= 1, are needed "
                "(0 is the picture, 1 pure noise)"
            )


def guided(
    network: Callable[[Tensor, Tensor, Conditioning], Tensor],
    cond: Conditioning,
    null: Conditioning,
    guidance: float | Guidance,
) -> Callable[..., Tensor]:
    """The raw output null + scale (cond - null), from one batch (null first); `null` is one row, or one per sample.

    The scale is diffusers' guidance_scale: 1 is no guidance, and runs no null pass. (The paper's w is scale - 1.)
    Called as (x, t) or (x, t, t / T): outside of the interval there is neither guidance nor a null pass (2404.07724).
    """
    chosen = guidance if isinstance(guidance, Guidance) else Guidance(guidance)
    if chosen.scale == 1:
        return lambda x, t, share=0.0: network(x, t, cond)
    both = Conditioning.cat([null.expand(len(cond)), cond])
    low, high = chosen.interval

    def guided_network(x: Tensor, t: Tensor, share: float | None = None) -> Tensor:
        assert share is not None or chosen.interval == (0, 1)
        if share is not None and not low <= share <= high:
            return network(x, t, cond)
        without, with_text = network(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        output = without + chosen.scale * (with_text - without)
        return rescaled(output, with_text, chosen.rescale) if chosen.rescale else output

    return guided_network


def rescaled(output: Float[Tensor, "b *d"], with_text: Float[Tensor, "b *d"], phi: float) -> Float[Tensor, "b *d"]:
    """phi output std(with_text) / std(output) + (1 - phi) output, sample by sample (2305.08891, eq. 15 and 16)."""
    axes = tuple(range(1, output.ndim))
    ratio = with_text.std(axes, keepdim=True) / output.std(axes, keepdim=True)
    return output * (phi * ratio + 1 - phi)
