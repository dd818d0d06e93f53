import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from t2i.data.decode import UnreadableImage, decode

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def encoded(image, format="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


EMPTY = png_chunk(b"IDAT", zlib.compress(b"")) + png_chunk(b"IEND", b"")


def top_red(size=(40, 24)):
    image = Image.new("RGB", size, BLUE)
    image.paste(RED, (0, 0, size[0], 8))
    return image


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_exif_orientation_is_applied_once(orientation, format):
    """Stored turned by the inverse of what each orientation asks for, the upright picture comes back."""
    upright = Image.new("RGB", (48, 32), BLUE)
    upright.paste(RED, (0, 0, 16, 16))  # top left only: no symmetry hides a wrong turn
    upright.paste(GREEN, (32, 0, 48, 16))
    turn = Image.Transpose
    away = [None, None, turn.FLIP_LEFT_RIGHT, turn.ROTATE_180, turn.FLIP_TOP_BOTTOM, turn.TRANSPOSE, turn.ROTATE_90]
    away += [turn.TRANSVERSE, turn.ROTATE_270]
    how = away[orientation]
    stored = upright if how is None else upright.transpose(how)
    options = {"lossless": True} if format == "WEBP" else {"quality": 95, "subsampling": 0} if format == "JPEG" else {}
    seen = decode(encoded(stored, format, exif=exif(orientation), **options))
    assert seen.size == (48, 32)
    for place, colour in {(8, 8): RED, (40, 8): GREEN, (8, 24): BLUE, (40, 24): BLUE}.items():
        assert np.abs(np.subtract(seen.getpixel(place), colour)).max() < 8


@pytest.mark.parametrize(
    "broken", [b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12"]
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_corrupt_exif_does_not_lose_the_picture(broken):
    seen = decode(encoded(top_red(), "JPEG", exif=broken, quality=95))
    assert seen.size == (40, 24) and seen.getpixel((20, 2))[0] > 200


def test_hidden_colour_of_transparent_pixels_never_shows():
    rgba = Image.new("RGBA", (4, 2), (0, 255, 0, 0))
    rgba.putpixel((0, 0), (*RED, 255))
    rgba.putpixel((1, 0), (*RED, 51))
    seen = decode(encoded(rgba))
    assert [seen.getpixel((x, 0)) for x in (0, 1, 2)] == [RED, (255, 204, 204), (255, 255, 255)]
    assert decode(encoded(rgba), "black").getpixel((2, 0)) == (0, 0, 0)

    assert decode(encoded(Image.new("LA", (1, 1), (0, 0)))).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (2, 1))
    palette.putpalette([*GREEN, *RED])
    palette.putpixel((1, 0), 1)
    assert [decode(encoded(palette, transparency=0)).getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), RED]
    key = Image.new("RGB", (1, 1), GREEN)
    assert decode(encoded(key, transparency=GREEN), "blue").getpixel((0, 0)) == BLUE


def test_sixteen_bit_gray_is_scaled():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(2, 0)
    for format in ("PNG", "TIFF"):
        seen = np.array(decode(encoded(Image.fromarray(ramp), format)))
        assert np.array_equal(seen[0, :, 0], np.arange(256)) and (seen[..., 0] == seen[..., 2]).all()
    big_endian = Image.frombytes("I;16B", (256, 2), ramp.astype(">u2").tobytes())
    assert np.array_equal(np.array(decode(encoded(big_endian, "TIFF")))[0, :, 1], np.arange(256))


def test_sixteen_bit_gray_with_a_transparent_level():
    data = encoded(Image.fromarray(np.array([[0, 30000, 65535]], dtype=np.uint16)))
    end_of_header = 8 + 25
    chunk = png_chunk(b"tRNS", struct.pack(">H", 30000))
    seen = decode(data[:end_of_header] + chunk + data[end_of_header:], "red")
    assert [seen.getpixel((x, 0)) for x in range(3)] == [(0, 0, 0), RED, (255, 255, 255)]


def test_float_and_32_bit_gray_are_scaled_and_nan_is_refused():
    unit = np.linspace(0, 1, 256, dtype=np.float32)[None]
    assert np.array_equal(np.array(decode(encoded(Image.fromarray(unit), "TIFF")))[0, :, 0], np.arange(256))
    wide = (np.linspace(0, 1, 256)[None] * (2**31 - 1)).astype(np.int32)
    assert np.array_equal(np.array(decode(encoded(Image.fromarray(wide), "TIFF")))[0, :, 0], np.arange(256))
    unit[0, 3] = np.nan
    with pytest.raises(UnreadableImage, match="finite"):
        decode(encoded(Image.fromarray(unit), "TIFF"))


def test_cmyk_and_one_bit_become_rgb():
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for format in ("JPEG", "TIFF"):
        assert np.abs(np.subtract(decode(encoded(cmyk, format)).getpixel((8, 8)), RED)).max() < 6
    assert decode(encoded(Image.new("1", (2, 2), 1))).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_animation_gives_its_first_frame(format):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN)]
    lossless = {"lossless": True} if format == "WEBP" else {}
    seen = decode(encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=100, **lossless))
    assert seen.getpixel((4, 4)) == RED


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_header_bomb_is_refused_before_decoding():
    for side in (9_500, 30_000):  # below and above the size at which Pillow itself refuses
        header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        with pytest.raises(UnreadableImage, match=r"9500x9500 is more than|900000000 pixels"):
            decode(b"\x89PNG\r\n\x1a\n" + header + EMPTY)
    with pytest.raises(UnreadableImage, match="40x24 is more than 959 pixels"):
        decode(encoded(top_red()), max_pixels=959)
    assert decode(encoded(top_red()), max_pixels=960).size == (40, 24)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_truncation_is_refused_or_whole(format):
    """Cut anywhere, a file is either refused with a reason or (when only its end mark is lost) decoded whole."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (24, 40, 3), dtype=np.uint8))
    data = encoded(image, format)
    whole = np.array(decode(data))
    for stop in sorted({0, 1, 8, *range(0, len(data), 97), len(data) // 2}):
        try:
            assert np.array_equal(np.array(decode(data[:stop])), whole), stop
        except UnreadableImage:
            continue
    with pytest.raises(UnreadableImage):
        decode(data[: len(data) // 2])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_flipped_bytes_never_raise_anything_else():
    rng = np.random.default_rng(1)
    sources = [encoded(top_red(), f) for f in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")]
    for trial in range(300):
        data = bytearray(sources[trial % len(sources)])
        for place in rng.integers(0, len(data), 4):
            data[place] = rng.integers(256)
        try:
            assert decode(bytes(data), max_pixels=1_000_000).mode == "RGB"
        except UnreadableImage:
            continue


@pytest.mark.parametrize("data", [b"", b"not a picture", b"<svg xmlns='http://www.w3.org/2000/svg'/>"])
def test_what_is_no_picture_is_said(data):
    with pytest.raises(UnreadableImage, match="not a JPEG, PNG"):
        decode(data)


def test_formats_outside_the_list_are_refused():
    for format in ("PPM", "TGA", "ICO", "PCX"):
        with pytest.raises(UnreadableImage):
            decode(encoded(top_red((32, 32)), format))


def test_wrong_background_is_the_callers_error():
    with pytest.raises(ValueError, match="whit") as info:
        decode(encoded(top_red()), "whit")
    assert not isinstance(info.value, UnreadableImage)
