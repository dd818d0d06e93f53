"""Draws scenes, larger and averaged down, so that edges are smooth at any size."""

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from t2i.data.scenes.world import BACKGROUNDS, COLOURS, SHAPES, Scene

CANVAS = 256  # the least side that is drawn on, in pixels


def oversample(size: int) -> int:
    """Returns how many times larger an image of `size` pixels a side is drawn."""
    return max(4, CANVAS // size)


def draw_shape(
    draw: ImageDraw.ImageDraw, shape: str, centre: tuple[float, float], extent: float, fill: tuple[int, int, int] | int
) -> None:
    """Draws one shape; its centre and half extent are in pixels of the canvas."""
    (x, y), r = centre, extent
    if shape == "circle":
        draw.ellipse([x - r, y - r, x + r, y + r], fill=fill)
    else:
        draw.polygon([(x + r * u, y + r * v) for u, v in SHAPES[shape]], fill=fill)


def render(scene: Scene, size: int) -> Image.Image:
    """Returns the image of a scene, `size` pixels a side."""
    times = oversample(size)
    side = size * times
    image = Image.new("RGB", (side, side), BACKGROUNDS[scene.background])
    draw = ImageDraw.Draw(image)
    for thing in scene.things:
        x, y = thing.centre
        draw_shape(draw, thing.shape, (side * x, side * y), side * thing.extent, COLOURS[thing.colour])
    return image.reduce(times)


def pixels(scene: Scene, size: int) -> UInt8[Tensor, "3 {size} {size}"]:
    """Returns the image of a scene as a tensor."""
    return torch.from_numpy(np.array(render(scene, size))).permute(2, 0, 1).contiguous()
