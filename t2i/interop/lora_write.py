"""LoRA files written in the dialects of diffusers, kohya and peft."""

from collections import Counter
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from t2i.component import WEIGHTS, save_weights
from t2i.files import atomic_folder, write_json, write_safetensors
from t2i.interop.lora import PEFT_CONFIG, PEFT_FILE, Lora
from t2i.interop.lora_names import PEFT, Networks, file_name, kohya_name, network_of
from t2i.nn.lora import Adapter, check_fit, peft_config

Dialect = Literal["diffusers", "kohya", "peft"]


def write_lora(
    path: str | Path, lora: Lora, networks: Networks, dialect: Dialect = "diffusers", dtype: torch.dtype | None = None
) -> None:
    """Writes a LoRA of the networks, its tensors in `dtype` if given, as a file or, for peft, as a folder, atomically.

    diffusers' dialect has no alpha that every reader reads: there `up` is scaled so that alpha is the rank.
    """
    path = Path(path)
    if dialect not in get_args(Dialect):
        raise ValueError(f"dialect = {dialect!r} is unknown: choose one of {', '.join(get_args(Dialect))}")
    if not any(lora.values()):
        raise ValueError(f"{path}: a LoRA without a layer is not written")
    if (path.suffix == WEIGHTS) == (dialect == "peft"):
        raise ValueError(f"{path}: call it {'a folder' if dialect == 'peft' else f'X{WEIGHTS}'}, as {dialect} has it")
    for component, adapter in lora.items():
        check_fit(network_of(networks[component]), adapter)
    if dialect == "peft":
        with atomic_folder(path) as tmp:
            for component, adapter in lora.items():
                _write_peft(tmp / component, adapter, dtype)
        return
    tensors: dict[str, Tensor] = {}
    for component, adapter in lora.items():
        convert = to_kohya if dialect == "kohya" else to_diffusers
        tensors |= convert(component, networks[component], adapter, dtype)
    tensors = {key: tensor.detach().to("cpu").contiguous() for key, tensor in tensors.items()}
    write_safetensors(path, tensors, {"format": "pt"} | (kohya_header(lora) if dialect == "kohya" else {}))


def to_diffusers(component: str, part: nn.Module, adapter: Adapter, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Returns a component's tensors by diffusers' names."""
    tensors = {}
    for layer, (down, up, alpha) in adapter.items():
        name = f"{component}.{file_name(part, layer)}"
        tensors[f"{name}.lora_A.weight"] = down.to(dtype=dtype)
        tensors[f"{name}.lora_B.weight"] = (up.float() * (alpha / len(down))).to(dtype or up.dtype)
    return tensors


def to_kohya(component: str, part: nn.Module, adapter: Adapter, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Returns a component's tensors by kohya's names."""
    tensors = {}
    for layer, (down, up, alpha) in adapter.items():
        name = kohya_name(component, part, layer)
        tensors[f"{name}.lora_down.weight"] = down.to(dtype=dtype)
        tensors[f"{name}.lora_up.weight"] = up.to(dtype=dtype)
        tensors[f"{name}.alpha"] = torch.tensor(alpha)
    return tensors


def kohya_header(lora: Lora) -> dict[str, str]:
    """Returns the header that kohya's tools show: the rank and alpha that most layers have."""
    sizes = Counter((change.rank, change.alpha) for adapter in lora.values() for change in adapter.values())
    (rank, alpha), _ = sizes.most_common(1)[0]
    return {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": f"{alpha:g}"}


def _write_peft(folder: Path, adapter: Adapter, dtype: torch.dtype | None) -> None:
    folder.mkdir()
    config = peft_config({layer: (change.rank, change.alpha) for layer, change in adapter.items()})
    values = config.to_dict() | {"target_modules": sorted(adapter), "inference_mode": True}
    write_json(folder / PEFT_CONFIG, {k: sorted(v) if isinstance(v, set) else v for k, v in values.items()})
    tensors = {}
    for layer, (down, up, _) in adapter.items():
        tensors[f"{PEFT}{layer}.lora_A.weight"] = down
        tensors[f"{PEFT}{layer}.lora_B.weight"] = up
    save_weights(tensors, folder / PEFT_FILE, dtype)
