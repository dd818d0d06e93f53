"""Seeded damage: truncation and bit flips of any file, and files that were made to mislead their reader."""

import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from t2i.pipeline.metadata import to_texts
from tests.hang import no_hang

PNG = b"\x89PNG\r\n\x1a\n"
SETTINGS: dict[str, Any] = {
    "prompt": 'a "red" circle,\nSteps: 3, left: a fox',
    "negative": "blurry",
    "steps": 2,
    "cfg": 4.0,
    "solver": "ddim",
    "seed": 7,
    "size": "16x16",
}
SIZE = 16
PIXELS = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def attempt(read: Callable[..., Any], *arguments: Any) -> tuple[Any, str | None]:
    """(what was read, None) or (None, the reason): nothing else may be raised, and nothing may hang."""
    try:
        with no_hang():
            found, reason = read(*arguments), None
    except ValueError as error:
        found, reason = None, str(error)
    assert reason is None or (reason.strip() and len(reason) < 5000)
    return found, reason


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def make_png(
    *extra: bytes, width: int = SIZE, height: int = SIZE, idat: bytes | None = None, texts: dict[str, str] | None = None
) -> bytes:
    """A picture with its settings, and chunks of any content after its head."""
    rows = b"".join(b"\0" + row.tobytes() for row in PIXELS)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    written = to_texts(SETTINGS) if texts is None else texts
    texts_written = [chunk(b"iTXt", k.encode() + b"\0\0\0\0\0" + v.encode()) for k, v in written.items()]
    chunks = [chunk(b"IHDR", head), *extra, *texts_written]
    chunks += [chunk(b"IDAT", zlib.compress(rows) if idat is None else idat), chunk(b"IEND", b"")]
    return PNG + b"".join(chunks)


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture)


def damaged(rng: random.Random, data: bytes, low: int = 0, high: int | None = None) -> bytes:
    """One flipped bit, or the file cut off, at a place from `low` on."""
    high = len(data) if high is None else high
    place = rng.randrange(low, high)
    if rng.random() < 0.4:
        return data[:place]
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


def bomb(mebibytes: int = 1024) -> bytes:
    """Zeros, packed to a thousandth (RFC 1950, 1951): one MiB again and again, their Adler-32."""
    packer = zlib.compressobj(9, wbits=-15)
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    check = (mebibytes * 2**20 % 65521) << 16 | 1
    return b"\x78\xda" + block * mebibytes + packer.flush() + struct.pack(">I", check)


def ours(**keys: Any) -> dict[str, str]:
    return {"t2i": json.dumps({"schema_version": 1} | SETTINGS | keys)}


