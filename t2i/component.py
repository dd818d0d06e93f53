"""A component is a config and its weights in a folder: `config.json` + safetensors, as diffusers lays them out."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from t2i.config import explain
from t2i.files import atomic_folder, read_json, write_json, write_safetensors

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
WEIGHTS = ".safetensors"
MOST_HEADER = 2**24  # bytes of what a safetensors file says of itself before its tensors
MOST_TENSORS = 5000  # of a network or a file: Stable Diffusion's U-Net has 686, its file with averages 1831
ALIGNMENT = 64  # bytes, of the memory that torch gives on a CPU


class ComponentConfig(BaseModel):
    """The base of every component's config: frozen, unknown keys refused, keys that begin with `_` ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

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
    def load(cls, folder: str | Path, dtype: torch.dtype | None = None, variant: str | None = None) -> Self:
        """The component in `folder`, in eval mode; missing, unexpected or mis-shaped keys are a ValueError."""
        return cls.read(Path(folder), variant).to(dtype=dtype or torch.float32)

    @classmethod
    def read(cls, folder: Path, variant: str | None = None) -> Self:
        """The component in `folder`, its tensors in the dtypes that they have there."""
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder")
        values = read_json(folder / "config.json")
        kind = values.get("_class_name", values.get("model_type", cls.diffusers_class))
        if kind != cls.diffusers_class:
            raise ValueError(f"{folder}: this is a {kind}, not a {cls.diffusers_class}")
        config = cls.Config.parse(values, str(folder / "config.json"))
        return cls.build(config, cls.rename_keys(load_weights(folder, cls.weights_name, variant)), folder)

    @classmethod
    def build(cls, config: Any, state: dict[str, Tensor], where: str | Path) -> Self:
        """The component around the very tensors of `state`, in eval mode; what does not fit is named."""
        with few_tensors(where), torch.device("meta"):
            network = cls(config)
        check_keys(network.state_dict(), state, where)
        network.load_state_dict(state, assign=True)
        return network.eval()

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
    faults += [f"{k} is {v.dtype}, not floating-point" for k, v in found.items() if not v.is_floating_point()]
    if faults:
        more = [f"and {len(faults) - 20} more"] if len(faults) > 20 else []
        raise ValueError("\n  ".join([f"{where}: the weights do not fit its config.json:", *faults[:20], *more]))


@contextmanager
def few_tensors(where: str | Path) -> Iterator[None]:
    """A block that builds a network, stopped where it has more or larger tensors than any has (a hostile config)."""
    made = 0

    def count(*_: Any) -> None:
        nonlocal made
        made += 1
        if made > MOST_TENSORS:
            raise ValueError(f"{where}: config.json asks for more than {MOST_TENSORS} tensors, no model is so deep")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    except (RuntimeError, OverflowError, ZeroDivisionError) as error:
        cause = str(error).partition("\n")[0]
        raise ValueError(f"{where}: config.json describes no network ({cause})") from None
    finally:
        hook.remove()


class WeightFiles(NamedTuple):
    """Where weights lie: one file, or shards in the order of their names and the index that lists them."""

    files: tuple[Path, ...]
    index: dict[str, str] | None  # key -> the name of its shard
    variant: str | None


def weight_variants(folder: Path, name: str) -> dict[str | None, Path]:
    """Each variant of the weights called `name`, None the plain one: its file, or the index of its shards."""
    stem = re.escape(name.removesuffix(WEIGHTS))
    pattern = re.compile(rf"{stem}(?:\.(\w+))?\.safetensors|{stem}\.safetensors\.index(?:\.(\w+))?\.json")
    found: dict[str | None, Path] = {}
    for path in sorted(folder.glob("*")):
        if match := pattern.fullmatch(path.name):
            variant = match[1] or match[2]
            if variant in found:
                raise ValueError(f"{folder}: holds {found[variant].name} and {path.name}: which? take one of them away")
            found[variant] = path
    return found


