"""Templates of every shape and size as rendered, at subpixel positions and three degrees of blur."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from t2i.data.scenes import SHAPES, SIZES
from t2i.data.scenes.render import draw_shape, oversample

BLURS = (0.0, 0.6, 1.2)  # pixels
STEPS = 8  # positions between two pixels
REACH = 3  # pixels around the largest shape


@dataclass(frozen=True)
class Templates:
    """Coverages (k, p * p) around one centroid, `unit` with norm 1, and the shape and size of each."""

    cover: np.ndarray
    unit: np.ndarray
    shapes: list[str]
    sizes: list[str]


def patch_side(side: int) -> int:
    """Returns the side of the window that any shape fits into, in pixels: odd."""
    return 2 * int(np.ceil(max(SIZES.values()) * side + REACH)) + 1


@lru_cache(maxsize=2 * STEPS * STEPS)
def templates(side: int, column: int, row: int) -> Templates:
    """Returns templates for images of `side` pixels whose centroid is (column, row) / STEPS into the middle pixel."""
    patch = patch_side(side)
    middle = patch // 2
    covers, shapes, sizes = [], [], []
    for shape in SHAPES:
        for size, extent in SIZES.items():
            du, dv = centroid(shape)
            x, y = middle + column / STEPS - side * extent * du, middle + row / STEPS - side * extent * dv
            sharp = coverage(shape, (x, y), side * extent, patch, oversample(side))
            for blur in BLURS:
                covers.append(ndimage.gaussian_filter(sharp, blur) if blur else sharp)
                shapes.append(shape)
                sizes.append(size)
    cover = np.stack(covers).reshape(len(covers), -1)
    return Templates(cover, cover / np.linalg.norm(cover, axis=1, keepdims=True), shapes, sizes)


@lru_cache
def centroid(shape: str) -> tuple[float, float]:
    """Returns the offset of a shape's centroid from its centre, in half extents."""
    cover = coverage(shape, (128, 128), 100, 256, 4)
    weight = cover / cover.sum()
    at = (np.arange(256) + 0.5 - 128) / 100
    return float(weight.sum(0) @ at), float(weight.sum(1) @ at)


def coverage(shape: str, centre: tuple[float, float], extent: float, side: int, times: int) -> np.ndarray:
    """Renders the fraction of each pixel that a shape covers."""
    canvas = Image.new("L", (side * times, side * times), 0)
    (x, y), at = centre, times
    draw_shape(ImageDraw.Draw(canvas), shape, (x * at, y * at), extent * at, 255)
    return np.asarray(canvas.reduce(times), np.float32) / 255
