"""Several pictures as one: sample sheets."""

import math

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from t2i.data.transforms import to_pixels


def picture_grid(images: Float[Tensor, "b 3 h w"] | list[Image.Image], columns: int | None = None) -> Image.Image:
    """The pictures row by row on white with a gap of 2 pixels; as near to a square as it goes by default."""
    pictures = images if isinstance(images, list) else to_pixels(images)
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    width, height = (max(p.size[k] for p in pictures) + 2 for k in (0, 1))
    sheet = Image.new("RGB", (columns * width + 2, math.ceil(len(pictures) / columns) * height + 2), "white")
    for k, picture in enumerate(pictures):
        sheet.paste(picture, (k % columns * width + 2, k // columns * height + 2))
    return sheet
