"""Stable Diffusion 1.5 and 2.1 as published, key for key, with other numbers in the tensors."""

import gzip
import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from t2i.files import write_json

Name = Literal["sd15", "sd21"]
INTEGERS = ("position_ids", "num_updates")
WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


class Published(NamedTuple):
    """The JSON files of a folder by their paths, and every tensor's shape: a folder's by component, a single file's."""

    configs: dict[str, dict[str, Any]]
    folder: dict[str, dict[str, list[int]]]
    single_file: dict[str, list[int]]


def published(name: Name) -> Published:
    """What `build.py` wrote."""
    return Published(**json.loads(gzip.decompress((Path(__file__).parent / f"{name}.json.gz").read_bytes())))


def random_tensors(
    shapes: dict[str, list[int]], dtype: torch.dtype = torch.float16, seed: int = 0
) -> dict[str, Tensor]:
    """Tensors of these shapes with which a network's values stay finite; counting ones where the original counts."""
    draw = torch.Generator().manual_seed(seed)
    return {key: random_tensor(key, shape, dtype, draw) for key, shape in shapes.items()}


def random_tensor(key: str, shape: list[int], dtype: torch.dtype, draw: torch.Generator) -> Tensor:
    """Matrices scaled by their inputs, norms near one, biases small."""
    if key.endswith(INTEGERS):
        return torch.arange(shape[-1]).expand(shape).contiguous() if shape else torch.tensor(1)
    noise = torch.randn(shape, generator=draw)
    if "norm" in key or ".ln_" in key or ".in_layers.0." in key or ".out_layers.0." in key or ".out.0." in key:
        noise = 0.02 * noise + (0.0 if key.endswith("bias") else 1.0)
    elif len(shape) > 1:
        noise = noise / (noise[0].numel() ** 0.5)
    else:
        noise = 0.02 * noise
    return noise.to(dtype)


def write_published_folder(name: Name, folder: Path, dtype: torch.dtype = torch.float16) -> Path:
    """The folder as the hub has it, but for its tokenizer's files."""
    found = published(name)
    for path, values in found.configs.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        write_json(folder / path, values)
    for component, shapes in found.folder.items():
        save_file(random_tensors(shapes, dtype), folder / component / WEIGHTS[component], {"format": "pt"})
    return folder


def write_published_single_file(name: Name, path: Path, dtype: torch.dtype = torch.float16) -> Path:
    """The single file as it was published: no configs in it."""
    save_file(random_tensors(published(name).single_file, dtype), path, {"format": "pt"})
    return path
