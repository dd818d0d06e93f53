"""What a pipeline is asked for: checked before anything is computed, and the noise of every picture."""

import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from t2i.conditioning import Conditioning

LARGEST_SIDE = 4096
MOST_PICTURES = 10_000
LARGEST_SEED = 2**63 - 1
# (first picture, the one after the last) -> the initial latents, then the noise of each step that draws some
Noise = Callable[[int, int], list[Tensor]]


@dataclass(frozen=True, kw_only=True)
class Request:
    """The arguments of `Pipeline.__call__`, by the field's public names; None is the model's default."""

    prompts: str | Sequence[Any] | None = None
    negative_prompt: str | Sequence[Any] | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    solver: str | None = None
    eta: float = 0.0
    generator: torch.Generator | Sequence[torch.Generator] | None = None
    seeds: int | Sequence[int] | None = None
    num_images_per_prompt: int = 1
    height: int | None = None
    width: int | None = None
    latents: Tensor | None = None
    prompt_embeds: Tensor | None = None
    negative_prompt_embeds: Tensor | None = None
    batch_size: int = 8


@dataclass(frozen=True)
class Texts:
    """Token states, each text once, and which of them each prompt and its negative have."""

    states: Conditioning
    rows: Int[Tensor, " p"]
    null_rows: Int[Tensor, " p"]
    truncated: list[str]
    negative_truncated: list[str]


@dataclass(frozen=True)
class Job:
    """A checked request with its token states."""

    texts: Texts
    copies: int
    count: int
    batch_size: int
    steps: int
    guidance: float
    solver: str
    eta: float
    seeds: list[int] | None
    noise: Noise
    height: int
    width: int
    timesteps: list[int]

    @property
    def batches(self) -> list[tuple[int, int]]:
        """The pictures cut into batches, (first, the one after the last)."""
        return [(a, min(a + self.batch_size, self.count)) for a in range(0, self.count, self.batch_size)]


def prompt_list(value: str | Sequence[Any] | None, name: str) -> list[str]:
    """One prompt or several as a list of strings."""
    prompts = [value] if isinstance(value, str) else list(value or ())
    if not prompts:
        raise ValueError(f"{name} is empty: give at least one prompt")
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise ValueError(f"{name}[{i}] = {prompt!r} is {type(prompt).__name__}, not a string")
    return prompts


def negative_list(value: str | Sequence[Any] | None, count: int) -> list[str]:
    """A negative prompt for each prompt; without any, the null "" of training."""
    if value is None or isinstance(value, str):
        return [value or ""] * count
    negatives = prompt_list(value, "negative_prompt")
    if len(negatives) != count:
        raise ValueError(f"negative_prompt has {len(negatives)} entries for {count} prompts: give one, or one a prompt")
    return negatives


def check_embeds(name: str, embeds: Tensor, width: int, rows: Sequence[int] = ()) -> None:
    """Token states (prompts, tokens, width) that a caller brings."""
    if embeds.ndim != 3 or embeds.shape[2] != width or len(embeds) == 0:
        raise ValueError(f"{name} has shape {tuple(embeds.shape)}: (prompts, tokens, {width}) is needed")
    if rows and len(embeds) not in rows:
        raise ValueError(f"{name} has {len(embeds)} rows: give 1, or one a prompt ({rows[-1]})")
    if not embeds.isfinite().all():
        raise ValueError(f"{name} holds non-finite values")


def check_counts(request: Request, prompts: int) -> int:
    """The number of pictures."""
    for name in ("num_images_per_prompt", "batch_size"):
        if (value := getattr(request, name)) < 1:
            raise ValueError(f"{name} = {value} must be at least 1")
    count = prompts * request.num_images_per_prompt
    if count > MOST_PICTURES:
        raise ValueError(f"{count} pictures are more than one request may ask for, {MOST_PICTURES}: split it")
    return count


