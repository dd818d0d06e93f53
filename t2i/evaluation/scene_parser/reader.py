"""Pictures to scenes: background, blobs that stand out from it, and the template that explains each blob best."""

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

VERSION = 2  # what an older parser read counts no more
LARGEST = 64  # larger pictures are averaged down to this side
FAINT = 30.0  # RGB units from the background, at least
SHARE = 0.5  # of the strongest pixel nearby: where a blob's edge is
LEAST_AREA = 0.006  # of the picture: below half of the smallest shape it is a speck
KNOWN = 0.65  # overlap (IoU) with the best template below which a blob is no known shape
WHOLE = 0.8  # overlap below which a blob may be two things of unlike colours that touch
TINY = 1e-6  # in place of a length of 0: what lies wholly under other blobs is explained by nothing
EVERYWHERE = np.ones((3, 3), bool)


@dataclass(frozen=True)
class Unparseable:
    """A picture that no scene explains."""

    reason: str


class Reading(NamedTuple):
    """A scene, and how far its own rendering is from the picture (root mean square, 0 to 1)."""

    scene: Scene | Unparseable
    residual: float


class _Blob(NamedTuple):
    core: np.ndarray
    around: np.ndarray  # with its soft edge
    free: np.ndarray  # where no other blob is: what templates are judged by


class _Fit(NamedTuple):
    thing: Thing
    overlap: float
    window: tuple[slice, slice]  # of the padded picture
    cover: np.ndarray


def parse(pictures: UInt8[Tensor, "n 3 h w"]) -> list[Scene | Unparseable]:
    """The scene of each picture; a thing of no known shape or colour has "" there."""
    return [reading.scene for reading in read(pictures)]


def read(pictures: UInt8[Tensor, "n 3 h w"]) -> list[Reading]:
    """The scene of each picture, and what it leaves unexplained."""
    height, width = pictures.shape[-2:]
    if height != width or height < LEAST_PIXELS:
        raise ValueError(
            f"pictures of {width}x{height}: scenes are read from square pictures of at least {LEAST_PIXELS} pixels"
        )
    values = pictures.float()
    if height > LARGEST:
        values = functional.interpolate(values, size=(LARGEST, LARGEST), mode="area")
    return [_read(picture) for picture in values.permute(0, 2, 3, 1).cpu().numpy().astype(np.float32)]


def _read(picture: np.ndarray) -> Reading:
    ring = max(1, len(picture) // 32)
    inner = np.ones(picture.shape[:2], bool)
    inner[ring:-ring, ring:-ring] = False
    ground = np.median(picture[inner], axis=0)
    background = nearest(ground, "background")
    if not background:
        return Reading(Unparseable("no known background"), 1.0)
    margin = patch_side(len(picture)) // 2 + 1
    difference = np.pad(picture - ground, ((margin, margin), (margin, margin), (0, 0)))
    fits = list(_fits(difference, ground, margin))
    left = difference.copy()
    for fit in fits:
        colour = np.array(COLOURS[fit.thing.colour], np.float32) - ground if fit.thing.colour else 0
        left[fit.window] -= fit.cover[..., None] * colour
    inside = left[margin:-margin, margin:-margin] + (ground - np.array(BACKGROUNDS[background]))
    residual = float(np.sqrt(np.square(inside / 255).mean()))
    if fits and not any(fit.thing.shape for fit in fits):
        return Reading(Unparseable(f"no known shape among {len(fits)} blobs"), residual)
    return Reading(Scene(tuple(fit.thing for fit in fits), background), residual)


def _fits(difference: np.ndarray, ground: np.ndarray, margin: int) -> Iterator[_Fit]:
    """The best template of every blob, in reading order."""
    side = len(difference) - 2 * margin
    strength = np.linalg.norm(difference, axis=-1)
    near = ndimage.maximum_filter(strength, size=3 if side < 48 else 5)
    blobs = _pieces((strength > FAINT) & (strength > SHARE * near), EVERYWHERE, LEAST_AREA * side * side)
    for blob in blobs:
        free = _free(blob, blobs)
        around = ndimage.binary_dilation(blob, EVERYWHERE, max(2, side // 16)) & free
        fit = _fit(difference, ground, _Blob(blob, around, free), side, margin)
        parts = _parts(difference, ground, blob, side, margin) if fit.overlap < WHOLE else []
        yield from parts if len(parts) > 1 else [fit]


def _pieces(mask: np.ndarray, touching: np.ndarray | None, least: float) -> list[np.ndarray]:
    """The connected parts of a mask, those of `least` pixels or more."""
    found = ndimage.label(mask, touching)
    assert isinstance(found, tuple)
    labels, n = found
    return [piece for piece in (labels == k for k in range(1, n + 1)) if piece.sum() >= least]


def _free(blob: np.ndarray, others: list[np.ndarray]) -> np.ndarray:
    """The pixels that are not another blob's or its soft edge's."""
    taken = np.logical_or.reduce([other for other in others if other is not blob] or [np.zeros_like(blob)])
    return np.logical_not(ndimage.binary_dilation(taken, EVERYWHERE)) | blob


def _parts(difference: np.ndarray, ground: np.ndarray, blob: np.ndarray, side: int, margin: int) -> list[_Fit]:
    """Things of unlike colours within one blob, those alone that a template explains."""
    colour = np.full(blob.shape, -1)
    colour[blob] = distances(difference[blob] + ground).argmin(-1)
    pieces = []
    for c in np.unique(colour[blob]):
        pieces += _pieces(colour == c, None, LEAST_AREA * side * side)
    free = [(colour < 0) | piece for piece in pieces]
    blobs = [_Blob(p, ndimage.binary_dilation(p) & f, f) for p, f in zip(pieces, free, strict=True)]
    found = [_fit(difference, ground, part, side, margin) for part in blobs]
    return [fit for fit in found if fit.overlap >= KNOWN]


def _fit(difference: np.ndarray, ground: np.ndarray, blob: _Blob, side: int, margin: int) -> _Fit:
    """The template nearest in angle to a blob's opacity, and the colour c of (p - ground) = cover (c - ground)."""
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
    """How near each cover is to what is seen; one that lies wholly under other blobs is not near at all."""
    return covers @ seen / np.maximum(np.linalg.norm(covers, axis=1), TINY)
