"""LoRA files in the dialects of diffusers, kohya and peft: read, checked against the networks, applied, merged."""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn

from t2i.component import PICKLES, WEIGHTS, pickle_refused, read_safetensors
from t2i.files import read_json
from t2i.interop.infer import SD1, SD2
from t2i.interop.lora_alpha import Alphas, folder_alphas, header_alphas
from t2i.interop.lora_names import Networks, Part, Place, file_name, network_of, spellings, split_key
from t2i.nn.lora import (
    Adapter,
    LoraLayer,
    apply_adapter,
    check_fit,
    check_weight,
    loras_of,
    merge_adapter,
    merged_weight,
)

Lora = dict[str, Adapter]  # by component: "unet", "text_encoder"
DIFFUSERS_FILE, PEFT_FILE = "pytorch_lora_weights.safetensors", "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"
COMPONENTS = ("unet", "text_encoder")
CROSS = ".attn2.to_k"
WIDTHS = {SD1.width: SD1.name, SD2.width: SD2.name, 2048: "Stable Diffusion XL"}
SHOWN = 5  # keys in a message
# Files for other models or of other methods: the first whose pattern is found at the beginning of any key.
OTHERS = (
    (r"lora_te[23]_|text_encoder_[23]\.|lora_unet_label_emb_", "a LoRA for Stable Diffusion XL"),
    (r"(lora_)?(transformer|unet)[._](.*_)?(joint|single|double)_(transformer_)?blocks", "a LoRA for SD 3 or Flux"),
    (r"transformer\.", "a LoRA for a transformer (Stable Diffusion 3, Flux or later)"),
    (r".*[._]motion_modules?[._]", "a LoRA for motion modules (AnimateDiff)"),
    (r".*\.hada_w", "a LoHa"),
    (r".*\.lokr_w", "a LoKr"),
    (r".*\.(dora_scale|lora_magnitude_vector)", "a DoRA"),
    (r".*\.lora_mid\.", "a LoCon with a core tensor (Tucker)"),
    (r".*\.oft_", "an OFT"),
    (r".*\.diff(_b)?$", "a file of whole differences"),
    (r".*\.on_input$", "an (IA)3"),
)


def load_lora(networks: Networks, path: str | Path, weight: float = 1.0, name: str | None = None) -> str:
    """Adds a LoRA with `weight` to the layers of the networks, beside those that they have; returns its name.

    The weights stay as they are, so that `set_lora_weights` and `remove_lora` can change it later.
    """
    check_weight(weight)
    name = re.sub(r"[^\w-]", "_", lora_name(path)) if name is None else name
    if any(name in loras_of(network_of(part)) for part in networks.values()):
        raise ValueError(f"{path}: a LoRA {name!r} is loaded already: give this one another name")
    for component, adapter in read_lora(path, networks).items():
        apply_adapter(network_of(networks[component]), adapter, weight, name)
    return name


def merge_lora(networks: Networks, path: str | Path, weight: float = 1.0) -> str:
    """Merges a LoRA with `weight` into the weights of the networks; returns a line for the report."""
    lora = read_lora(path, networks)
    for component, adapter in lora.items():
        merge_adapter(network_of(networks[component]), adapter, weight)
    return lora_line(path, lora, weight)


def lora_line(path: str | Path, lora: Lora, weight: float) -> str:
    """Returns a line for the report: the layers that a LoRA changes."""
    layers = " and ".join(f"{len(lora[component])} of {component}" for component in COMPONENTS if component in lora)
    return f"{path}: layers changed: {layers}, weight {weight:g}"


def merge_tensors(
    tensors: Mapping[str, dict[str, Tensor]], networks: Networks, lora: Lora, weight: float = 1.0
) -> None:
    """Merges a LoRA with `weight` into the tensors of files, by component, each in its own dtype."""
    for component, adapter in lora.items():
        for layer, change in adapter.items():
            key = f"{file_name(networks[component], layer)}.weight"
            tensors[component][key] = merged_weight(tensors[component][key], change, weight, f"{component}: {key}")


def lora_name(path: str | Path) -> str:
    """Returns the default name of a LoRA: that of its file, or of its folder where the file has a fixed name."""
    path = Path(path).resolve()
    return path.parent.name if path.name in (DIFFUSERS_FILE, PEFT_FILE) else path.name.removesuffix(WEIGHTS)


def lora_files(path: str | Path) -> list[Path]:
    """Returns the weight files of a LoRA: the file itself, or diffusers' or peft's in a folder."""
    path = Path(path)
    if path.suffix in PICKLES:
        raise pickle_refused(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"{path}: no such file; a LoRA is a .safetensors file, or a folder of peft's")
    places = [path / PEFT_FILE, *(path / component / PEFT_FILE for component in COMPONENTS)]
    files = [place for place in (path / DIFFUSERS_FILE, *places) if place.is_file()]
    if not files:
        raise ValueError(f"{path}: holds no LoRA: neither {DIFFUSERS_FILE} nor {PEFT_FILE}")
    if files[0].parent == path and len(files) > 1:
        names = ", ".join(str(file.relative_to(path)) for file in files)
        raise ValueError(f"{path}: holds more than one LoRA ({names}): give the file")
    return files