@cache
def hostile_pngs() -> dict[str, tuple[bytes, bool, bool]]:
    """By name: a file, whether it has settings that can be read, and whether a picture."""
    packed = bomb()
    deep = "[" * 100_000
    jpeg = io.BytesIO()
    Image.fromarray(PIXELS).save(jpeg, "JPEG")
    a1111 = "a fox\nSteps: {}, Sampler: Euler, CFG scale: {}, Seed: {}, Size: {}"
    return {
        "empty": (b"", False, False),
        "signature alone": (PNG, False, False),
        "text": (b"a fox\nSteps: 3, Seed: 1", False, False),
        "html": (b"<html><script>alert(1)</script></html>" * 100, False, False),
        "jpeg": (jpeg.getvalue(), False, True),
        "no end": (make_png()[:-12], False, True),
        "a second picture behind": (make_png() + make_png(), True, True),
        "2^31 pixels a side": (make_png(width=2**31 - 1, height=2**31 - 1), True, False),
        "60000 pixels a side": (make_png(width=60_000, height=60_000), True, False),
        "no width": (make_png(width=0), True, False),
        "too few rows": (make_png(height=SIZE * 2), True, True),
        "bomb of pixels": (make_png(idat=packed), True, True),
        "bomb of zTXt": (make_png(chunk(b"zTXt", b"parameters\0\0" + packed)), False, False),
        "bomb of iTXt": (make_png(chunk(b"iTXt", b"t2i\0\1\0\0\0" + packed)), False, False),
        "bomb of a foreign zTXt": (make_png(chunk(b"zTXt", b"note\0\0" + packed)), True, False),
        "bomb of a profile": (make_png(chunk(b"iCCP", b"icc\0\0" + packed)), True, False),
        "2000 texts": (make_png(*[chunk(b"tEXt", b"note\0x")] * 2000), False, True),
        "length of 4 GiB": (PNG + b"\xff\xff\xff\xffIHDR" + bytes(25), False, False),
        "unpackable text": (make_png(chunk(b"zTXt", b"parameters\0\0not deflate")), False, True),
        "unknown packing": (make_png(chunk(b"zTXt", b"parameters\0\7" + packed[:9])), False, False),
        "text without end of key": (make_png(chunk(b"tEXt", b"parameters")), False, True),
        "damaged exif": (make_png(chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff" * 4)), True, True),
        "palette of no palette": (make_png(chunk(b"PLTE", b"\0")), True, True),
        "deep json": (make_png(texts={"t2i": deep}), False, True),
        "deep object": (make_png(texts={"t2i": '{"a":' * 100_000}), False, True),
        "no object": (make_png(texts={"t2i": "[1]"}), False, True),
        "no json": (make_png(texts={"t2i": "{prompt}"}), False, True),
        "nan": (make_png(texts={"t2i": '{"schema_version": 1, "prompt": "x", "cfg": NaN}'}), False, True),
        "1e999": (make_png(texts={"t2i": '{"schema_version": 1, "prompt": "x", "cfg": 1e999}'}), False, True),
        "many digits": (make_png(texts={"t2i": '{"schema_version": 1, "seed": ' + "9" * 5000 + "}"}), False, True),
        "half a character": (make_png(texts={"t2i": '{"schema_version": 1, "prompt": "\\ud83e"}'}), False, True),
        "prompt of a number": (make_png(texts=ours(prompt=3)), False, True),
        "steps of a text": (make_png(texts=ours(steps="20")), False, True),
        "steps below 1": (make_png(texts=ours(steps=-1)), False, True),
        "steps of a fraction": (make_png(texts=ours(steps=2.5)), False, True),
        "a solver of no table": (make_png(texts=ours(solver="__import__('os')")), False, True),
        "size of a text": (make_png(texts=ours(size="1e9x1e9")), False, True),
        "a file elsewhere": (make_png(texts=ours(image="../../etc/passwd", image_sha256="0" * 64)), False, True),
        "a schema of a text": (make_png(texts={"t2i": '{"schema_version": "1"}'}), False, True),
        "negative seed": (make_png(texts={"parameters": a1111.format(3, 1, -1, "16x16")}), False, True),
        "steps of 30 digits": (make_png(texts={"parameters": a1111.format("9" * 30, 1, 1, "16x16")}), False, True),
        "no size": (make_png(texts={"parameters": a1111.format(3, 1, 1, "0x0")}), False, True),
        "scale of inf": (make_png(texts={"parameters": a1111.format(3, "inf", 1, "16x16")}), False, True),
    }


def safetensors(header: Any, data: bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def split_safetensors(file: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the bytes after it, read here by the format's rules alone."""
    length = int.from_bytes(file[:8], "little")
    return json.loads(file[8 : 8 + length]), file[8 + length :]


def hostile_safetensors(file: bytes, bias: str) -> dict[str, bytes]:
    """Files that are none, by name; `bias` is one of its tensors of a few floats."""
    header, data = split_safetensors(file)
    first, last = header[bias]["data_offsets"]
    count = (last - first) // 4

    def lie(**keys: Any) -> bytes:
        return safetensors(header | {bias: header[bias] | keys}, data)

    bare = {k: v for k, v in header.items() if k != "__metadata__"}
    return {
        "empty": b"",
        "seven bytes": file[:7],
        "length alone": file[:8],
        "length 0": safetensors(b"", data, 0),
        "length 2^63": safetensors(header, data, 2**63),
        "length 2^64 - 1": safetensors(header, data, 2**64 - 1),
        "length of the file": safetensors(header, data, len(file)),
        "length 1 short": safetensors(header, data, len(json.dumps(header)) - 1),
        "a pickle": b"\x80\x04\x95" + file,
        "a zip": b"PK\3\4" + file,
        "deep header": safetensors(b"[" * 100_000, data),
        "deep object": safetensors(b'{"a":' * 100_000, data),
        "list": safetensors([1, 2], data),
        "nan in the header": safetensors(b'{"x": NaN}', data),
        "no utf-8": safetensors(b'{"\xff\xfe": 1}', data),
        "unknown dtype": lie(dtype="F99"),
        "dtype of other size": lie(dtype="F64"),
        "dtype of a number": lie(dtype=3),
        "shape below 0": lie(shape=[-count]),
        "shape too large": lie(shape=[count + 1]),
        "shape of 2^62": lie(shape=[2**62, 4]),
        "shape of a text": lie(shape="4"),
        "shape of a fraction": lie(shape=[count + 0.5]),
        "deep shape": lie(shape=[1] * 5000 + [count + 1]),
        "offsets reversed": lie(data_offsets=[last, first]),
        "offsets outside": lie(data_offsets=[len(data), len(data) + last - first]),
        "offsets of another": lie(data_offsets=[0, last - first]) if first else lie(data_offsets=[4, 4 + last - first]),
        "offsets below 0": lie(data_offsets=[-4, last - first - 4]),
        "one offset": lie(data_offsets=[first]),
        "no offsets": safetensors(header | {bias: {"dtype": "F32", "shape": [count]}}, data),
        "a hole": safetensors(bare, data + bytes(64)),
        "a tensor renamed": safetensors({("x" if k == bias else k): v for k, v in bare.items()}, data),
        "integers": lie(dtype="I32"),
        "another shape": lie(shape=[1, count]),
        "metadata of numbers": safetensors(header | {"__metadata__": {"format": 3}}, data),
        "the same key twice": safetensors(
            json.dumps(header).encode()[:-1] + b"," + json.dumps({bias: header[bias]}).encode()[1:], data
        ),
    }
