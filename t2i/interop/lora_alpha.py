"""The alpha of a LoRA's layers outside of its tensors: in peft's config or diffusers' header."""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

HEADER = "lora_adapter_metadata"  # in a safetensors file of diffusers: peft's config as JSON, a key `unet.r` a setting
COMPONENTS = ("unet", "text_encoder")
# Settings that change the method: only these values are read.
ONLY: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA", None),
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "bias": ("none", None),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "alora_invocation_tokens": (None, []),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
}
CHANGES_BASE = ("pissa", "olora", "corda", "loftq")  # beginnings of the methods that start by changing the weights
ALPHA = 8  # peft's own default
# (component, layer, rank) -> alpha, or None where the file has none
Alphas = Callable[[str, str, int], float | None]


def unsaid(_component: str, _layer: str, _rank: int) -> None:
    """Returns None: the file has its alphas in its tensors, or nowhere."""
    return None


def folder_alphas(config: Mapping[str, Any], where: Path) -> Alphas:
    """Returns the alphas of peft's `adapter_config.json`, which is that of one network."""
    return lambda _, layer, rank: _alpha(config, layer, rank, where)


def header_alphas(metadata: Mapping[str, str], where: Path) -> Alphas:
    """Returns the alphas in the header of a file of diffusers; most have none."""
    if HEADER not in metadata:
        return unsaid
    try:
        values = json.loads(metadata[HEADER])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: {HEADER} in its header is not JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{where}: {HEADER} in its header is not an object")
    configs = {
        component: {k.removeprefix(f"{component}."): v for k, v in values.items() if k.startswith(f"{component}.")}
        for component in COMPONENTS
    }
    return lambda component, layer, rank: _alpha(configs[component], layer, rank, where) if configs[component] else None


def _alpha(config: Mapping[str, Any], layer: str, rank: int, where: Path) -> float:
    """Returns peft's alpha of a layer; with `use_rslora` its scale is alpha / sqrt(rank) (Kalajdzievski 2023)."""
    for key, allowed in ONLY.items():
        if config.get(key) not in allowed:
            raise ValueError(f"{where}: `{key}` = {config[key]!r} is not read; a plain LoRA is")
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(CHANGES_BASE):
        raise ValueError(f"{where}: `init_lora_weights` = {start!r} changed the weights that it is for: not read")
    pattern = config.get("alpha_pattern") or {}
    if not isinstance(pattern, dict):
        raise ValueError(f"{where}: `alpha_pattern` = {pattern!r} is not an object")
    alpha = config.get("lora_alpha", ALPHA)
    for name, value in pattern.items():
        plain = name.removeprefix("^").replace("\\.", ".")
        if not re.fullmatch(r"[\w.]+", plain):
            raise ValueError(f"{where}: `alpha_pattern` has {name!r}; names of layers are read, expressions are not")
        if layer == plain or (not name.startswith("^") and f".{layer}".endswith(f".{plain}")):
            alpha = value
            break
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ValueError(f"{where}: alpha = {alpha!r} of {layer} is not a finite number")
    return float(alpha) * (math.sqrt(rank) if config.get("use_rslora") else 1.0)
