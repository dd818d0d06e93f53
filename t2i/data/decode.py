"""Encoded bytes to an RGB picture: the one place where a picture file is opened."""

import io

import numpy as np
from PIL import ExifTags, Image, ImageColor

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 89_478_485  # Pillow's own limit: a quarter of a GiB of RGB

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF orientation -> what turns the picture upright


class UnreadableImage(ValueError):
    """The bytes are no picture that `decode` reads; the message says why."""


def decode(data: bytes, background: str = "white", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Upright RGB picture: EXIF orientation applied, alpha laid on `background`, 16-bit scaled, first frame only."""
    colour = ImageColor.getrgb(background)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > max_pixels:
            raise UnreadableImage(f"{width}x{height} is more than {max_pixels} pixels")
        image.load()
        return _flatten(_upright(image), colour)
    except UnreadableImage:
        raise
    except Image.UnidentifiedImageError as error:
        raise UnreadableImage(f"not a {', '.join(FORMATS)} file ({len(data)} bytes)") from error
    except Exception as error:  # broken bytes raise anything: OSError, SyntaxError, struct.error, KeyError
        raise UnreadableImage(f"{type(error).__name__}: {error}") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # corrupt EXIF says nothing about the pixels, which are good
        return image
    turn = UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _flatten(image: Image.Image, background: tuple[int, ...]) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    canvas = Image.new("RGBA", image.size, background)
    return Image.alpha_composite(canvas, image.convert("RGBA")).convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Gray of more than 8 bits, scaled by its full range: 65535 or 2^31-1 for integers, 1, 255 or 65535 for floats."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all() or values.min() < 0:
        raise UnreadableImage(f"mode {image.mode}: values are not all finite and >= 0")
    ranges = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0, 2.0**31 - 1)
    full = next((r for r in ranges if values.max() <= r), None)
    if full is None:
        raise UnreadableImage(f"mode {image.mode}: the largest value {values.max():g} is above {ranges[-1]:g}")
    gray = Image.fromarray(np.round(values / full * 255).astype(np.uint8))
    if "transparency" in image.info:  # the gray level that PNG declares transparent
        gray.putalpha(Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)))
    return gray
