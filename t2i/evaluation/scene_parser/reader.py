"""Images to scenes: the background, blobs that differ from it, and the template that fits each blob best."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from t2i.data.scenes import BACKGROUNDS, COLOURS, LEAST_PIXELS, SIZES, Scene, Thing
from t2i.evaluation.scene_parser.colours import distances, nearest
from t2i.evaluation.scene_parser.templates import STEPS, centroid, patch_side, templates

VERSION = 2  # raise it when readings change: stored ones are then computed again
LARGEST = 64  # larger images are averaged down to this side
FAINT = 30.0  # RGB units from the background, at least
EDGE = 0.5  # fraction of the strongest pixel nearby at a blob's edge
LEAST_AREA = 0.006  # of the image: less than half of the smallest shape is a speck
KNOWN = 0.65  # overlap (IoU) with the best template below which a blob has no known shape
WHOLE = 0.8  # overlap below which a blob may be two touching things of unlike colours
TINY = 1e-6  # in place of a norm of 0: no template fits what lies wholly under other blobs
EVERYWHERE = np.ones((3, 3), bool)


@dataclass(frozen=True)
class Unparseable:
    """An image that no scene explains."""

    reason: str


class Reading(NamedTuple):
    """A scene, and the root mean square difference of its rendering from the image, 0 to 1."""

    scene: Scene | Unparseable
    residual: float


class _Blob(NamedTuple):
    core: np.ndarray
    around: np.ndarray  # with its soft edge
    free: np.ndarray  # where no other blob is: templates are compared there


class _Fit(NamedTuple):
    thing: Thing
    overlap: float
    window: tuple[slice, slice]  # of the padded image
    cover: np.ndarray


def parse(images: UInt8[Tensor, "n 3 h w"]) -> list[Scene | Unparseable]:
    """Returns the scene of each image; a thing of unknown shape or colour has "" there."""
    return [reading.scene for reading in read(images)]


def read(images: UInt8[Tensor, "n 3 h w"]) -> list[Reading]:
    """Returns the scene of each image with its residual."""
    height, width = images.shape[-2:]
    if height != width or height < LEAST_PIXELS:
        raise ValueError(
            f"images of {width}x{height}: scenes are read from square images of at least {LEAST_PIXELS} pixels"
        )
    values = images.float()
    if height > LARGEST:
        values = functional.interpolate(values, size=(LARGEST, LARGEST), mode="area")
    return [_read(image) for image in values.permute(0, 2, 3, 1).cpu().numpy().astype(np.float32)]


def _read(image: np.ndarray) -> Reading:
    ring = max(1, len(image) // 32)
    inner = np.ones(image.shape[:2], bool)
    inner[ring:-ring, ring:-ring] = False
    ground = np.median(image[inner], axis=0)
    background = nearest(ground, "background")
    if not background:
        return Reading(Unparseable("no known background"), 1.0)
    margin = patch_side(len(image)) // 2 + 1
    difference = np.pad(image - ground, ((margin, margin), (margin, margin), (0, 0)))
    fits = list(_fits(difference, ground, margin))
    remainder = difference.copy()
    for fit in fits:
        colour = np.array(COLOURS[fit.thing.colour], np.float32) - ground if fit.thing.colour else 0
        remainder[fit.window] -= fit.cover[..., None] * colour
    inside = remainder[margin:-margin, margin:-margin] + (ground - np.array(BACKGROUNDS[background]))
    residual = float(np.sqrt(np.square(inside / 255).mean()))
    if fits and not any(fit.thing.shape for fit in fits):
        return Reading(Unparseable(f"no known shape among {len(fits)} blobs"), residual)
    return Reading(Scene(tuple(fit.thing for fit in fits), background), residual)


def _fits(difference: np.ndarray, ground: np.ndarray, margin: int) -> Iterator[_Fit]:
    """Yields the best template of every blob, in reading order."""
    side = len(difference) - 2 * margin
    strength = np.linalg.norm(difference, axis=-1)
    near = ndimage.maximum_filter(strength, size=3 if side < 48 else 5)
    blobs = _pieces((strength > FAINT) & (strength > EDGE * near), EVERYWHERE, LEAST_AREA * side * side)
    for blob in blobs:
        free = _free(blob, blobs)
        around = ndimage.binary_dilation(blob, EVERYWHERE, max(2, side // 16)) & free
        fit = _fit(difference, ground, _Blob(blob, around, free), side, margin)
        parts = _parts(difference, ground, blob, side, margin) if fit.overlap < WHOLE else []
        yield from parts if len(parts) > 1 else [fit]


def _pieces(mask: np.ndarray, touching: np.ndarray | None, least: float) -> list[np.ndarray]:
    """Returns the connected parts of a mask that have at least `least` pixels."""
    labelled = ndimage.label(mask, touching)
    assert isinstance(labelled, tuple)
    labels, n = labelled
    return [piece for piece in (labels == k for k in range(1, n + 1)) if piece.sum() >= least]


def _free(blob: np.ndarray, others: list[np.ndarray]) -> np.ndarray:
    """Returns the pixels outside of all other blobs and their soft edges."""
    taken = np.logical_or.reduce([other for other in others if other is not blob] or [np.zeros_like(blob)])
    return np.logical_not(ndimage.binary_dilation(taken, EVERYWHERE)) | blob


def _parts(difference: np.ndarray, ground: np.ndarray, blob: np.ndarray, side: int, margin: int) -> list[_Fit]:
    """Returns things of unlike colours within one blob, those that a template fits."""
    colour = np.full(blob.shape, -1)
    colour[blob] = distances(difference[blob] + ground).argmin(-1)
    pieces = []
    for c in np.unique(colour[blob]):
        pieces += _pieces(colour == c, None, LEAST_AREA * side * side)
    free = [(colour < 0) | piece for piece in pieces]
    blobs = [_Blob(p, ndimage.binary_dilation(p) & f, f) for p, f in zip(pieces, free, strict=True)]
    fits = [_fit(difference, ground, part, side, margin) for part in blobs]
    return [fit for fit in fits if fit.overlap >= KNOWN]


def _fit(difference: np.ndarray, ground: np.ndarray, blob: _Blob, side: int, margin: int) -> _Fit:
    """Fits the template nearest in angle to a blob's opacity, and the colour c of (p - ground) = cover (c - ground)."""
    strong = difference[blob.core]
    strong = strong[np.linalg.norm(strong, axis=-1) >= np.median(np.linalg.norm(strong, axis=-1))]
    core = np.median(strong, axis=0)
    opacity = np.clip(difference @ (core / max(core @ core, 1.0)), 0, 1.2) * blob.around
    weight = opacity if opacity.any() else blob.core
    weight = weight / weight.sum()
    at = np.arange(len(opacity)) + 0.5
    x, y = float(weight.sum(0) @ at), float(weight.sum(1) @ at)
    column, row = round(x * STEPS), round(y * STEPS)
    half = patch_side(side) // 2
    left, top = column // STEPS - half, row // STEPS - half
    window = (slice(top, top + 2 * half + 1), slice(left, left + 2 * half + 1))
    bank = templates(side, column % STEPS, row % STEPS)
    seen, free = opacity[window].ravel(), blob.free[window].ravel()
    best = int((bank.unit @ seen).argmax()) if free.all() else int(_angles(bank.cover * free, seen).argmax())
    cover = bank.cover[best] * free
    square = max(float(cover @ cover), TINY)
    explained = cover * (float(cover @ seen) / square)
    overlap = float(np.minimum(seen, explained).sum()) / max(float(np.maximum(seen, explained).sum()), TINY)
    colour = cover @ difference[window].reshape(-1, 3) / square
    shape, size = bank.shapes[best], bank.sizes[best]
    du, dv = centroid(shape)
    centre = tuple((p - margin) / side - SIZES[size] * d for p, d in ((x, du), (y, dv)))
    thing = Thing(shape if overlap >= KNOWN else "", nearest(colour + ground), size, (centre[0], centre[1]))
    return _Fit(thing, overlap, window, bank.cover[best].reshape(2 * half + 1, -1))


def _angles(covers: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Returns the cosine (times |seen|) of each cover with what is seen; 0 for one wholly under other blobs."""
    return covers @ seen / np.maximum(np.linalg.norm(covers, axis=1), TINY)