def read_lora(path: str | Path, networks: Networks) -> Lora:
    """Returns the LoRA in a file or a folder; raises ValueError that names what does not fit the networks."""
    lora: Lora = {}
    names = spellings(networks)
    for file in lora_files(path):
        state = read_safetensors(file)
        refuse_others(file, state)
        parts = place_keys(file, state, names, networks)
        config = file.parent / PEFT_CONFIG
        if file.name == PEFT_FILE and config.is_file():
            alphas = folder_alphas(read_json(config), config)
        else:
            with safe_open(file, "pt") as opened:
                alphas = header_alphas(opened.metadata() or {}, file)
        for component, adapter in adapters_of(file, parts, alphas).items():
            if doubled := set(adapter) & set(lora.get(component, {})):
                raise ValueError(f"{file}: changes {sorted(doubled)[0]}, which another file of {path} changes too")
            check_network(file, networks[component], adapter)
            lora[component] = lora.get(component, {}) | adapter
    return lora


def refuse_others(file: Path, keys: Collection[str]) -> None:
    """Raises ValueError that names the kind of a file that is not a LoRA for Stable Diffusion 1 or 2."""
    for pattern, what in OTHERS:
        if key := next((key for key in keys if re.match(pattern, key)), None):
            raise ValueError(
                f"{file}: is {what} ({key}), which does not run here; only LoRA for models of one text encoder and a "
                "U-Net is read"
            )
    if not any(split_key(key) for key in keys):
        raise ValueError(f"{file}: is not a LoRA: it holds {_some(keys) or 'nothing'}")


def place_keys(
    file: Path, state: Mapping[str, Tensor], names: Mapping[str, Place], networks: Networks
) -> dict[Place, dict[Part, Tensor]]:
    """Returns the tensors by layer and part; raises ValueError that lists the keys of no known layer."""
    placed: dict[Place, dict[Part, Tensor]] = {}
    unknown = []
    for key, tensor in state.items():
        module, part = split_key(key) or ("", "alpha")
        if module not in names:
            unknown.append(key)
            continue
        parts = placed.setdefault(names[module], {})
        if part in parts:
            raise ValueError(f"{file}: {key} is there twice, under two spellings")
        parts[part] = tensor
    if unknown:
        components = ", ".join(f"{name} ({type(network_of(part)).__name__})" for name, part in networks.items())
        raise ValueError(
            f"{file}: {len(unknown)} of its {len(state)} keys are of no layer of {components}: {_some(unknown)}; "
            "it is for another architecture"
        )
    return placed


def adapters_of(file: Path, parts: Mapping[Place, dict[Part, Tensor]], alphas: Alphas) -> Lora:
    """Returns whole layers from their parts; raises ValueError that lists missing parts."""
    halves: tuple[Part, Part] = ("down", "up")
    missing = [
        f"{'.'.join(place)} ({half})" for place, tensors in parts.items() for half in halves if half not in tensors
    ]
    if missing:
        raise ValueError(f"{file}: lacks {len(missing)} of its tensors: {_some(missing)}")
    lora: Lora = {}
    for (component, layer), tensors in parts.items():
        where, down, up = f"{file}: {component}.{layer}", tensors["down"], tensors["up"]
        for half in (down, up):
            if half.dim() < 2 or not half.numel() or not half.is_floating_point() or not half.isfinite().all():
                kind = f"{tuple(half.shape)} of {str(half.dtype).removeprefix('torch.')}"
                raise ValueError(f"{where}: is {kind}: finite matrices are needed")
        alpha = alphas(component, layer, len(down))
        if "alpha" in tensors:
            if alpha is not None:
                raise ValueError(f"{where}: its alpha is both a tensor and in the file's header: which?")
            alpha = _alpha(tensors["alpha"], where)
        lora.setdefault(component, {})[layer] = LoraLayer(down, up, float(len(down)) if alpha is None else alpha)
    return lora


def check_network(file: Path, part: nn.Module, adapter: Adapter) -> None:
    """Raises ValueError for a LoRA whose layers have other shapes than the network's, naming its model family."""
    try:
        check_fit(network_of(part), adapter)
    except ValueError as error:
        width = next((change.down.shape[1] for layer, change in adapter.items() if layer.endswith(CROSS)), None)
        family = f" (as {WIDTHS[width]}: it reads text states {width} wide)" if width in WIDTHS else ""
        raise ValueError(f"{file}: {error}{family}") from None


def _alpha(value: Tensor, where: str) -> float:
    if value.numel() != 1 or not math.isfinite(alpha := float(value)):
        raise ValueError(f"{where}: its alpha is not a finite number")
    return alpha


def _some(keys: Iterable[Any]) -> str:
    keys = list(keys)
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return ", ".join(map(str, keys[:SHOWN])) + more
