"""Components: a network's config and weights in a folder, `config.json` + safetensors, in diffusers' layout."""

import hashlib
import re
import shlex
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
MOST_HEADER = 2**24  # bytes of a safetensors file's header
MOST_TENSORS = 5000  # of a network or a file: Stable Diffusion's U-Net has 686, its file with EMA weights 1831
ALIGNMENT = 64  # bytes, of memory that torch allocates on a CPU


class ComponentConfig(BaseModel):
    """The base of every component's config: frozen, unknown keys refused, keys that begin with `_` ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Returns the config in a JSON file; raises a ValueError that names the file and the key."""
        return cls.parse(read_json(path), str(path))

    @classmethod
    def parse(cls, values: dict[str, Any], where: str) -> Self:
        """Returns the config in `values`, read from `where`; raises a ValueError that names `where` and the key."""
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
        """Writes `folder/config.json` and the weights (in `dtype` if given) atomically."""
        with atomic_folder(folder) as tmp:
            config = {"_class_name": self.diffusers_class} | self.config.model_dump(mode="json")
            write_json(tmp / "config.json", config)
            save_weights(self.state_dict(), tmp / self.weights_name, dtype)

    @classmethod
    def load(cls, folder: str | Path, dtype: torch.dtype | None = None, variant: str | None = None) -> Self:
        """Returns the component in `folder`, in eval mode; raises a ValueError for keys that do not fit."""
        return cls.read(Path(folder), variant).to(dtype=dtype or torch.float32)

    @classmethod
    def read(cls, folder: Path, variant: str | None = None) -> Self:
        """Returns the component in `folder`, its tensors in the dtypes of its files."""
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
        """Returns the component with the tensors of `state`, not copies; raises a ValueError if they do not fit."""
        with few_tensors(where), torch.device("meta"):
            network = cls(config)
        check_keys(network.state_dict(), state, where)
        network.load_state_dict(state, assign=True)
        return network.eval()

    @classmethod
    def rename_keys(cls, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Maps the parameter names of older files to today's."""
        return state

    def fingerprint(self) -> str:
        """Returns the SHA-256 of the config and the weights."""
        return fingerprint(self.state_dict(), self.config.model_dump_json())


def fingerprint(state: dict[str, Tensor], *texts: str) -> str:
    """Returns the SHA-256 over the tensors (name, dtype, shape, bytes) and `texts`."""
    digest = hashlib.sha256("\0".join(texts).encode())
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_keys(expected: dict[str, Tensor], state: dict[str, Tensor], where: str | Path) -> None:
    """Raises a ValueError that lists every missing, unexpected or mis-shaped key: no layer is ever left random."""
    faults = [f"missing {k}" for k in expected if k not in state]
    faults += [f"unexpected {k}" for k in state if k not in expected]
    faults += [
        f"{k} has shape {tuple(state[k].shape)}, config.json asks for {tuple(expected[k].shape)}"
        for k in expected
        if k in state and expected[k].shape != state[k].shape
    ]
    faults += [f"{k} is {v.dtype}, not floating-point" for k, v in state.items() if not v.is_floating_point()]
    if faults:
        more = [f"and {len(faults) - 20} more"] if len(faults) > 20 else []
        raise ValueError("\n  ".join([f"{where}: the weights do not fit its config.json:", *faults[:20], *more]))


@contextmanager
def few_tensors(where: str | Path) -> Iterator[None]:
    """Limits the number of tensors of a network that is built in the block, against hostile configs."""
    made = 0

    def count(*_: Any) -> None:
        nonlocal made
        made += 1
        if made > MOST_TENSORS:
            raise ValueError(f"{where}: config.json asks for more than {MOST_TENSORS} tensors: no model is so deep")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    except (RuntimeError, OverflowError, ZeroDivisionError) as error:
        cause = str(error).partition("\n")[0]
        raise ValueError(f"{where}: config.json describes no network ({cause})") from None
    finally:
        hook.remove()


class WeightFiles(NamedTuple):
    """The files of weights: one file, or shards in the order of their names and the index that lists them."""

    files: tuple[Path, ...]
    index: dict[str, str] | None  # key -> the name of its shard
    variant: str | None


def weight_variants(folder: Path, name: str) -> dict[str | None, Path]:
    """Returns the file, or the index of shards, of each variant of the weights `name`; None is the plain variant."""
    stem = re.escape(name.removesuffix(WEIGHTS))
    pattern = re.compile(rf"{stem}(?:\.(\w+))?\.safetensors|{stem}\.safetensors\.index(?:\.(\w+))?\.json")
    variants: dict[str | None, Path] = {}
    for path in sorted(folder.glob("*")):
        if match := pattern.fullmatch(path.name):
            variant = match[1] or match[2]
            if variant in variants:
                raise ValueError(f"{folder}: holds {variants[variant].name} and {path.name}: remove one of them")
            variants[variant] = path
    return variants


def weight_files(folder: Path, name: str, variant: str | None = None) -> WeightFiles:
    """Returns the files of the weights `name`; a single variant (such as fp16) needs no choice."""
    variants = weight_variants(folder, name)
    if not variants and (pickles := [p.name for p in sorted(folder.glob("*")) if p.suffix in PICKLES]):
        raise ValueError(
            f"{folder}: {pickles[0]} is a pickle, which can run code; only safetensors are "
            "loaded: save it as safetensors first if you trust it"
        )
    if not variants:
        raise ValueError(f"{folder}: no {name}: the folder holds no weights for this component")
    if variant is None and len(variants) == 1:
        [variant] = variants
    if variant not in variants:
        names = ", ".join(path.name for path in variants.values())
        problem = "which variant?" if variant is None else f"no variant {variant!r}:"
        raise ValueError(f"{folder}: {problem} there are {names}")
    path = variants[variant]
    if path.suffix != ".json":
        return WeightFiles((path,), None, variant)
    index = read_index(path)
    return WeightFiles(tuple(folder / shard for shard in sorted(set(index.values()))), index, variant)


def pickle_refused(path: Path) -> ValueError:
    """Returns the error for a pickle, which names the command that reads its tensors."""
    command = shlex.join(["t2i", "convert", str(path), str(path.with_suffix(WEIGHTS))])
    return ValueError(f"{path}: a pickle, which can run code; `{command}` reads its tensors alone (weights_only=True)")


def read_index(path: Path) -> dict[str, str]:
    """Returns {key: shard} of an index; raises a ValueError for shards in other folders."""
    index = read_json(path).get("weight_map")
    if not isinstance(index, dict) or not 0 < len(index) <= MOST_TENSORS:
        raise ValueError(f"{path}: has no `weight_map` of 1 to {MOST_TENSORS} keys to files")
    for key, shard in index.items():
        if not isinstance(shard, str) or re.search(r"[/\\\0]", shard) or not shard.endswith(WEIGHTS):
            raise ValueError(f"{path}: `{key}` is in {shard!r:.200}, which is not a safetensors file of this folder")
        if not (path.parent / shard).is_file():
            raise ValueError(f"{path}: lists {shard}, which does not exist")
    return index


def load_weights(folder: Path, name: str, variant: str | None = None) -> dict[str, Tensor]:
    """Returns the tensors of the weights `name` in `folder` (see `weight_files`); pickles are refused."""
    files, index, _ = weight_files(folder, name, variant)
    state: dict[str, Tensor] = {}
    for path in files:
        tensors = {key: aligned(tensor) for key, tensor in read_safetensors(path).items()}
        for key in tensors:
            if index is not None and index.get(key) != path.name:
                raise ValueError(f"{path}: holds {key}, which the index has in {index.get(key, 'no shard')}")
        state |= tensors
    if index is not None and (missing := [key for key in index if key not in state]):
        raise ValueError(f"{folder / index[missing[0]]}: lacks {missing[0]}, which the index has in it")
    return state


def aligned(tensor: Tensor) -> Tensor:
    """Returns the tensor at an address that torch would choose: the alignment decides the last bits of its products."""
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file; raises a ValueError that names a damaged one."""
    with open_safetensors(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


@contextmanager
def open_safetensors(path: Path) -> Iterator[Any]:
    """Opens a safetensors file; raises a ValueError that names it if it is damaged or would take long to read."""
    try:
        with open(path, "rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > MOST_HEADER:
            raise ValueError(f"{path}: not a readable safetensors file (a header of {header} bytes)")
        with safe_open(path, framework="pt") as file:
            if (count := len(file.keys())) > MOST_TENSORS:
                raise ValueError(f"{path}: holds {count} tensors; no model has more than {MOST_TENSORS}")
            yield file
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from None


def save_weights(
    state: dict[str, Tensor], path: Path, dtype: torch.dtype | None = None, shard_size: int | None = None
) -> None:
    """Writes safetensors, floating tensors in `dtype` if given, in shards of `shard_size` bytes and an index."""
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
