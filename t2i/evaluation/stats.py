"""Statistics of reference features in a file: ours, pytorch-fid's and clean-fid's (npz), torch-fidelity's (pt)."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from t2i.evaluation.frechet import Reference, factor_of
from t2i.evaluation.protocol import IDENTITY
from t2i.files import atomic_file

FORMAT = 1


def save_reference(reference: Reference, path: str | Path) -> None:
    """Write `path` (.npz) whole or not at all: mean, trace, factor, n, and what they are of."""
    path = Path(path)
    said = dict(reference.identity)
    if missing := [key for key in IDENTITY if key not in said]:
        raise ValueError(f"{path}: statistics without {', '.join(missing)} could not be told from others")
    assert reference.n is not None
    with atomic_file(path) as tmp, tmp.open("wb") as file:
        np.savez(
            file,
            t2i=np.array(FORMAT),
            identity=np.array(json.dumps(said, sort_keys=True)),
            n=np.array(reference.n),
            mean=reference.mean.numpy(force=True),
            trace=np.array(reference.trace),
            factor=reference.factor.numpy(force=True),
        )


def load_reference(path: str | Path) -> Reference:
    """The reference in a file; without our `identity` nobody can say which network and pictures it is of."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    found = _torch_fidelity(path) if path.suffix in (".pt", ".pth") else _npz(path)
    if "t2i" in found:
        return _ours(found, path)
    if not {"mu", "sigma"} <= found.keys():
        raise ValueError(
            f"{path}: holds {', '.join(found) or 'nothing'}; statistics are `mu` and `sigma`, or t2i's own"
        )
    mean, sigma = (torch.from_numpy(np.array(found[key], dtype=np.float64)) for key in ("mu", "sigma"))
    if mean.ndim != 1 or sigma.shape != (len(mean), len(mean)):
        raise ValueError(f"{path}: mu has shape {tuple(mean.shape)} and sigma {tuple(sigma.shape)}: (d,) and (d, d)")
    if not (mean.isfinite().all() and sigma.isfinite().all()):
        raise ValueError(f"{path}: holds NaN or infinity: compute it again")
    if not torch.allclose(sigma, sigma.T, rtol=1e-6, atol=1e-6 * float(sigma.abs().max())):
        raise ValueError(f"{path}: sigma is not symmetric: it is no covariance")
    return Reference(None, mean, float(sigma.trace()), factor_of(sigma))


def _ours(found: dict[str, Any], path: Path) -> Reference:
    if int(found["t2i"]) != FORMAT:
        raise ValueError(f"{path}: statistics of format {int(found['t2i'])}, this version reads {FORMAT}")
    if missing := {"identity", "n", "mean", "trace", "factor"} - found.keys():
        raise ValueError(f"{path}: lacks {', '.join(sorted(missing))}: the file is damaged, make it again")
    mean, factor = torch.from_numpy(found["mean"]), torch.from_numpy(found["factor"])
    if factor.ndim != 2 or mean.shape != factor.shape[:1] or not (mean.isfinite().all() and factor.isfinite().all()):
        raise ValueError(f"{path}: its mean and factor do not fit or are not finite: the file is damaged")
    identity = json.loads(str(found["identity"]))
    return Reference(int(found["n"]), mean, float(found["trace"]), factor, tuple(sorted(identity.items())))


def _npz(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("one array, where statistics have two")
            wanted = {"t2i", "identity", "n", "mean", "trace", "factor", "mu", "sigma"}
            return {key: file[key] for key in file.files if key in wanted}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: no readable npz of statistics ({error})") from None


def _torch_fidelity(path: Path) -> dict[str, Any]:
    """The cache of torch-fidelity: a dict of arrays. Nothing else in the pickle is let through."""
    array = np.zeros(1)
    allowed: list[Any] = [np.ndarray, np.dtype, type(np.dtype(np.float32)), type(np.dtype(np.float64))]
    allowed += [array.__reduce__()[0], (array.__reduce__()[0], "numpy.core.multiarray._reconstruct")]
    try:
        with torch.serialization.safe_globals(allowed):
            found = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # unpickling broken bytes raises anything
        raise ValueError(f"{path}: no readable statistics of torch-fidelity ({type(error).__name__})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: holds {type(found).__name__}, not a dict of `mu` and `sigma`")
    return found
