"""Images to [-1, 1] and back: the one place for uint8 at the border."""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from t2i.errors import RunFailed

TRANSFORM = "short side, bicubic with antialias, centre crop, v1"  # part of a cache's key: change it with `crop`


def crop(image: Image.Image, size: int | tuple[int, int]) -> UInt8[Tensor, "3 h w"]:
    """Returns the largest centred part of that shape, resized to (width, height) by Pillow's BICUBIC (antialiased)."""
    width, height = (size, size) if isinstance(size, int) else size
    scale = min(image.width / width, image.height / height)
    left, top = (image.width - width * scale) / 2, (image.height - height * scale) / 2
    box = (max(left, 0.0), max(top, 0.0), min(image.width - left, image.width), min(image.height - top, image.height))
    resized = image.resize((width, height), Image.Resampling.BICUBIC, box=box)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()


def to_float(pixels: UInt8[Tensor, "*b 3 h w"]) -> Float[Tensor, "*b 3 h w"]:
    """Maps 0..255 to [-1, 1]."""
    return pixels.float() / 127.5 - 1


def prepare(image: Image.Image, size: int | tuple[int, int]) -> Float[Tensor, "3 h w"]:
    """Returns `crop` as floats in [-1, 1]; `size` is the side or (width, height)."""
    return to_float(crop(image, size))


def to_pixels(images: Float[Tensor, "b 3 h w"]) -> list[Image.Image]:
    """Maps [-1, 1] to RGB images, rounded and clamped; raises RunFailed for non-finite values."""
    if not torch.isfinite(images).all():
        raise RunFailed("non-finite pixels: a stage before them overflowed (decode in float32 or bfloat16)")
    pixels = ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return [Image.fromarray(p) for p in pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()]
