"""The noise of every image, from its own generator: it depends on neither batch, device nor dtype."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from t2i.errors import ConfigError
from t2i.pipeline.request import Request

START, IMAGE, MASKED = "start", "image", "masked"


class Drawn(NamedTuple):
    """The noise of a batch: `start` for the latents, `image` and `masked` to sample the posteriors of the start image
    and of its kept part, `steps` for the solver's steps that take some."""

    start: Float[Tensor, "b c h w"]
    image: Float[Tensor, "b c h w"] | None
    masked: Float[Tensor, "b c h w"] | None
    steps: list[Tensor]


NoiseSource = Callable[[int, int], Drawn]  # (first image, the one after the last) -> their noise


def noise_source(request: Request, count: int, shape: tuple[int, ...], order: Sequence[str], steps: int) -> NoiseSource:
    """Returns the source of the noise of `count` images, drawn as in diffusers, in `order` and then for `steps` steps.

    Each image has its own generator, or all share one. Noise is drawn in float32 on the generator's device.
    """
    given = given_latents(request, count, shape)
    seeds, other = request.seeds, variations(request, shape)
    names = [name for name in order if given is None or name != START]

    def finish(before: dict[str, Tensor], drawn: list[Tensor], a: int, b: int) -> Drawn:
        start = before[START] if given is None else given[a:b]
        if other is not None:
            start = slerp(start, other(a, b), request.variation_strength)
        return Drawn(start, before.get(IMAGE), before.get(MASKED), drawn)

    if seeds is not None:
        assert not isinstance(seeds, int), "the seeds of a resolved request are a list"

        def from_seeds(a: int, b: int) -> Drawn:
            generators = [torch.Generator().manual_seed(seed) for seed in seeds[a:b]]
            before = {name: draw(generators, 1, shape) for name in names}
            return finish(before, [draw(generators, 1, shape) for _ in range(steps)], a, b)

        return from_seeds
    generators = (
        [request.generator] if isinstance(request.generator, torch.Generator) else list(request.generator or ())
    )
    one = isinstance(request.generator, torch.Generator)
    if not one and len(generators) != count:
        raise ConfigError("generator", f"{len(generators)} given, {count} needed: one an image, or one for all")
    rows = {name: count if name == START else 1 for name in names} if one else dict.fromkeys(names, 1)
    before = {name: draw(generators, rows[name], shape).expand(count, *shape) for name in names}
    drawn = [draw(generators, count if one else 1, shape) for _ in range(steps)]
    return lambda a, b: finish({k: x[a:b] for k, x in before.items()}, [x[a:b] for x in drawn], a, b)


def given_latents(request: Request, count: int, shape: tuple[int, ...]) -> Tensor | None:
    """Returns the latents that a caller gives in place of noise, in float32."""
    given = request.latents
    if given is None:
        return None
    if tuple(given.shape) != (count, *shape):
        raise ConfigError("latents", f"has shape {tuple(given.shape)}; {(count, *shape)} is needed")
    if not given.isfinite().all():
        raise ConfigError("latents", "holds non-finite values")
    return given.float()


def variations(request: Request, shape: tuple[int, ...]) -> Callable[[int, int], Tensor] | None:
    """Returns the source of the noise towards which each image's own is rotated, if there are variations."""
    seeds = request.variation_seeds
    if seeds is None:
        return None
    assert not isinstance(seeds, int), "the seeds of a resolved request are a list"
    return lambda a, b: draw([torch.Generator().manual_seed(seed) for seed in seeds[a:b]], 1, shape)


def draw(generators: Sequence[torch.Generator], rows: int, shape: tuple[int, ...]) -> Float[Tensor, "b c h w"]:
    """Returns `rows` rows of standard normal noise from each generator."""
    return torch.cat([torch.randn((rows, *shape), generator=g, device=g.device).cpu() for g in generators])


def slerp(a: Float[Tensor, "b *d"], b: Float[Tensor, "b *d"], fraction: float) -> Float[Tensor, "b *d"]:
    """Returns the point at `fraction` of the arc from a to b, row by row (Shoemake 1985); on the chord where a || b.

    Between two draws of noise the norm stays that of noise, which the straight line does not keep.
    """
    axes = tuple(range(1, a.ndim))
    norm_a, norm_b = a.square().sum(axes, keepdim=True).sqrt(), b.square().sum(axes, keepdim=True).sqrt()
    angle = ((a * b).sum(axes, keepdim=True) / (norm_a * norm_b)).clamp(-1, 1).acos()
    sine = angle.sin()
    straight = ~(sine > 1e-4)  # also where a norm is 0
    weights = [
        torch.where(straight, torch.full_like(sine, w), (w * angle).sin() / sine.clamp_min(1e-4))
        for w in (1 - fraction, fraction)
    ]
    assert math.isfinite(fraction)
    return weights[0] * a + weights[1] * b
