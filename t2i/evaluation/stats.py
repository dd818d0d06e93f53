"""Statistics of reference features in a file: ours, pytorch-fid's and clean-fid's (npz), torch-fidelity's (pt)."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from t2i.evaluation.frechet import Reference, factor_of
from t2i.evaluation.protocol import IDENTITY
from t2i.files import atomic_file, check_regular

FORMAT = 1
AXES = {"t2i": 0, "identity": 0, "n": 0, "trace": 0, "mean": 1, "factor": 2, "mu": 1, "sigma": 2}  # of known arrays
MOST_DIMS = 2**14  # of features: those of Inception have 2048
MOST_TEXT = 2**16  # bytes of the identity
MOST_BYTES = 8 * (MOST_DIMS + 2) * MOST_DIMS  # of a file, and of the arrays in a pickle


def save_reference(reference: Reference, path: str | Path) -> None:
    """Writes `path` (.npz) atomically: mean, trace, factor, n, and the identity of features and images."""
    path = Path(path)
    identity = dict(reference.identity)
    if missing := [key for key in IDENTITY if key not in identity]:
        raise ValueError(f"{path}: statistics need an identity: {', '.join(missing)} is missing")
    assert reference.n is not None
    with atomic_file(path) as tmp, tmp.open("wb") as file:
        np.savez(
            file,
            t2i=np.array(FORMAT),
            identity=np.array(json.dumps(identity, sort_keys=True)),
            n=np.array(reference.n),
            mean=reference.mean.numpy(force=True),
            trace=np.array(reference.trace),
            factor=reference.factor.numpy(force=True),
        )


def load_reference(path: str | Path) -> Reference:
    """Reads the reference in a file; files of other programs have no `identity` of features and images."""
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: no such file")
    check_regular(path, MOST_BYTES)
    arrays = _torch_fidelity(path) if path.suffix in (".pt", ".pth") else _npz(path)
    if "t2i" in arrays and path.suffix == ".npz":
        return _own(arrays, path)
    if not {"mu", "sigma"} <= arrays.keys():
        raise ValueError(
            f"{path}: holds {', '.join(arrays) or 'nothing'}; statistics are `mu` and `sigma`, or t2i's own"
        )
    try:
        mean, sigma = (torch.from_numpy(np.array(arrays[key], dtype=np.float64)) for key in ("mu", "sigma"))
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: mu and sigma are no numbers ({error})") from None
    if mean.ndim != 1 or sigma.shape != (len(mean), len(mean)):
        raise ValueError(f"{path}: mu has shape {tuple(mean.shape)} and sigma {tuple(sigma.shape)}: (d,) and (d, d)")
    if not (mean.isfinite().all() and sigma.isfinite().all()):
        raise ValueError(f"{path}: holds NaN or infinity: compute it again")
    if not torch.allclose(sigma, sigma.T, rtol=1e-6, atol=1e-6 * float(sigma.abs().max())):
        raise ValueError(f"{path}: sigma is not symmetric: not a covariance")
    return Reference(None, mean, float(sigma.trace()), factor_of(sigma))


def _own(arrays: dict[str, Any], path: Path) -> Reference:
    if int(arrays["t2i"]) != FORMAT:
        raise ValueError(f"{path}: statistics of format {int(arrays['t2i'])}, this version reads {FORMAT}")
    if missing := {"identity", "n", "mean", "trace", "factor"} - arrays.keys():
        raise ValueError(f"{path}: lacks {', '.join(sorted(missing))}: the file is damaged, make it again")
    mean, factor = torch.from_numpy(arrays["mean"]), torch.from_numpy(arrays["factor"])
    if factor.ndim != 2 or mean.shape != factor.shape[:1] or not (mean.isfinite().all() and factor.isfinite().all()):
        raise ValueError(f"{path}: its mean and factor do not fit or are not finite: the file is damaged")
    try:
        identity = {str(key): str(value) for key, value in json.loads(str(arrays["identity"])).items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: its identity is no JSON object ({error}): the file is damaged") from None
    return Reference(int(arrays["n"]), mean, float(arrays["trace"]), factor, tuple(sorted(identity.items())))


def _npz(path: Path) -> dict[str, Any]:
    """Reads the known arrays of an npz, whose shapes are checked before any content is read."""
    try:
        with zipfile.ZipFile(path) as file:
            for member in file.infolist():
                if (name := member.filename.removesuffix(".npy")) in AXES:
                    with file.open(member) as stream:
                        _check_header(stream, name)
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files if key in AXES}
    except OSError as error:
        raise ValueError(f"{path}: not readable ({error})") from None
    except Exception as error:  # broken bytes raise anything: BadZipFile, zlib.error, TokenError, MemoryError, ..
        raise ValueError(f"{path}: not a readable npz of statistics ({error})") from None


def _check_header(stream: Any, name: str) -> None:
    """Raises ValueError if an array of an npz has not the axes of its name, or is too large for statistics."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    if len(shape) != AXES[name]:
        axes = ("a number", "a vector", "a matrix")[AXES[name]]
        raise ValueError(f"{name} has shape {shape}, {axes} is needed")
    if max(shape, default=0) > MOST_DIMS or dtype.itemsize > (8 if shape else MOST_TEXT):
        size = "x".join(map(str, shape))
        raise ValueError(
            f"{name} has {size or 1} values of {dtype}: at most {MOST_DIMS} dimensions of 8 bytes are read"
        )


def _torch_fidelity(path: Path) -> dict[str, Any]:
    """Reads the cache of torch-fidelity, a dict of arrays; all other objects in the pickle are refused."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            if (total := sum(member.file_size for member in file.infolist())) > MOST_BYTES:
                raise ValueError(f"{path}: {total} bytes unpacked, statistics have {MOST_BYTES} at most")
    array = np.zeros(1)
    allowed: list[Any] = [np.ndarray, np.dtype, type(np.dtype(np.float32)), type(np.dtype(np.float64))]
    allowed += [array.__reduce__()[0], (array.__reduce__()[0], "numpy.core.multiarray._reconstruct")]
    try:
        with torch.serialization.safe_globals(allowed):
            arrays = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # unpickling broken bytes raises anything
        raise ValueError(f"{path}: not readable statistics of torch-fidelity ({type(error).__name__})") from None
    if not isinstance(arrays, dict):
        raise ValueError(f"{path}: holds {type(arrays).__name__}, not a dict of `mu` and `sigma`")
    return arrays
