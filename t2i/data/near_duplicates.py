"""Pictures that are there twice: the same pixels, or the same picture saved anew."""

import hashlib

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

SIDE, COARSE = 32, 8  # of the thumbnails that are compared, and of those that are compared first
RMS, MOST = 4.0, 24.0  # levels of 255 by which two thumbnails of one picture differ: on the whole, and anywhere
ASPECT = 0.05  # and their aspect ratios, in logarithms
LIMIT = 20_000  # pictures beyond which none is compared with every other
BLOCK = 1024
NEAREST = 4  # looked at closely


def digest(picture: Image.Image) -> bytes:
    """Of the pixels: equal for equal pictures in files of any kind."""
    return hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).digest()


def thumbnail(picture: Image.Image) -> UInt8[np.ndarray, "32 32 3"]:
    """The picture squeezed into a small square, antialiased."""
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def find_near(thumbnails: UInt8[np.ndarray, "n 32 32 3"], aspects: Float[np.ndarray, " n"]) -> dict[int, int]:
    """For each picture that is an earlier one saved anew, that one: other quality, size or format, no other crop.

    Averaging only brings pictures closer, so those that are far apart in coarse thumbnails need no closer look.
    """
    n, step = len(thumbnails), SIDE // COARSE
    coarse = np.stack([t.reshape(COARSE, step, COARSE, step, 3).mean((1, 3), dtype=np.float32) for t in thumbnails])
    flat = coarse.reshape(n, -1) - 128
    norms, logs = (flat**2).sum(1), np.log(aspects)
    found: dict[int, int] = {}
    for start in range(0, n, BLOCK):
        rows = slice(start, min(start + BLOCK, n))
        distances = norms[rows, None] + norms[None, : rows.stop] - 2 * flat[rows] @ flat[: rows.stop].T
        for row in np.flatnonzero((distances <= RMS**2 * flat.shape[1]).sum(1) > 1):
            i = start + int(row)
            earlier = distances[row, :i]
            for j in map(int, np.argsort(earlier)[:NEAREST]):
                if abs(logs[i] - logs[j]) <= ASPECT and _same(thumbnails[i], thumbnails[j]):
                    found[i] = j
                    break
    return found


def _same(a: UInt8[np.ndarray, "32 32 3"], b: UInt8[np.ndarray, "32 32 3"]) -> bool:
    difference = np.abs(a.astype(np.float32) - b)
    return bool(np.sqrt((difference**2).mean()) <= RMS and difference.max() <= MOST)
