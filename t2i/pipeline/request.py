"""Requests to a pipeline: their arguments, the checks of these, and the same with the model's defaults filled in."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from t2i.errors import ConfigError, check_text
from t2i.pipeline.settings import LARGEST_SEED

LARGEST_SIDE = 4096
MOST_IMAGES = 10_000


@dataclass(frozen=True, kw_only=True)
class Request:
    """The arguments of `Pipeline.__call__`, by diffusers' names; None stands for the model's default.

    `clip_skip` counts as A1111 does: 1 is the last layer, 2 the one before.
    """

    prompt: str | Sequence[Any] | None = None
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
    mask_image: Any = None
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    spacing: str | None = None
    sigmas: str | None = None
    clip_skip: int | None = None
    prompt_syntax: str = "plain"
    long_prompts: bool = False
    towards: Sequence[tuple[str, float] | None] | None = None
    variation_seeds: int | Sequence[int] | None = None
    variation_strength: float = 0.0


def prompt_list(value: str | Sequence[Any] | None, name: str) -> list[str]:
    """Returns one prompt or several as a list of strings."""
    prompts = [value] if isinstance(value, str) else list(value or ())
    if not prompts:
        raise ConfigError(name, "empty; give at least one prompt")
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise ConfigError(f"{name}[{i}]", f"{type(prompt).__name__}, not a string", prompt)
        check_text(prompt, name if len(prompts) == 1 else f"{name}[{i}]")
    return prompts


def negative_list(value: str | Sequence[Any] | None, count: int) -> list[str]:
    """Returns a negative prompt for each of `count` prompts; by default "", the unconditional caption of training."""
    if value is None or isinstance(value, str):
        check_text(value or "", "negative_prompt")
        return [value or ""] * count
    negatives = prompt_list(value, "negative_prompt")
    if len(negatives) != count:
        raise ConfigError("negative_prompt", f"{len(negatives)} given, {count} needed: one a prompt, or one for all")
    return negatives


def check_embeds(name: str, embeds: Tensor, width: int, rows: Sequence[int] = ()) -> None:
    """Raises ConfigError unless given token states have the shape (prompts, tokens, width) and are finite."""
    if embeds.ndim != 3 or embeds.shape[2] != width or len(embeds) == 0:
        raise ConfigError(name, f"has shape {tuple(embeds.shape)}; (prompts, tokens, {width}) is needed")
    if rows and len(embeds) not in rows:
        raise ConfigError(name, f"has {len(embeds)} rows; give 1, or one a prompt ({rows[-1]})")
    if not embeds.isfinite().all():
        raise ConfigError(name, "holds non-finite values")


def check_counts(request: Request, prompts: int) -> int:
    """Returns the number of images; raises ConfigError for too few or too many."""
    for name in ("num_images_per_prompt", "batch_size"):
        if (value := getattr(request, name)) < 1:
            raise ConfigError(name, "must be at least 1", value)
    count = prompts * request.num_images_per_prompt
    if count > MOST_IMAGES:
        raise ValueError(f"{count} images are more than one request may ask for, {MOST_IMAGES}: split it")
    return count


def check_numbers(request: Request) -> None:
    """Raises ConfigError for an eta, a variation or an interpolation outside of 0..1."""
    if not 0 <= request.eta <= 1:
        raise ConfigError("eta", "not in 0..1 (0: deterministic, 1: as noisy as DDPM)", request.eta)
    if not 0 <= request.variation_strength <= 1:
        raise ConfigError("variation_strength", "not in 0..1 (1: the variation seed's)", request.variation_strength)
    if request.variation_seeds is None and request.variation_strength != 0:
        raise ConfigError("variation_seeds", "needed where variation_strength is given")
    if request.variation_seeds is not None and request.variation_strength == 0:
        raise ConfigError("variation_strength", "needed, above 0, where a variation seed is given")
    for prompt, fraction in filter(None, request.towards or ()):
        if not 0 <= fraction <= 1:
            raise ConfigError("towards", f"the fraction {fraction} of the way to {prompt!r} is not in 0..1")


def latent_size(request: Request, default: tuple[int, int] | None, factor: int) -> tuple[int, int]:
    """Returns (height, width) of the latents; a side is a multiple of the autoencoder's factor, and of nothing else."""
    if request.latents is not None and request.latents.ndim == 4:
        h, w = request.latents.shape[2:]
        default = (h * factor, w * factor)
    sides = []
    for i, (name, side) in enumerate({"height": request.height, "width": request.width}.items()):
        if side is None and default is None:
            raise ConfigError(name, "needed, as unet/config.json has no `sample_size`")
        side = default[i] if side is None and default else side
        assert side is not None
        if not 0 < side <= LARGEST_SIDE:
            raise ConfigError(name, f"not in 1..{LARGEST_SIDE}", side)
        if side % factor:
            near = max(factor, round(side / factor) * factor)
            raise ConfigError(name, f"not a multiple of {factor}, the latents' factor; {near} is near", side)
        sides.append(side // factor)
    return sides[0], sides[1]


def seed_list(request: Request, count: int) -> list[int] | None:
    """Returns a seed for each image: given, counted up from one, or random; None with generators.

    A single seed is shared by all images where they are variations.
    """
    seeds = request.seeds
    if request.generator is not None:
        if seeds is not None:
            raise ConfigError("seeds", "given beside generator; give one of the two")
        return None
    if seeds is None:
        seeds = secrets.randbelow(2**32)
    return _counted("seeds", seeds, count, 1 if request.variation_seeds is None else 0)


def variation_seed_list(request: Request, count: int) -> list[int] | None:
    """Returns a variation seed for each image, given or counted up from one; None without variations."""
    return None if request.variation_seeds is None else _counted("variation_seeds", request.variation_seeds, count, 1)


def _counted(name: str, seeds: int | Sequence[int], count: int, step: int) -> list[int]:
    each = [seeds + k * step for k in range(count)] if isinstance(seeds, int) else list(seeds)
    if len(each) != count:
        raise ConfigError(name, f"{len(each)} given, {count} needed: one an image, or one number")
    for k, seed in enumerate(each):
        if not 0 <= seed <= LARGEST_SEED:
            raise ConfigError(name, f"{seed}, of image {k}, is not in 0..2^63 - 1")
    return each
