"""Pictures to begin from: image-to-image (Meng et al. 2021, 2108.01073) and inpainting, as stock does."""

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
from t2i.generator.latent_diffusion import LatentDiffusion
from t2i.pipeline.noise import IMAGE, MASKED, START, Drawn
from t2i.pipeline.request import Request

STRENGTH = {False: 0.8, True: 1.0}  # without a mask, with one: what stock takes


@dataclass(frozen=True)
class Plan:
    """What noise is drawn, in which order, and how many of the first steps are skipped."""

    order: tuple[str, ...] = (START,)
    start: int = 0
    strength: float | None = None


@dataclass(frozen=True)
class Init:
    """A picture to begin from; with `mask` (1: repaint) it is inpainting, by concatenation if `joined`.

    `pure`: the latents begin as noise alone, which is what stock does with a mask at full strength (and only there).
    """

    image: Gaussian | None
    masked: Gaussian | None
    mask: Float[Tensor, "1 1 h w"] | None
    joined: bool
    pure: bool
    scale: float

    def begin(self, drawn: Drawn, level: Level) -> Float[Tensor, "b c h w"]:
        """The latents at `level`, where sampling begins."""
        if self.pure:
            return drawn.start
        return level.alpha * self.latents(drawn) + level.sigma * drawn.start

    def latents(self, drawn: Drawn) -> Float[Tensor, "b c h w"]:
        """The picture's own scaled latents, a posterior sample."""
        assert self.image is not None and drawn.image is not None
        return self.scale * self.image.sample(drawn.image.to(self.image.mean.device))

    def extra(self, drawn: Drawn) -> Float[Tensor, "b e h w"]:
        """The mask and the latents of what is kept, as a U-Net for inpainting reads them after the noisy latents."""
        assert self.mask is not None and self.masked is not None and drawn.masked is not None
        kept = self.scale * self.masked.sample(drawn.masked.to(self.masked.mean.device))
        return torch.cat([self.mask.to(kept.device).expand(len(kept), -1, -1, -1), kept], dim=1)

    def keep(self, x: Tensor, latents: Tensor, noise: Tensor, level: Level) -> Float[Tensor, "b c h w"]:
        """x where the mask says so, elsewhere the picture at `level`."""
        assert self.mask is not None
        mask = self.mask.to(x.device, x.dtype)
        return (1 - mask) * (level.alpha * latents + level.sigma * noise) + mask * x


def plan(request: Request, steps: int, walk: int, joined: bool) -> Plan:
    """How a request begins; `walk` is the number of steps that the levels make, `joined` a U-Net for inpainting."""
    if request.image is None:
        for name in ("mask", "strength"):
            if getattr(request, name) is not None:
                raise ValueError(f"{name} is given without an image: give image, the picture to begin from")
        if joined:
            raise ValueError("this U-Net was trained for inpainting: give image and mask")
        return Plan()
    inpaint = request.mask is not None
    if joined and not inpaint:
        raise ValueError("this U-Net was trained for inpainting: give mask beside image (all white repaints all of it)")
    strength = STRENGTH[inpaint] if request.strength is None else request.strength
    if not 0 < strength <= 1:
        raise ValueError(f"strength = {strength} is not in 0..1, 0 excluded (1: nothing is left of the picture)")
    start = steps - min(int(steps * strength), steps)
    if start >= walk:
        raise ValueError(
            f"strength = {strength} of num_inference_steps = {steps} leaves no step to take: raise one of the two"
        )
    order = (IMAGE, START, MASKED) if inpaint else (IMAGE, START)
    if joined and strength == 1:
        order = (START, MASKED)
    return Plan(order, start, strength)


def prepare_init(
    request: Request, begin: Plan, size: tuple[int, int], vae: AutoencoderKL, vae_runner: VAERunner, joined: bool
) -> Init | None:
    """Encode the picture (and what the mask keeps of it) once, for a request of `size` = (height, width) pixels."""
    if begin.strength is None:
        return None
    device = next(vae.parameters()).device
    pixels = picture(request.image, size)
    mask = masked = None
    if request.mask is not None:
        full = mask_pixels(request.mask, _size_of(request.image), size)
        mask = F.interpolate(full, size=(size[0] // vae.factor, size[1] // vae.factor))
        masked = vae_runner.encode(vae, (pixels * (1 - full)).to(device)) if joined else None
    image = vae_runner.encode(vae, pixels.to(device)) if IMAGE in begin.order else None
    pure = mask is not None and begin.strength == 1
    return Init(image, masked, mask, joined, pure, vae.config.scaling_factor)


def picture(image: Any, size: tuple[int, int]) -> Float[Tensor, "1 3 h w"]:
    """A picture, or floats in [-1, 1] of shape (3, h, w) or (1, 3, h, w), at `size` = (height, width)."""
    if isinstance(image, Tensor):
        tensor = image[None] if image.ndim == 3 else image
        if tuple(tensor.shape) != (1, 3, *size):
            raise ValueError(f"image has shape {tuple(image.shape)}: (3, {size[0]}, {size[1]}) is needed, in [-1, 1]")
        if not tensor.isfinite().all() or tensor.abs().max() > 1:
            raise ValueError("image holds values outside of [-1, 1]")
        return tensor.float().cpu()
    if not isinstance(image, Image.Image):
        raise ValueError(f"image is {type(image).__name__}, not a picture or a tensor")
    if image.size != (size[1], size[0]):
        cut = image.width * size[0] != image.height * size[1]
        change = "cropped in the middle and resized" if cut else "resized"
        warnings.warn(f"the image of {image.width}x{image.height} is {change} to {size[1]}x{size[0]}", stacklevel=4)
    return to_float(crop(image.convert("RGB"), (size[1], size[0])))[None]


def mask_pixels(mask: Any, image_size: tuple[int, int], size: tuple[int, int]) -> Float[Tensor, "1 1 h w"]:
    """1 where `mask` is at least half white; it has the image's size (width, height) and goes where that goes."""
    if not isinstance(mask, Image.Image):
        raise ValueError(f"mask is {type(mask).__name__}, not a picture (white is repainted)")
    if mask.size != image_size:
        raise ValueError(
            f"mask is {mask.width}x{mask.height}, but image {image_size[0]}x{image_size[1]}: give them the same size"
        )
    levels = crop(mask.convert("L").convert("RGB"), (size[1], size[0]))[:1]
    full = (levels >= 128).float()[None]
    if not full.any():
        raise ValueError("mask has nothing white in it: white is what is repainted")
    return full


def _size_of(image: Any) -> tuple[int, int]:
    """(width, height)."""
    return (image.shape[-1], image.shape[-2]) if isinstance(image, Tensor) else image.size


class Joined(nn.Module):
    """A first layer that reads `extra` channels after those of its input; guidance's doubled batch reads them twice."""

    def __init__(self, layer: nn.Module, extra: Float[Tensor, "b e h w"]) -> None:
        super().__init__()
        self.layer, self.extra = layer, extra

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.cat([x, self.extra.repeat(len(x) // len(self.extra), 1, 1, 1).to(x.dtype)], dim=1))


def joined_generator(generator: LatentDiffusion, extra: Float[Tensor, "b e h w"]) -> LatentDiffusion:
    """A twin of `generator` for one batch, whose U-Net reads `extra`; it shares the weights and is not for training."""
    unet, twin = copy.copy(generator.unet), copy.copy(generator)
    if unet.config.center_input_sample:
        extra = 2 * extra - 1
    unet.__dict__["_modules"] = {**unet._modules, "conv_in": Joined(unet.conv_in, extra)}
    twin.unet = unet
    return twin
