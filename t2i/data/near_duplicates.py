"""Finds exact and near-duplicate images."""

import hashlib

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

SIDE, COARSE = 32, 8  # pixels of the compared thumbnails, and of the coarse ones that are compared first
RMS, MOST = 4.0, 24.0  # levels of 255 by which the thumbnails of near duplicates may differ: RMS, maximum
ASPECT = 0.05  # logarithms by which their aspect ratios may differ
LIMIT = 20_000  # images; more of them are not compared with each other
BLOCK = 1024
NEAREST = 4  # earlier images that are compared by their full thumbnails


def digest(image: Image.Image) -> bytes:
    """Returns the SHA-256 of an image's size and pixels."""
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()


def thumbnail(image: Image.Image) -> UInt8[np.ndarray, "32 32 3"]:
    """Returns the image resized to a small square, antialiased."""
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def find_near_duplicates(
    thumbnails: UInt8[np.ndarray, "n 32 32 3"], aspects: Float[np.ndarray, " n"]
) -> dict[int, int]:
    """Returns {index: index of the earlier image} for images saved anew with another quality, size or format.

    Crops are not found. Averaging only brings images closer, so images that are far apart in their coarse thumbnails
    are not compared by their full ones.
    """
    n, step = len(thumbnails), SIDE // COARSE
    coarse = np.stack([t.reshape(COARSE, step, COARSE, step, 3).mean((1, 3), dtype=np.float32) for t in thumbnails])
    flat = coarse.reshape(n, -1) - 128
    norms, logs = (flat**2).sum(1), np.log(aspects)
    duplicates: dict[int, int] = {}
    for start in range(0, n, BLOCK):
        rows = slice(start, min(start + BLOCK, n))
        distances = norms[rows, None] + norms[None, : rows.stop] - 2 * flat[rows] @ flat[: rows.stop].T
        for row in np.flatnonzero((distances <= RMS**2 * flat.shape[1]).sum(1) > 1):
            i = start + int(row)
            earlier = distances[row, :i]
            for j in map(int, np.argsort(earlier)[:NEAREST]):
                if abs(logs[i] - logs[j]) <= ASPECT and _same(thumbnails[i], thumbnails[j]):
                    duplicates[i] = j
                    break
    return duplicates


def _same(a: UInt8[np.ndarray, "32 32 3"], b: UInt8[np.ndarray, "32 32 3"]) -> bool:
    difference = np.abs(a.astype(np.float32) - b)
    return bool(np.sqrt((difference**2).mean()) <= RMS and difference.max() <= MOST)
