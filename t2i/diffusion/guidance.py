"""Classifier-free guidance (Ho & Salimans 2022, 2207.12598)."""

from collections.abc import Callable

import torch
from torch import Tensor

from t2i.conditioning import Conditioning


def guided(
    network: Callable[[Tensor, Tensor, Conditioning], Tensor],
    cond: Conditioning,
    null: Conditioning,
    scale: float,
) -> Callable[[Tensor, Tensor], Tensor]:
    """The raw output null + scale (cond - null), from one batch (null first); `null` is one row, or one per sample.

    The scale is diffusers' guidance_scale: 1 is no guidance, and runs no null pass. (The paper's w is scale - 1.)
    """
    if scale == 1:
        return lambda x, t: network(x, t, cond)
    both = Conditioning.cat([null.expand(len(cond)), cond])

    def guided_network(x: Tensor, t: Tensor) -> Tensor:
        without, with_text = network(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        return without + scale * (with_text - without)

    return guided_network