def weight_files(folder: Path, name: str, variant: str | None = None) -> WeightFiles:
    """The files of the weights called `name`; where there is but one variant (as fp16) it is taken unasked."""
    found = weight_variants(folder, name)
    if not found and (pickles := [p.name for p in sorted(folder.glob("*")) if p.suffix in PICKLES]):
        raise ValueError(
            f"{folder}: {pickles[0]} is a pickle, which can run code; only safetensors are "
            "loaded: save it as safetensors first, where you trust it"
        )
    if not found:
        raise ValueError(f"{folder}: no {name}: the folder holds no weights for this component")
    if variant is None and len(found) == 1:
        [variant] = found
    if variant not in found:
        there = ", ".join(path.name for path in found.values())
        asked = "which variant?" if variant is None else f"no variant {variant!r}:"
        raise ValueError(f"{folder}: {asked} there are {there}")
    path = found[variant]
    if path.suffix != ".json":
        return WeightFiles((path,), None, variant)
    index = read_index(path)
    return WeightFiles(tuple(folder / shard for shard in sorted(set(index.values()))), index, variant)


def read_index(path: Path) -> dict[str, str]:
    """key -> shard, as the index beside the shards has it; a shard elsewhere is refused."""
    index = read_json(path).get("weight_map")
    if not isinstance(index, dict) or not 0 < len(index) <= MOST_TENSORS:
        raise ValueError(f"{path}: has no `weight_map` of 1 to {MOST_TENSORS} keys to files")
    for key, shard in index.items():
        if not isinstance(shard, str) or re.search(r"[/\\\0]", shard) or not shard.endswith(WEIGHTS):
            raise ValueError(f"{path}: `{key}` is to lie in {shard!r:.200}, no safetensors file of this folder")
        if not (path.parent / shard).is_file():
            raise ValueError(f"{path}: lists {shard}, which is not there")
    return index


def load_weights(folder: Path, name: str, variant: str | None = None) -> dict[str, Tensor]:
    """The tensors called `name` in `folder` (see `weight_files`), each where its index says; pickles are refused."""
    files, index, _ = weight_files(folder, name, variant)
    state: dict[str, Tensor] = {}
    for path in files:
        found = {key: aligned(tensor) for key, tensor in read_safetensors(path).items()}
        for key in found:
            if index is not None and index.get(key) != path.name:
                raise ValueError(f"{path}: holds {key}, which the index has in {index.get(key, 'no shard')}")
        state |= found
    if index is not None and (missing := [key for key in index if key not in state]):
        raise ValueError(f"{folder / index[missing[0]]}: lacks {missing[0]}, which the index has in it")
    return state


def aligned(tensor: Tensor) -> Tensor:
    """The tensor where torch would have put it: where one lies in memory decides the last bits of its products."""
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; a damaged one is a ValueError that names it."""
    with open_safetensors(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


@contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """A safetensors file, open; one that is damaged, or that would take long to read, is a ValueError that names it."""
    try:
        with open(path, "rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > MOST_HEADER:
            raise ValueError(f"{path}: not a readable safetensors file (a header of {header} bytes)")
        with safe_open(path, framework="pt") as file:
            if (count := len(file.keys())) > MOST_TENSORS:
                raise ValueError(f"{path}: holds {count} tensors, no model has more than {MOST_TENSORS}")
            yield file
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from None


def save_weights(
    state: dict[str, Tensor], path: Path, dtype: torch.dtype | None = None, shard_size: int | None = None
) -> None:
    """Write tensors as safetensors, floating ones in `dtype` if given; as shards of `shard_size` bytes and an index."""
    tensors = {
        k: v.detach().to(device="cpu", dtype=dtype if v.is_floating_point() else None).contiguous()
        for k, v in state.items()
    }
    shards: list[dict[str, Tensor]] = [{}]
    room = shard_size or 0
    for key, tensor in tensors.items():
        if shard_size is not None and tensor.nbytes > room and shards[-1]:
            shards.append({})
            room = shard_size
        shards[-1][key] = tensor
        room -= tensor.nbytes
    if len(shards) == 1:
        return write_safetensors(path, tensors)
    index: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        file = path.with_name(f"{path.stem}-{i:05}-of-{len(shards):05}{WEIGHTS}")
        write_safetensors(file, shard)
        index |= dict.fromkeys(shard, file.name)
    total = sum(tensor.nbytes for tensor in tensors.values())
    write_json(path.with_name(f"{path.name}.index.json"), {"metadata": {"total_size": total}, "weight_map": index})
