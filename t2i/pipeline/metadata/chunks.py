"""The texts inside a PNG (tEXt, zTXt, iTXt), and the EXIF comment of a JPEG or WebP; all of them untrusted."""

import os
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO

from t2i.pipeline.metadata.fields import MOST_TEXT

PNG = b"\x89PNG\r\n\x1a\n"
MOST_CHUNKS = 1000  # of text
USER_COMMENT, MAKER_NOTE, EXIF_FOLDER = 0x9286, 0x927C, 0x8769
MOST_ENTRIES = 1000  # of an EXIF folder


def read_texts(path: str | Path, keys: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """Returns the texts under `keys`, the last of each, and the keys that are others or repeated.

    A PNG is read to its end and every checksum is tested. Raises ValueError that names the file and its fault.
    """
    try:
        if not Path(path).is_file():
            raise ValueError(f"{path}: no such file")
        with open(path, "rb") as file:
            start = file.read(12)
            file.seek(0)
            if start.startswith(PNG):
                return _png_texts(file, keys)
            if start.startswith(b"\xff\xd8\xff"):
                return _exif_texts(_jpeg_exif(file)), []
            if start.startswith(b"RIFF") and start.endswith(b"WEBP"):
                return _exif_texts(_webp_exif(file)), []
    except OSError as error:
        raise ValueError(f"{path}: not readable ({error.strerror})") from None
    except _Damaged as error:
        raise ValueError(f"{path}: {error}") from None
    raise ValueError(f"{path}: neither PNG, JPEG nor WebP")


class _Damaged(ValueError):
    """The fault of a file, without its name."""


def _exactly(file: BinaryIO, count: int, what: str) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise _Damaged(f"cut off in {what}")
    return data


def _png_texts(file: BinaryIO, keys: Collection[str]) -> tuple[dict[str, str], list[str]]:
    size = os.fstat(file.fileno()).st_size
    file.seek(len(PNG))
    texts: dict[str, str] = {}
    others: list[str] = []
    room, kind, count = MOST_TEXT, b"", 0
    while kind != b"IEND":
        head = _exactly(file, 8, "a chunk's head, before the end of the PNG")
        first, kind, length = kind == b"", head[4:], int.from_bytes(head[:4])
        if not (kind.isalpha() and kind.isascii()) or first != (kind == b"IHDR"):
            raise _Damaged(f"damaged PNG (a chunk {kind!r} where none can be)")
        if length > size - file.tell() - 4:
            raise _Damaged(f"cut off in its chunk {kind.decode()}")
        keep = kind in (b"tEXt", b"zTXt", b"iTXt")
        data = _checksummed(file, kind, length, keep)
        if not keep:
            continue
        if (count := count + 1) > MOST_CHUNKS:
            raise _Damaged(f"holds more than {MOST_CHUNKS} chunks of text")
        key, content = _text(kind, data, keys, room)
        if content is None or key in texts:
            others.append(key)
        if content is not None:
            room -= len(content.encode())
            texts[key] = content
    return texts, others


def _checksummed(file: BinaryIO, kind: bytes, length: int, keep: bool) -> bytes:
    """Returns the first 3 MiB of a chunk's data if it is kept; its checksum is tested in any case."""
    crc, parts, remaining = zlib.crc32(kind), [], length
    while remaining:
        part = _exactly(file, min(remaining, 2**20), f"its chunk {kind.decode()}")
        crc, remaining = zlib.crc32(part, crc), remaining - len(part)
        if keep and len(parts) < 3:  # MiB; a text that is read has no more
            parts.append(part)
    if int.from_bytes(_exactly(file, 4, f"the checksum of its chunk {kind.decode()}")) != crc:
        raise _Damaged(f"damaged PNG (wrong checksum of its chunk {kind.decode()})")
    return b"".join(parts)


def _text(kind: bytes, data: bytes, keys: Collection[str], room: int) -> tuple[str, str | None]:
    """Returns the key and the text of a chunk (PNG 3rd edition, 11.3.3), None if its key is another."""
    raw_key, separator, body = data.partition(b"\0")
    key = raw_key[:79].decode("latin-1")
    if not separator:
        raise _Damaged(f"damaged PNG (a chunk {kind.decode()} without a text)")
    if key not in keys:
        return key, None
    if len(data) > 2 * MOST_TEXT:
        raise _Damaged(f"holds more than {MOST_TEXT} bytes of text")
    packed = kind == b"zTXt"
    if kind == b"zTXt":
        method, body = body[:1], body[1:]
    elif kind == b"iTXt":
        packed, method, body = body[:1] == b"\1", body[1:2], body[2:].split(b"\0", 2)[-1]
    else:
        method = b"\0"
    if method != b"\0":
        raise _Damaged(f"damaged PNG (text {key!r}: unknown compression)")
    if packed:
        body = _inflate(body, key, room)
    try:
        content = body.decode("utf-8" if kind == b"iTXt" else "latin-1")
    except UnicodeDecodeError:
        raise _Damaged(f"text {key!r} is not UTF-8") from None
    if len(content.encode()) > room:
        raise _Damaged(f"holds more than {MOST_TEXT} bytes of text")
    return key, content


def _inflate(data: bytes, key: str, room: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        inflated = stream.decompress(data, room + 1)
    except zlib.error as error:
        raise _Damaged(f"damaged PNG (text {key!r}: {error})") from None
    if len(inflated) > room:
        raise _Damaged(f"holds more than {MOST_TEXT} bytes of text")
    if not stream.eof:
        raise _Damaged(f"damaged PNG (text {key!r} is cut off)")
    return inflated


def _jpeg_exif(file: BinaryIO) -> bytes:
    """Returns the EXIF segment of a JPEG; empty without one."""
    file.seek(2)
    for _ in range(MOST_CHUNKS):
        mark = _exactly(file, 4, "a segment's head")
        length = int.from_bytes(mark[2:]) - 2
        if mark[0] != 0xFF or length < 0:
            raise _Damaged("damaged JPEG (no segment where one should be)")
        if mark[1] == 0xDA:  # the image itself
            return b""
        data = _exactly(file, length, "a segment")
        if mark[1] == 0xE1 and data.startswith(b"Exif\0\0"):
            return data[6:]
    raise _Damaged(f"holds more than {MOST_CHUNKS} segments")


def _webp_exif(file: BinaryIO) -> bytes:
    """Returns the EXIF chunk of a WebP; empty without one."""
    file.seek(12)
    for _ in range(MOST_CHUNKS):
        head = file.read(8)
        if not head:
            return b""
        if len(head) < 8:
            raise _Damaged("cut off in a chunk's head")
        length = int.from_bytes(head[4:], "little")
        if head[:4] == b"EXIF":
            if length > 2 * MOST_TEXT:
                raise _Damaged(f"EXIF of {length} bytes is more than {2 * MOST_TEXT}")
            return _exactly(file, length, "its EXIF").removeprefix(b"Exif\0\0")
        file.seek(length + length % 2, os.SEEK_CUR)
    raise _Damaged(f"holds more than {MOST_CHUNKS} chunks")


def _exif_texts(exif: bytes) -> dict[str, str]:
    """Returns the user's comment as A1111's text and the maker's note as Fooocus's scheme, of two EXIF folders."""
    if not exif:
        return {}
    orders: dict[bytes, str] = {b"II*\0": "little", b"MM\0*": "big"}
    if exif[:4] not in orders:
        raise _Damaged("damaged EXIF (no byte order)")
    order = orders[exif[:4]]

    def number(at: int, size: int) -> int:
        if at + size > len(exif):
            raise _Damaged("damaged EXIF (an entry outside of it)")
        return int.from_bytes(exif[at : at + size], "little" if order == "little" else "big")

    entries: dict[int, bytes] = {}
    folders = [number(4, 4)]
    while folders:
        start = folders.pop()
        for at in range(start + 2, start + 2 + 12 * min(number(start, 2), MOST_ENTRIES), 12):
            tag, kind, length = number(at, 2), number(at + 2, 2), number(at + 4, 4)
            if tag == EXIF_FOLDER and start == number(4, 4):
                folders.append(number(at + 8, 4))
            elif tag in (USER_COMMENT, MAKER_NOTE) and kind in (1, 2, 7):
                place = at + 8 if length <= 4 else number(at + 8, 4)
                if place + length > len(exif):
                    raise _Damaged("damaged EXIF (a text outside of it)")
                entries[tag] = exif[place : place + length]
    names = {USER_COMMENT: "parameters", MAKER_NOTE: "fooocus_scheme"}
    texts = {name: _comment(entries[tag]) for tag, name in names.items() if tag in entries}
    if texts.get("fooocus_scheme") not in ("fooocus", "a1111"):
        texts.pop("fooocus_scheme", None)  # a camera's
    return texts


def _comment(data: bytes) -> str:
    """Decodes EXIF 2.3's UserComment by its 8 bytes of code, or plain ASCII; UTF-16 in the order of Latin letters."""
    code, body = data[:8], data[8:]
    if len(data) > 2 * MOST_TEXT:
        raise _Damaged(f"holds more than {MOST_TEXT} bytes of text")
    try:
        if code == b"UNICODE\0":
            big = body[0::2].count(0) >= body[1::2].count(0)
            return body.decode("utf-16-be" if big else "utf-16-le").lstrip("\ufeff").rstrip("\0")
        return (body if code in (b"ASCII\0\0\0", bytes(8)) else data).decode().rstrip("\0")
    except UnicodeDecodeError:
        raise _Damaged("its EXIF comment is no valid text") from None