def check_numbers(guidance: float, eta: float) -> None:
    """Guidance and eta."""
    if not (math.isfinite(guidance) and guidance >= 0):
        raise ValueError(f"guidance_scale = {guidance} must be a number >= 0; 1 is no guidance")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta = {eta} is not in 0..1 (0: deterministic, 1: as noisy as DDPM)")


def latent_size(request: Request, default: tuple[int, int] | None, factor: int) -> tuple[int, int]:
    """(height, width) of the latents; a side is a multiple of the autoencoder's factor, and of nothing else."""
    if request.latents is not None and request.latents.ndim == 4:
        h, w = request.latents.shape[2:]
        default = (h * factor, w * factor)
    sides = []
    for i, (name, side) in enumerate({"height": request.height, "width": request.width}.items()):
        if side is None and default is None:
            raise ValueError(f"unet/config.json has no `sample_size`: give {name}")
        side = default[i] if side is None and default else side
        assert side is not None
        if not 0 < side <= LARGEST_SIDE:
            raise ValueError(f"{name} = {side} is not in 1..{LARGEST_SIDE}")
        if side % factor:
            near = max(factor, round(side / factor) * factor)
            raise ValueError(f"{name} = {side} is not a multiple of {factor}, the latents' factor: {near} is near")
        sides.append(side // factor)
    return sides[0], sides[1]


def seed_list(request: Request, count: int) -> list[int] | None:
    """A seed for each picture: given, counted up from one, or drawn; None where generators are given."""
    seeds = request.seeds
    if request.generator is not None:
        if seeds is not None:
            raise ValueError("generator and seeds are both given: give one of them")
        return None
    if seeds is None:
        seeds = secrets.randbelow(2**32)
    found = [seeds + k for k in range(count)] if isinstance(seeds, int) else list(seeds)
    if len(found) != count:
        raise ValueError(f"seeds has {len(found)} entries for {count} pictures: give one a picture, or one number")
    for k, seed in enumerate(found):
        if not 0 <= seed <= LARGEST_SEED:
            raise ValueError(f"seeds: {seed}, of picture {k}, is not in 0..2^63 - 1")
    return found


def noise_source(request: Request, seeds: list[int] | None, count: int, shape: tuple[int, ...], draws: int) -> Noise:
    """Noise as stock draws it: for each picture from its own generator, or from one generator for all at once.

    Always in float32 and where the generator lives, so that a picture depends on neither batch, device nor dtype.
    """
    given = request.latents
    if given is not None and tuple(given.shape) != (count, *shape):
        raise ValueError(f"latents has shape {tuple(given.shape)}: {(count, *shape)} is needed")
    if given is not None and not given.isfinite().all():
        raise ValueError("latents holds non-finite values")
    first = [] if given is None else [given.float()]
    draws += 1 - len(first)
    if seeds is not None:

        def from_seeds(a: int, b: int) -> list[Tensor]:
            own = [torch.Generator().manual_seed(seed) for seed in seeds[a:b]]
            return [x[a:b] for x in first] + draw(own, 1, shape, draws)

        return from_seeds
    generators = (
        [request.generator] if isinstance(request.generator, torch.Generator) else list(request.generator or ())
    )
    one = isinstance(request.generator, torch.Generator)
    if not one and len(generators) != count:
        raise ValueError(f"generator has {len(generators)} entries for {count} pictures: give one, or one a picture")
    drawn = first + draw(generators, count if one else 1, shape, draws)
    return lambda a, b: [x[a:b] for x in drawn]


def draw(
    generators: Sequence[torch.Generator], rows: int, shape: tuple[int, ...], draws: int
) -> list[Float[Tensor, "b c h w"]]:
    """`draws` tensors of `rows` rows from each generator."""
    return [
        torch.cat([torch.randn((rows, *shape), generator=g, device=g.device).cpu() for g in generators])
        for _ in range(draws)
    ]
