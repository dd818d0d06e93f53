"""Pictures that do not fit the memory, tile by tile: overlapping tiles, blended by linear ramps."""

from collections.abc import Callable
from fractions import Fraction

import torch
from jaxtyping import Float
from torch import Tensor

from t2i.autoencoder.kl import AutoencoderKL, Gaussian

OVERLAP = 4  # a quarter of a tile is shared with its neighbour


def tiled_decode(vae: AutoencoderKL, z: Float[Tensor, "b c h w"], tile: int) -> Float[Tensor, "b o h2 w2"]:
    """`vae.decode` by tiles of `tile` pixels; exactly `vae.decode` where one tile holds the picture."""
    return tiled(vae.decode, z, check_tile(vae, tile) // vae.factor, Fraction(vae.factor))


def tiled_encode(vae: AutoencoderKL, x: Float[Tensor, "b i h w"], tile: int) -> Gaussian:
    """`vae.encode` by tiles of `tile` pixels, the moments blended; exactly `vae.encode` where one tile is enough."""
    side = check_tile(vae, tile)
    moments = tiled(lambda part: torch.cat(vae.encode(part), dim=1), x, side, Fraction(1, vae.factor), vae.factor)
    return Gaussian(*moments.chunk(2, dim=1))


def tiled(
    f: Callable[[Tensor], Tensor], x: Float[Tensor, "b c h w"], tile: int, scale: Fraction, step: int = 1
) -> Float[Tensor, "b o h2 w2"]:
    """f on tiles of `tile` a side at multiples of `step`; `scale` is the side of f's output over that of its input.

    Every output value is a mean of the tiles that cover it, each weighted by its distance to the tile's edge.
    """
    rows, columns = (_starts(size, tile, step) for size in x.shape[2:])
    if len(rows) == len(columns) == 1:
        return f(x)
    out = total = None
    for top in rows:
        for left in columns:
            part = f(x[:, :, top : top + tile, left : left + tile])
            if out is None or total is None:
                height, width = (int(size * scale) for size in x.shape[2:])
                out = part.new_zeros(*part.shape[:2], height, width, dtype=torch.float32)
                total = out.new_zeros(height, width)
            weight = _ramp(part.shape[2], out)[:, None] * _ramp(part.shape[3], out)
            here = (
                slice(int(top * scale), int(top * scale) + part.shape[2]),
                slice(int(left * scale), int(left * scale) + part.shape[3]),
            )
            out[:, :, *here] += part * weight
            total[here] += weight
    assert out is not None and total is not None
    return out / total


def check_tile(vae: AutoencoderKL, tile: int) -> int:
    """The tile; ValueError for one that latents do not fill, or that leaves no overlap."""
    least = OVERLAP * vae.factor
    if tile < least or tile % vae.factor:
        raise ValueError(f"a tile of {tile} pixels: a multiple of {vae.factor}, the latents' factor, from {least} on")
    return tile


def _starts(size: int, tile: int, step: int) -> list[int]:
    """Where tiles begin: every tile is whole, the last one ends with the picture."""
    if size <= tile:
        return [0]
    stride = (tile - tile // OVERLAP) // step * step
    return [*range(0, size - tile, stride), size - tile]


def _ramp(size: int, like: Tensor) -> Float[Tensor, " n"]:
    """1 in the middle, falling linearly towards both ends over the overlap, and never 0."""
    place = torch.arange(size, dtype=like.dtype, device=like.device)
    return ((torch.minimum(place, size - 1 - place) + 0.5) * OVERLAP / size).clamp(max=1)
