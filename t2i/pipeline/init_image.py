"""Start images: image-to-image (Meng et al. 2021, 2108.01073) and inpainting, as in diffusers."""

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from t2i.autoencoder.kl import AutoencoderKL, Gaussian
from t2i.autoencoder.runner import VAERunner
from t2i.data.transforms import crop, to_float
from t2i.diffusion.schedule import Level
from t2i.errors import ConfigError
from t2i.generator.base import SamplingPlan
from t2i.generator.latent_diffusion import LatentDiffusion
from t2i.pipeline.noise import IMAGE, MASKED, START, Drawn
from t2i.pipeline.request import Request

STRENGTH = {False: 0.8, True: 1.0}  # without a mask, with one: diffusers' defaults


@dataclass(frozen=True)
class Init:
    """An encoded start image; with `mask` (1: repaint) it is inpainting, by concatenation if `joined`.

    `pure`: sampling starts from noise alone, as in diffusers with a mask at full strength (and only there).
    """

    image: Gaussian | None
    masked: Gaussian | None
    mask: Float[Tensor, "1 1 h w"] | None
    joined: bool
    pure: bool
    scale: float

    def begin(self, drawn: Drawn, level: Level) -> Float[Tensor, "b c h w"]:
        """Returns the latents at `level`, where sampling starts."""
        if self.pure:
            return drawn.start
        return level.alpha * self.latents(drawn) + level.sigma * drawn.start

    def latents(self, drawn: Drawn) -> Float[Tensor, "b c h w"]:
        """Returns the image's own scaled latents, a posterior sample."""
        assert self.image is not None and drawn.image is not None
        return self.scale * self.image.sample(drawn.image.to(self.image.mean.device))

    def extra(self, drawn: Drawn) -> Float[Tensor, "b e h w"]:
        """Returns the mask and the latents of the kept part, which a U-Net for inpainting reads after x."""
        assert self.mask is not None and self.masked is not None and drawn.masked is not None
        kept = self.scale * self.masked.sample(drawn.masked.to(self.masked.mean.device))
        return torch.cat([self.mask.to(kept.device).expand(len(kept), -1, -1, -1), kept], dim=1)

    def keep(self, x: Tensor, latents: Tensor, noise: Tensor, level: Level) -> Float[Tensor, "b c h w"]:
        """Returns x where the mask is 1, elsewhere the image's latents at `level`."""
        assert self.mask is not None
        mask = self.mask.to(x.device, x.dtype)
        return (1 - mask) * (level.alpha * latents + level.sigma * noise) + mask * x


def resolve_strength(request: Request, joined: bool) -> float | None:
    """Returns the strength of image-to-image and inpainting; None without an image.

    Raises ConfigError for an image, a mask or a strength that lacks another one; `joined`: a U-Net for inpainting.
    """
    if request.image is None:
        for name in ("mask_image", "strength"):
            if getattr(request, name) is not None:
                raise ConfigError("image", f"needed where {name} is given: the image to start from")
        if joined:
            raise ConfigError("image", "needed beside a mask, as this U-Net was trained for inpainting")
        return None
    if joined and request.mask_image is None:
        raise ConfigError("mask_image", "needed, as this U-Net was trained for inpainting (all white repaints all)")
    strength = STRENGTH[request.mask_image is not None] if request.strength is None else request.strength
    if not 0 < strength <= 1:
        raise ConfigError("strength", "not in 0..1, 0 excluded (1: nothing is left of the image)", strength)
    return strength


def plan_from_image(plan: SamplingPlan, steps: int, strength: float, masked: bool) -> SamplingPlan:
    """Returns the plan without the steps that `strength` skips; with a mask at full strength, x is pure noise."""
    start = steps - min(int(steps * strength), steps)
    if start >= len(plan.timesteps):
        raise ConfigError("strength", f"leaves none of {steps} steps; raise it or num_inference_steps", strength)
    return plan if masked and strength == 1 else plan.starting_at(start)


def noise_order(strength: float | None, masked: bool, joined: bool) -> tuple[str, ...]:
    """Returns the noises that are drawn for an image before those of its steps, in diffusers' order."""
    if strength is None:
        return (START,)
    if joined and strength == 1:
        return (START, MASKED)
    return (IMAGE, START, MASKED) if masked else (IMAGE, START)


