"""Several images as one."""

import math
from collections.abc import Sequence

from PIL import Image

GAP = 2  # pixels around each image


def image_grid(images: Sequence[Image.Image], columns: int | None = None) -> Image.Image:
    """Returns the images row by row on white; by default the grid is as square as possible."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    width, height = (max(image.size[k] for image in images) + GAP for k in (0, 1))
    grid = Image.new("RGB", (columns * width + GAP, math.ceil(len(images) / columns) * height + GAP), "white")
    for k, image in enumerate(images):
        grid.paste(image, (k % columns * width + GAP, k // columns * height + GAP))
    return grid
