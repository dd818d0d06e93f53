"""What a pipeline is asked for: checked before anything is computed."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LARGEST_SIDE = 4096
MOST_PICTURES = 10_000
LARGEST_SEED = 2**63 - 1


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
    image: Any = None
    strength: float | None = None
    mask: Any = None
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    spacing: str | None = None
    sigmas: str | None = None
    clip_skip: int = 1
    prompt_syntax: str = "plain"
    long_prompts: bool = False
    towards: Sequence[tuple[str, float] | None] | None = None
    variation_seeds: int | Sequence[int] | None = None
    variation_strength: float = 0.0


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


def check_numbers(request: Request) -> None:
    """Eta, and the numbers of variations and of prompts on their way to others."""
    if not 0 <= request.eta <= 1:
        raise ValueError(f"eta = {request.eta} is not in 0..1 (0: deterministic, 1: as noisy as DDPM)")
    if not 0 <= request.variation_strength <= 1:
        raise ValueError(f"variation_strength = {request.variation_strength} is not in 0..1 (1: the variation seed's)")
    if (request.variation_seeds is None) != (request.variation_strength == 0):
        raise ValueError("variation_seeds and variation_strength (above 0) belong together: give both")
    for text, share in filter(None, request.towards or ()):
        if not 0 <= share <= 1:
            raise ValueError(f"towards: the share {share} of the way to {text!r} is not in 0..1")


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
    """A seed for each picture: given, counted up from one (variations share it), or drawn; None with generators."""
    seeds = request.seeds
    if request.generator is not None:
        if seeds is not None:
            raise ValueError("generator and seeds are both given: give one of them")
        return None
    if seeds is None:
        seeds = secrets.randbelow(2**32)
    step = 1 if request.variation_seeds is None else 0
    found = [seeds + k * step for k in range(count)] if isinstance(seeds, int) else list(seeds)
    if len(found) != count:
        raise ValueError(f"seeds has {len(found)} entries for {count} pictures: give one a picture, or one number")
    for k, seed in enumerate(found):
        if not 0 <= seed <= LARGEST_SEED:
            raise ValueError(f"seeds: {seed}, of picture {k}, is not in 0..2^63 - 1")
    return found