def prepare_init(request: Request, vae: AutoencoderKL, vae_runner: VAERunner, joined: bool) -> Init | None:
    """Encodes the start image (and its kept part under a mask) once, for a request whose defaults are filled in."""
    if request.image is None:
        return None
    assert request.height is not None and request.width is not None
    size = (request.height, request.width)
    device = next(vae.parameters()).device
    pixels = start_pixels(request.image, size)
    mask = masked = image = None
    if request.mask_image is not None:
        full = mask_pixels(request.mask_image, _size_of(request.image), size)
        mask = F.interpolate(full, size=(size[0] // vae.factor, size[1] // vae.factor))
        masked = vae_runner.encode(vae, (pixels * (1 - full)).to(device)) if joined else None
    if IMAGE in noise_order(request.strength, mask is not None, joined):
        image = vae_runner.encode(vae, pixels.to(device))
    pure = mask is not None and request.strength == 1
    return Init(image, masked, mask, joined, pure, vae.config.scaling_factor)


def start_pixels(image: Any, size: tuple[int, int]) -> Float[Tensor, "1 3 h w"]:
    """Returns an image, or floats in [-1, 1] of shape (3, h, w) or (1, 3, h, w), at `size` = (height, width)."""
    if isinstance(image, Tensor):
        tensor = image[None] if image.ndim == 3 else image
        if tuple(tensor.shape) != (1, 3, *size):
            raise ConfigError(
                "image", f"has shape {tuple(image.shape)}; (3, {size[0]}, {size[1]}) in [-1, 1] is needed"
            )
        if not tensor.isfinite().all() or tensor.abs().max() > 1:
            raise ConfigError("image", "holds values outside of [-1, 1]")
        return tensor.float().cpu()
    if not isinstance(image, Image.Image):
        raise ConfigError("image", f"{type(image).__name__}, not a PIL image or a tensor")
    if image.size != (size[1], size[0]):
        cut = image.width * size[0] != image.height * size[1]
        change = "cropped in the middle and resized" if cut else "resized"
        warnings.warn(f"the image of {image.width}x{image.height} is {change} to {size[1]}x{size[0]}", stacklevel=4)
    return to_float(crop(image.convert("RGB"), (size[1], size[0])))[None]


def mask_pixels(mask: Any, image_size: tuple[int, int], size: tuple[int, int]) -> Float[Tensor, "1 1 h w"]:
    """Returns 1 where `mask` is at least half white; it has the image's size and is cropped with it."""
    if not isinstance(mask, Image.Image):
        raise ConfigError("mask_image", f"{type(mask).__name__}, not a PIL image (white is repainted)")
    if mask.size != image_size:
        raise ConfigError(
            "mask_image",
            f"is {mask.width}x{mask.height}, but the image {image_size[0]}x{image_size[1]}; give them the same size",
        )
    levels = crop(mask.convert("L").convert("RGB"), (size[1], size[0]))[:1]
    full = (levels >= 128).float()[None]
    if not full.any():
        raise ConfigError("mask_image", "has nothing white in it; white is repainted")
    return full


def _size_of(image: Any) -> tuple[int, int]:
    """Returns (width, height)."""
    return (image.shape[-1], image.shape[-2]) if isinstance(image, Tensor) else image.size


class Joined(nn.Module):
    """A first layer that reads `extra` channels after those of its input; guidance's doubled batch reads them twice."""

    def __init__(self, layer: nn.Module, extra: Float[Tensor, "b e h w"]) -> None:
        super().__init__()
        self.layer, self.extra = layer, extra

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.cat([x, self.extra.repeat(len(x) // len(self.extra), 1, 1, 1).to(x.dtype)], dim=1))


def joined_generator(generator: LatentDiffusion, extra: Float[Tensor, "b e h w"]) -> LatentDiffusion:
    """Returns a twin of `generator` for one batch, whose U-Net reads `extra`; it shares the weights."""
    unet, twin = copy.copy(generator.unet), copy.copy(generator)
    if (call := generator.unet._compiled_call_impl) is not None:
        joined = Joined(nn.Identity(), extra)
        unet._compiled_call_impl = lambda x, t, cond: call(joined(x), t, cond)
    else:
        if unet.config.center_input_sample:
            extra = 2 * extra - 1
        unet.__dict__["_modules"] = {**unet._modules, "conv_in": Joined(unet.conv_in, extra)}
    twin.unet = unet
    return twin
