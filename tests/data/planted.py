"""A folder of pictures as people have it, with known faults, and pictures that only look as if they had one."""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

CLEAN = 40
EVIL = "<script>alert('x')</script> & a red fox"
# What is planted: the kind of finding, and the file it is found in.
PLANTED = {
    ("unreadable", "cut off.jpg"),
    ("unreadable", "a text.png"),
    ("unreadable", "empty.webp"),
    ("unreadable", "bomb.png"),
    ("captionless", "no caption.png"),
    ("captionless", "blank caption.jpg"),
    ("missing", "gone.png"),
    ("unlisted", "sub/unlisted.jpg"),
    ("unread_format", "phone.HEIC"),
    ("duplicate", "same bytes.jpg"),
    ("duplicate", "same pixels.bmp"),
    ("near_duplicate", "saved anew.jpg"),
    ("tiny", "tiny.png"),
    ("turned", "turned.jpg"),
    ("alpha", "see-through.png"),
    ("cmyk", "print.jpg"),
    ("deep", "sixteen bits.png"),
    ("animated", "moving.gif"),
    ("caption_cut", "long caption.png"),
    ("spare_text", "notes.txt"),
}


def photo(seed, size=(96, 72)) -> Image.Image:
    """Smooth patches and some grain, no two alike."""
    rng = np.random.default_rng(seed)
    patches = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    grain = np.asarray(patches).astype(float) + rng.normal(0, 4, (size[1], size[0], 3))
    return Image.fromarray(grain.clip(0, 255).astype(np.uint8))


def encoded(picture, format="PNG", **options) -> bytes:
    data = io.BytesIO()
    picture.save(data, format, **options)
    return data.getvalue()


def exif(orientation) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth, colour, rows: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def sixteen_bit_rgb(picture) -> bytes:
    """The picture with 16 bits a channel, which Pillow does not write."""
    wide = np.asarray(picture).astype(">u2") * 257
    return png(*picture.size, 16, 2, b"".join(b"\0" + row.tobytes() for row in wide.astype(">u2")))


def hole(picture) -> Image.Image:
    rgba = picture.convert("RGBA")
    rgba.paste((0, 255, 0, 0), (10, 10, 30, 30))
    return rgba


def plant(folder: Path, caption="a picture of patches") -> Path:
    """Write the folder: `CLEAN` good pictures of mixed sizes, the planted ones, and decoys."""
    files: dict[str, bytes] = {}
    for k in range(CLEAN):
        size = [(96, 72), (72, 96), (64, 64), (200, 80)][k % 4]
        format = ["JPEG", "PNG", "WEBP", "TIFF"][k % 4]
        files[f"{k:02}.{format.lower()}"] = encoded(photo(k, size), format)
    decoys = {
        "opaque alpha.png": encoded(photo(100).convert("RGBA")),
        "upright.jpg": encoded(photo(101), "JPEG", exif=exif(1)),
        "gray.png": encoded(photo(102).convert("L")),
        "one frame.gif": encoded(photo(103), "GIF"),
        "palette.png": encoded(photo(104).quantize(64)),
        "profile.png": encoded(photo(105), icc_profile=b"no profile"),
        "mirrored.png": encoded(photo(0, (96, 72)).transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
        "lighter.png": encoded(photo(4).point(lambda v: min(255, int(v * 1.3)))),
        "two pictures.jpg": encoded(photo(106), "MPO", save_all=True, append_images=[photo(107)]),
    }
    planted = {
        "cut off.jpg": encoded(photo(200), "JPEG")[:900],
        "a text.png": b"a red fox",
        "empty.webp": b"",
        "bomb.png": png(30_000, 30_000, 8, 2, b""),
        "no caption.png": encoded(photo(201)),
        "blank caption.jpg": encoded(photo(202), "JPEG"),
        "same bytes.jpg": files["00.jpeg"],
        "same pixels.bmp": encoded(photo(1, (72, 96)), "BMP"),
        "saved anew.jpg": encoded(photo(5, (72, 96)).resize((144, 192), Image.Resampling.BICUBIC), "JPEG", quality=85),
        "tiny.png": encoded(photo(203, (20, 16))),
        "turned.jpg": encoded(photo(204), "JPEG", exif=exif(6)),
        "see-through.png": encoded(hole(photo(205))),
        "print.jpg": encoded(photo(206).convert("CMYK"), "JPEG"),
        "sixteen bits.png": sixteen_bit_rgb(photo(207)),
        "moving.gif": encoded(photo(208), "GIF", save_all=True, append_images=[photo(209)], duration=100),
        "long caption.png": encoded(photo(210)),
    }
    files |= decoys | planted
    captions = dict.fromkeys(files, caption) | {"03.tiff": EVIL, "gone.png": caption, "long caption.png": "patch " * 99}
    captions |= {"no caption.png": "", "blank caption.jpg": " \n"}
    (folder / "sub").mkdir(parents=True)
    rows = ({"file_name": name, "text": text} for name, text in captions.items())
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files |= {"sub/unlisted.jpg": encoded(photo(211), "JPEG"), "phone.HEIC": b"ftypheic", "notes.txt": b"my notes"}
    files |= {".hidden.png": b"", "README.md": b"# Pictures"}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder
