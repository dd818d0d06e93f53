"""The noise of every picture, from its own generator: it depends on neither batch, device nor dtype."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from t2i.pipeline.request import Request

START, IMAGE, MASKED = "start", "image", "masked"


class Drawn(NamedTuple):
    """`start` is what the latents are made from; `image` and `masked` sample the posteriors of the picture to begin
    from and of its kept part; `steps` is for the solver's steps that draw some."""

    start: Float[Tensor, "b c h w"]
    image: Float[Tensor, "b c h w"] | None
    masked: Float[Tensor, "b c h w"] | None
    steps: list[Tensor]


Noise = Callable[[int, int], Drawn]  # (first picture, the one after the last) -> their noise


def noise_source(
    request: Request,
    seeds: list[int] | None,
    count: int,
    shape: tuple[int, ...],
    order: Sequence[str],
    steps: int,
) -> Noise:
    """Noise as stock draws it, in `order` and then for `steps` steps: for each picture from its own generator, or from
    one generator for all at once. Always in float32 and where the generator lives.
    """
    given = given_latents(request, count, shape)
    other = variations(request, count, shape)
    names = [name for name in order if given is None or name != START]

    def finish(found: dict[str, Tensor], drawn: list[Tensor], a: int, b: int) -> Drawn:
        start = found[START] if given is None else given[a:b]
        if other is not None:
            start = slerp(start, other(a, b), request.variation_strength)
        return Drawn(start, found.get(IMAGE), found.get(MASKED), drawn)

    if seeds is not None:

        def from_seeds(a: int, b: int) -> Drawn:
            own = [torch.Generator().manual_seed(seed) for seed in seeds[a:b]]
            found = {name: draw(own, 1, shape) for name in names}
            return finish(found, [draw(own, 1, shape) for _ in range(steps)], a, b)

        return from_seeds
    generators = (
        [request.generator] if isinstance(request.generator, torch.Generator) else list(request.generator or ())
    )
    one = isinstance(request.generator, torch.Generator)
    if not one and len(generators) != count:
        raise ValueError(f"generator has {len(generators)} entries for {count} pictures: give one, or one a picture")
    rows = {name: count if name == START else 1 for name in names} if one else dict.fromkeys(names, 1)
    found = {name: draw(generators, rows[name], shape).expand(count, *shape) for name in names}
    drawn = [draw(generators, count if one else 1, shape) for _ in range(steps)]
    return lambda a, b: finish({k: x[a:b] for k, x in found.items()}, [x[a:b] for x in drawn], a, b)


def given_latents(request: Request, count: int, shape: tuple[int, ...]) -> Tensor | None:
    """The latents that a caller brings in place of noise."""
    given = request.latents
    if given is None:
        return None
    if tuple(given.shape) != (count, *shape):
        raise ValueError(f"latents has shape {tuple(given.shape)}: {(count, *shape)} is needed")
    if not given.isfinite().all():
        raise ValueError("latents holds non-finite values")
    return given.float()


def variations(request: Request, count: int, shape: tuple[int, ...]) -> Callable[[int, int], Tensor] | None:
    """The noise that each picture's own is turned towards: of `variation_seeds`, counted up from one number."""
    if request.variation_seeds is None:
        return None
    seeds = request.variation_seeds
    found = [seeds + k for k in range(count)] if isinstance(seeds, int) else list(seeds)
    if len(found) != count:
        raise ValueError(f"variation_seeds has {len(found)} entries for {count} pictures: give one a picture, or one")
    return lambda a, b: draw([torch.Generator().manual_seed(seed) for seed in found[a:b]], 1, shape)


def draw(generators: Sequence[torch.Generator], rows: int, shape: tuple[int, ...]) -> Float[Tensor, "b c h w"]:
    """`rows` rows of standard normal noise from each generator."""
    return torch.cat([torch.randn((rows, *shape), generator=g, device=g.device).cpu() for g in generators])


def slerp(a: Float[Tensor, "b *d"], b: Float[Tensor, "b *d"], share: float) -> Float[Tensor, "b *d"]:
    """`share` of the way from a to b along the arc between them, row by row (Shoemake 1985); its chord where a || b.

    Between two draws of noise the norm stays that of noise, which the straight line does not keep.
    """
    axes = tuple(range(1, a.ndim))
    norm_a, norm_b = a.square().sum(axes, keepdim=True).sqrt(), b.square().sum(axes, keepdim=True).sqrt()
    angle = ((a * b).sum(axes, keepdim=True) / (norm_a * norm_b)).clamp(-1, 1).acos()
    sine = angle.sin()
    straight = ~(sine > 1e-4)  # also where a norm is 0
    weights = [
        torch.where(straight, torch.full_like(sine, w), (w * angle).sin() / sine.clamp_min(1e-4))
        for w in (1 - share, share)
    ]
    assert math.isfinite(share)
    return weights[0] * a + weights[1] * b
