"""`.ckpt` files, for conversion alone: tensors and plain values are read, nothing in them is run."""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t2i.component import MOST_HEADER
from t2i.interop.ignored_keys import split_ignorable
from t2i.text.inversion import UNNAMED
from t2i.text.openclip import first_line


class Inert:
    """Stands for the one class that Stable Diffusion 1's own files name, as the key of a dict beside the weights."""


CALLBACK = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"


def is_safetensors(path: Path) -> bool:
    """Returns True if a file begins as safetensors do: the length of a JSON header, then the header."""
    with path.open("rb") as file:
        return int.from_bytes(file.read(8), "little") <= MOST_HEADER and file.read(1) == b"{"


def read_ckpt(path: Path) -> dict[str, Tensor]:
    """Returns the state dict in a pickle, read with `weights_only=True`; raises ValueError for anything but tensors.

    Of A1111's embeddings it is {"emb_params": vectors}. No two tensors share memory, which safetensors does not take.
    """
    values = _load(path)
    while isinstance(values, dict) and "state_dict" in values:
        values = values["state_dict"]
    if isinstance(values, dict) and isinstance(vectors := values.get("string_to_param"), dict) and len(vectors) == 1:
        values = {UNNAMED[0]: next(iter(vectors.values()))}
    if not isinstance(values, dict) or not any(isinstance(v, Tensor) for v in values.values()):
        raise ValueError(f"{path}: holds no state dict")
    others = {str(k): v for k, v in values.items() if not isinstance(v, Tensor)}
    if strange := split_ignorable(others, "single_file")[0]:
        raise ValueError(f"{path}: {', '.join(sorted(strange)[:5])} in its state dict is not a tensor")
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, tensor in values.items():
        if isinstance(tensor, Tensor):
            memory = tensor.untyped_storage().data_ptr()
            state[key] = tensor.detach().clone() if memory in seen else tensor.detach().contiguous()
            seen.add(memory)
    return state


def _load(path: Path) -> Any:
    named: Any = (Inert, CALLBACK)  # torch takes a class with the name that it has in the file
    try:
        with torch.serialization.safe_globals([named]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except pickle.UnpicklingError as error:
        if is_safetensors(path):
            raise ValueError(f"{path}: is a safetensors file: name it so, {path.with_suffix('.safetensors')}") from None
        cause = next((line for line in str(error).splitlines() if "GLOBAL" in line.upper()), "no pickle of torch's")
        raise ValueError(f"{path}: holds more than tensors, which is not read, as it can run code ({cause})") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a readable checkpoint ({first_line(error)})") from None
