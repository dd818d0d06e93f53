"""Classification of palette colours in CIE L*a*b*."""

import numpy as np

from t2i.data.scenes import BACKGROUNDS, COLOURS

FARTHEST = 32.0  # Lab units from a palette colour; two of the palette are 27 or more apart
MARGIN = 0.8  # the nearest colour's distance over the next one's, at most

_WHITE = np.array([0.95047, 1.0, 1.08883])  # D65
_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """Converts sRGB (..., 3) of 0..255 to L*a*b* (D65)."""
    value = np.clip(np.asarray(rgb, np.float64), 0, 255) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _XYZ.T / _WHITE
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


_NAMES = {"colour": list(COLOURS), "background": list(BACKGROUNDS)}
_LAB = {"colour": to_lab(np.array(list(COLOURS.values()))), "background": to_lab(np.array(list(BACKGROUNDS.values())))}


def distances(rgb: np.ndarray, palette: str = "colour") -> np.ndarray:
    """Computes Lab distances (..., k) to the colours of a palette."""
    return np.linalg.norm(to_lab(rgb)[..., None, :] - _LAB[palette], axis=-1)


def nearest(rgb: np.ndarray, palette: str = "colour") -> str:
    """Returns the palette's name of a colour, "" if it is near none or near two."""
    far = distances(rgb, palette)
    first, second = np.argsort(far)[:2]
    near = far[first] <= FARTHEST and far[first] <= MARGIN * far[second]
    return _NAMES[palette][first] if near else ""
