"""Tiled encoding and decoding of large images: overlapping tiles, blended by linear ramps."""

from collections.abc import Callable
from fractions import Fraction

import torch
from jaxtyping import Float
from torch import Tensor

from t2i.autoencoder.kl import AutoencoderKL, Gaussian

OVERLAP = 4  # adjacent tiles share 1 / OVERLAP of a tile


def tiled_decode(vae: AutoencoderKL, z: Float[Tensor, "b c h w"], tile: int) -> Float[Tensor, "b o h2 w2"]:
    """Decodes in tiles of `tile` pixels; equal to `vae.decode` if one tile holds the image."""
    return tiled(vae.decode, z, check_tile(vae, tile) // vae.factor, Fraction(vae.factor))


def tiled_encode(vae: AutoencoderKL, x: Float[Tensor, "b i h w"], tile: int) -> Gaussian:
    """Encodes in tiles of `tile` pixels and blends the moments; equal to `vae.encode` if one tile holds the image."""
    side = check_tile(vae, tile)
    moments = tiled(lambda part: torch.cat(vae.encode(part), dim=1), x, side, Fraction(1, vae.factor), vae.factor)
    return Gaussian(*moments.chunk(2, dim=1))


def tiled(
    f: Callable[[Tensor], Tensor], x: Float[Tensor, "b c h w"], tile: int, scale: Fraction, step: int = 1
) -> Float[Tensor, "b o h2 w2"]:
    """Applies f to square tiles of side `tile` at multiples of `step`; `scale` is f's output size over its input size.

    Every output value is the mean over the tiles that cover it, each weighted by its distance to the tile's edge.
    """
    rows, columns = (_starts(size, tile, step) for size in x.shape[2:])
    if len(rows) == len(columns) == 1:
        return f(x)
    out = total = None
    for y0 in rows:
        for x0 in columns:
            part = f(x[:, :, y0 : y0 + tile, x0 : x0 + tile])
            if out is None or total is None:
                height, width = (int(size * scale) for size in x.shape[2:])
                out = part.new_zeros(*part.shape[:2], height, width, dtype=torch.float32)
                total = out.new_zeros(height, width)
            weight = _ramp(part.shape[2], out)[:, None] * _ramp(part.shape[3], out)
            area = (
                slice(int(y0 * scale), int(y0 * scale) + part.shape[2]),
                slice(int(x0 * scale), int(x0 * scale) + part.shape[3]),
            )
            out[:, :, *area] += part * weight
            total[area] += weight
    assert out is not None and total is not None
    return out / total


def check_tile(vae: AutoencoderKL, tile: int) -> int:
    """Returns the tile size; ValueError if it is not a multiple of the factor or too small to overlap."""
    least = OVERLAP * vae.factor
    if tile < least or tile % vae.factor:
        raise ValueError(
            f"a tile of {tile} pixels: a multiple of {vae.factor} (the VAE's factor) from {least} on is needed"
        )
    return tile


def _starts(size: int, tile: int, step: int) -> list[int]:
    """Returns the first pixel of each tile: all tiles have full size, and the last one ends with the image."""
    if size <= tile:
        return [0]
    stride = (tile - tile // OVERLAP) // step * step
    return [*range(0, size - tile, stride), size - tile]


def _ramp(size: int, like: Tensor) -> Float[Tensor, " n"]:
    """Returns weights of 1 in the middle that fall linearly towards both ends over the overlap, and are never 0."""
    index = torch.arange(size, dtype=like.dtype, device=like.device)
    return ((torch.minimum(index, size - 1 - index) + 0.5) * OVERLAP / size).clamp(max=1)
