"""Checkpoints: atomic, without pickle, verified by a manifest; a run resumes from the newest valid one."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from t2i.component import check_keys, read_safetensors, save_weights
from t2i.errors import RunFailed
from t2i.files import atomic_folder, read_json, remove_folder, sha256, write_json
from t2i.training.ema import EMA


class Parts(NamedTuple):
    """The parts of a checkpoint, by the name of the network."""

    networks: dict[str, nn.Module]
    optimizers: dict[str, Any]
    emas: dict[str, EMA]


def save(folder: Path, state: dict[str, Any], parts: Parts, keep: int) -> None:
    """Writes `folder/step_NNNNNNN`, then deletes all but the newest `keep`; later ones, which were invalid, too."""
    step = f"step_{state['step']:07}"
    with atomic_folder(folder / step) as tmp:
        for name, network in parts.networks.items():
            save_weights(network.state_dict(), tmp / f"{name}.safetensors")
            tensors, groups = pack_optimizer(parts.optimizers[name])
            save_weights(tensors, tmp / f"{name}.optimizer.safetensors")
            state = state | {f"{name}.optimizer": groups}
            if name in parts.emas:
                save_weights(parts.emas[name].shadow, tmp / f"{name}.ema.safetensors")
                state = state | {f"{name}.ema_updates": parts.emas[name].updates}
        write_json(tmp / "state.json", state)
        write_json(tmp / "manifest.json", {p.name: sha256(p) for p in sorted(tmp.iterdir())})
    checkpoints = sorted(folder.glob("step_*"))
    kept = [path for path in checkpoints if path.name <= step][-keep:]
    for path in checkpoints:
        if path not in kept:
            remove_folder(path)


def check_weights(parts: Parts, step: int) -> None:
    """Raises RunFailed, naming the tensor, if a weight is not finite: the loss does not show the last update."""
    for name, network in parts.networks.items():
        ema = parts.emas[name].shadow if name in parts.emas else {}
        for key, tensor in (*network.state_dict().items(), *ema.items()):
            if not tensor.isfinite().all():
                raise RunFailed(
                    f"step {step}: `{key}` of `{name}` is not finite after the update; nothing was saved, and the "
                    f"checkpoints are unchanged. Lower train.lr or set train.mixed_precision=no, in a new folder: "
                    f"out=FOLDER"
                )


def load(folder: Path, parts: Parts) -> dict[str, Any]:
    """Loads a checkpoint into `parts`; returns its state."""
    state = read_json(folder / "state.json")
    for name, network in parts.networks.items():
        weights = read_safetensors(folder / f"{name}.safetensors")
        check_keys(network.state_dict(), weights, folder / name)
        network.load_state_dict(weights)
        slots = read_safetensors(folder / f"{name}.optimizer.safetensors")
        unpack_optimizer(parts.optimizers[name], slots, state[f"{name}.optimizer"])
        if name in parts.emas:
            shadow = read_safetensors(folder / f"{name}.ema.safetensors")
            check_keys(parts.emas[name].shadow, shadow, folder / name)
            for key, tensor in parts.emas[name].shadow.items():
                tensor.copy_(shadow[key])
            parts.emas[name].updates = state[f"{name}.ema_updates"]
    return state


def latest(folder: Path, quiet: bool = False) -> Path | None:
    """Returns the newest checkpoint that is complete and intact by its manifest; damaged ones are reported."""
    for path in sorted(folder.glob("step_*"), reverse=True):
        fault = damage(path)
        if fault is None:
            return path
        if not quiet:
            print(f"{path}: skipped, {fault}", flush=True)
    return None


def damage(path: Path) -> str | None:
    """Returns the fault of a checkpoint, or None."""
    try:
        manifest = read_json(path / "manifest.json")
    except ValueError as error:
        return str(error)
    for name, digest in manifest.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if sha256(path / name) != digest:
            return f"{name} is damaged (its SHA-256 differs)"
    return None


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Returns an optimiser's state as named tensors and JSON-ready parameter groups."""
    state = optimizer.state_dict()
    tensors = {f"{i}.{k}": v for i, slots in state["state"].items() for k, v in slots.items()}
    return tensors, state["param_groups"]


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], groups: list[dict[str, Any]]
) -> None:
    """Loads the result of `pack_optimizer`."""
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        slots.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": slots, "param_groups": groups})
