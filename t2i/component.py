"""A component is a config and its weights in a folder: `config.json` + safetensors, as diffusers lays them out."""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from t2i.config import explain

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class ComponentConfig(BaseModel):
    """The base of every component's config: frozen, unknown keys refused, keys that begin with `_` ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The config in a JSON file; a bad one is a ValueError that names the file and the key."""
        return cls.parse(read_json(path), str(path))

    @classmethod
    def parse(cls, values: dict[str, Any], where: str) -> Self:
        """The config in `values`, read from `where`."""
        try:
            return cls.model_validate({k: v for k, v in values.items() if not k.startswith("_")})
        except ValidationError as error:
            raise ValueError(f"{where}: {explain(error, cls)}") from None


class Component(nn.Module):
    """A network with a config. Subclasses set `Config` and `diffusers_class`."""

    Config: ClassVar[type[ComponentConfig]]
    diffusers_class: ClassVar[str]
    weights_name: ClassVar[str] = "diffusion_pytorch_model.safetensors"

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write `folder/config.json` and the weights (in `dtype` if given); the folder appears whole or not at all."""
        with atomic_folder(folder) as tmp:
            config = {"_class_name": self.diffusers_class} | self.config.model_dump(mode="json")
            write_json(tmp / "config.json", config)
            save_weights(self.state_dict(), tmp / self.weights_name, dtype)

    @classmethod
    def load(cls, folder: str | Path, dtype: torch.dtype | None = None) -> Self:
        """The component in `folder`, in eval mode; missing, unexpected or mis-shaped keys are a ValueError."""
        folder = Path(folder)
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder")
        values = read_json(folder / "config.json")
        kind = values.get("_class_name", values.get("model_type", cls.diffusers_class))
        if kind != cls.diffusers_class:
            raise ValueError(f"{folder}: this is a {kind}, not a {cls.diffusers_class}")
        config = cls.Config.parse(values, str(folder / "config.json"))
        state = cls.rename_keys(load_weights(folder, cls.weights_name))
        with torch.device("meta"):
            network = cls(config)
        check_keys(network.state_dict(), state, folder)
        network.load_state_dict(state, assign=True)
        return network.to(dtype=dtype or torch.float32).eval()

    @classmethod
    def rename_keys(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Where older files used other names, the hook that maps them to today's."""
        return state

    def fingerprint(self) -> str:
        """sha256 of the config and the weights."""
        return fingerprint(self.state_dict(), self.config.model_dump_json())


def fingerprint(state: dict[str, Tensor], *texts: str) -> str:
    """sha256 over the tensors (name, dtype, shape, bytes) and `texts`."""
    digest = hashlib.sha256("\0".join(texts).encode())
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_keys(wanted: dict[str, Tensor], found: dict[str, Tensor], where: str | Path) -> None:
    """Raise a ValueError that lists every missing, unexpected or mis-shaped key: no layer is ever left random."""
    faults = [f"missing {k}" for k in wanted if k not in found]
    faults += [f"unexpected {k}" for k in found if k not in wanted]
    faults += [
        f"{k} has shape {tuple(found[k].shape)}, config.json asks for {tuple(wanted[k].shape)}"
        for k in wanted
        if k in found and wanted[k].shape != found[k].shape
    ]
    if faults:
        more = [f"and {len(faults) - 20} more"] if len(faults) > 20 else []
        raise ValueError("\n  ".join([f"{where}: the weights do not fit its config.json:", *faults[:20], *more]))


def load_weights(folder: Path, name: str) -> dict[str, Tensor]:
    """The tensors of `folder/name`, a safetensors file; pickles are refused."""
    path = folder / name
    if not path.is_file():
        pickles = [p.name for p in sorted(folder.glob("*")) if p.suffix in PICKLES]
        if pickles:
            raise ValueError(
                f"{folder}: {pickles[0]} is a pickle, which can run code; only safetensors are "
                "loaded: save it as safetensors first, where you trust it"
            )
        raise ValueError(f"{folder}: no {name}: the folder holds no weights for this component")
    return read_safetensors(path)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; a damaged one is a ValueError that names it."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from None


def save_weights(state: dict[str, Tensor], path: Path, dtype: torch.dtype | None = None) -> None:
    """Write tensors as safetensors, floating ones in `dtype` if given."""
    tensors = {
        k: v.detach().to(device="cpu", dtype=dtype if v.is_floating_point() else None).contiguous()
        for k, v in state.items()
    }
    path.touch()
    mode = path.stat().st_mode  # what the umask gives: safetensors makes the file anew, for its owner alone
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(mode)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or a ValueError that names the file."""
    try:
        value = json.loads(path.read_text(encoding="utf8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: not readable JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: a JSON object is needed, not {type(value).__name__}")
    return value


def write_json(path: Path, value: Any) -> None:
    """Write JSON as diffusers does: sorted keys, indent 2."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf8")


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """A temporary sibling that becomes `folder` when the block ends well: never half a folder, never a lost old one."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    tmp = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}.partial")
    old = tmp.with_name(tmp.name + "-old")
    tmp.mkdir()
    try:
        yield tmp
        sync_files([*tmp.rglob("*"), tmp])
        if folder.exists():
            os.replace(folder, old)
        os.replace(tmp, folder)
        sync_files([folder.parent])
    finally:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        shutil.rmtree(tmp, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what killed processes left of the folders that they wrote in `folder`."""
    for left in folder.glob(".*.partial*"):
        shutil.rmtree(left)


def sync_files(paths: Iterable[Path]) -> None:
    """Flush files and folders to the disk."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
