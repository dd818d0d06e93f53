"""Encoded bytes to an RGB image: the one place where an image file is opened."""

import io
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageColor
from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile

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
}  # EXIF orientation -> the operation that turns the image upright


ANIMATED = ("GIF", "PNG", "WEBP", "TIFF")  # a phone's JPEG may hold further images, which are not frames


class UnreadableImage(ValueError):
    """Bytes that `decode` cannot read; the message has the cause."""


class Facts(NamedTuple):
    """The conversions that made an upright 8-bit RGB image of a file."""

    format: str
    turned: bool  # by its EXIF orientation
    alpha: bool  # some pixel was transparent
    cmyk: bool
    deep: bool  # more than 8 bits a channel
    animated: bool  # or of several pages: only the first frame is read


def decode(data: bytes, background: str = "white", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Returns an upright RGB image: EXIF orientation applied, alpha on `background`, 16 bits scaled, first frame."""
    return examine(data, background, max_pixels)[0]


def examine(data: bytes, background: str = "white", max_pixels: int = MAX_PIXELS) -> tuple[Image.Image, Facts]:
    """Returns `decode`'s image and the conversions that it needed."""
    colour = ImageColor.getrgb(background)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > max_pixels:
            raise UnreadableImage(f"{width}x{height} is more than {max_pixels} pixels")
        image.load()
        bits = _bits(image, data)
        turn = _turn(image)
        upright = image if turn is None else image.transpose(turn)
        flat, alpha = _flatten(upright, colour, bits)
        facts = Facts(image.format or "", turn is not None, alpha, image.mode == "CMYK", bits > 8, _animated(image))
        return flat, facts
    except UnreadableImage:
        raise
    except Image.UnidentifiedImageError as error:
        raise UnreadableImage(f"not a {', '.join(FORMATS)} file ({len(data)} bytes)") from error
    except Exception as error:  # broken bytes raise anything: OSError, SyntaxError, struct.error, KeyError
        raise UnreadableImage(f"{type(error).__name__}: {error}") from error


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # the pixels are good, whatever the EXIF
        return None
    return UPRIGHT.get(orientation) if isinstance(orientation, int) else None


def _bits(image: Image.Image, data: bytes) -> int:
    """Returns the bits a channel in the file; of a colour image's 16 bits Pillow has kept the high byte."""
    if image.format == "PNG":
        return data[24]  # the IHDR chunk comes first
    return max(image.tag_v2.get(BITSPERSAMPLE, (1,))) if isinstance(image, TiffImageFile) else 8


def _animated(image: Image.Image) -> bool:
    with suppress(Exception):  # frames that are damaged are not read either
        return image.format in ANIMATED and getattr(image, "is_animated", False)
    return True


def _flatten(image: Image.Image, background: tuple[int, ...], bits: int) -> tuple[Image.Image, bool]:
    """Returns the RGB image, and True if some pixel was transparent."""
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bits(image, bits)
    if not image.has_transparency_data:
        return image.convert("RGB"), False
    rgba = image.convert("RGBA")
    transparent = rgba.getchannel("A").getextrema()[0] != 255
    return Image.alpha_composite(Image.new("RGBA", image.size, background), rgba).convert("RGB"), transparent


def _eight_bits(image: Image.Image, bits: int) -> Image.Image:
    """Scales gray of more than 8 bits by its full range: 2^bits - 1 up to 16 bits, else the first that contains it.

    The ranges are 65535 or 2^31 - 1 for integers of 32 bits, and 1, 255 or 65535 for floats.
    """
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all() or values.min() < 0:
        raise UnreadableImage(f"mode {image.mode}: values are not all finite and >= 0")
    if image.mode == "F":
        ranges = (1.0, 255.0, 65535.0)
    else:
        ranges = (2.0**bits - 1,) if 8 < bits <= 16 else (65535.0, 2.0**31 - 1)
    full = next((r for r in ranges if values.max() <= r), None)
    if full is None:
        raise UnreadableImage(f"mode {image.mode}: the largest value {values.max():g} is above {ranges[-1]:g}")
    gray = Image.fromarray(np.round(values / full * 255).astype(np.uint8))
    if "transparency" in image.info:  # the gray level that PNG declares transparent
        gray.putalpha(Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)))
    return gray
