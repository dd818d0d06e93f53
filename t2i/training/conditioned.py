"""Training samples of a conditioned generator, shared with fine-tuning: random draws, fixed validation losses."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from t2i import randomness
from t2i.conditioning import Conditioning
from t2i.data.cache import Cache
from t2i.generator.base import Generator, stack_draws

BINS = 10  # of timesteps, in the validation loss
VALIDATED = 512  # images in the validation loss, at most
GOLDEN = 0.6180339887498949  # the multiples of the golden ratio, modulo 1, fill [0, 1) evenly


def uniform(generators: Sequence[torch.Generator], dtype: torch.dtype | None = None) -> Tensor:
    """Returns one uniform number in [0, 1) from each sample's generator."""
    return torch.cat([torch.rand(1, generator=g, dtype=dtype) for g in generators])


def integers(generators: Sequence[torch.Generator], low: int, high: int) -> Int[Tensor, " b"]:
    """Returns one integer in low..high-1 from each sample's generator."""
    return torch.cat([torch.randint(low, high, (1,), generator=g) for g in generators])


def normal(generators: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    """Returns standard normal noise of `shape` from each sample's generator."""
    return torch.stack([torch.randn(tuple(shape), generator=g) for g in generators])


def biased_timesteps(
    t: Int[Tensor, " b"], generators: Sequence[torch.Generator], T: int, bias: float
) -> Int[Tensor, " b"]:
    """Turns uniform t in 1..T into t = T u^(1/bias) with u uniform in [0, 1): a bias above 1 favours noisy t."""
    if bias == 1:
        return t
    u = (t - uniform(generators, torch.float64)) / T
    return (T * u ** (1 / bias)).ceil().long().clamp(1, T)


def validation_places(
    rows: Int[Tensor, " b"], draw: Int[Tensor, " b"] | int = 0, draws: int = 1
) -> Float64[Tensor, " b"]:
    """Returns where in the noise range, [0, 1), each row is validated: draw k of `draws` lies in its k-th part."""
    return (draw + (rows.double() * GOLDEN) % 1) / draws


@torch.no_grad()
def validation_losses(
    generator: Generator,
    network: nn.Module,
    cache: Cache,
    scale: float,
    cond: Callable[[Int[Tensor, " b"]], Conditioning],
    stream: Callable[[int, int], Sequence[int | str]],
    draws: int = 1,
    batch: int = 64,
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """Returns the losses of the first cached images at `draws` fixed (t, noise) each, and these t.

    `stream(row, k)` names the random stream of the noise of draw k.
    """
    device = next(generator.network.parameters()).device
    pairs = torch.cartesian_prod(torch.arange(min(VALIDATED, len(cache))), torch.arange(draws))
    losses, timesteps = [], []
    for part in pairs.split(batch):
        rows = part[:, 0]
        code = cache.moments(rows)[0] * scale
        places = validation_places(rows, part[:, 1], draws).tolist()
        streams = [randomness.generator(0, *stream(row, k)) for row, k in part.tolist()]
        fixed = stack_draws(generator.draw(x, g, at) for x, g, at in zip(code, streams, places, strict=True))
        timesteps.append(fixed["t"])
        fixed = {name: value.to(device) for name, value in fixed.items()}
        losses.append(generator.loss(network, code.to(device), cond(rows).to(device), fixed).float().cpu())
    return torch.cat(losses).view(-1, draws), torch.cat(timesteps).view(-1, draws)


def timestep_bins(t: Int[Tensor, "n k"], T: int) -> dict[str, Bool[Tensor, "n k"]]:
    """Returns a mask of `t` for each of ten equal bins of 1..T that is not empty, by the bin's name ("1..100")."""
    bins = (t - 1) * BINS // T
    return {f"{b * T // BINS + 1}..{(b + 1) * T // BINS}": bins == b for b in bins.unique().tolist()}


def loss_figures(losses: Float[Tensor, "n k"], t: Int[Tensor, "n k"], T: int) -> dict[str, float]:
    """Returns the mean validation loss, overall and by timestep bin."""
    by_bin = {f"loss[{name}]": losses[mask].mean().item() for name, mask in timestep_bins(t, T).items()}
    return {"loss": losses.mean().item()} | by_bin
