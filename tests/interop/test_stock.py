"""Stock diffusers reads the single files that are written here: the same tensors as in the folder."""

import json
import warnings
from typing import Any, cast

import pytest
import torch
from diffusers import StableDiffusionPipeline
from pipeline.stock import write_stock
from safetensors.torch import load_file

from t2i.interop.single_file import read_single_file, write_single_file

from .tiny import same

FILES = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


def read_folder(folder):
    """The components of a folder, the tower's keys with their prefix."""
    found: dict[str, Any] = {}
    for name, file in FILES.items():
        state = load_file(folder / name / file)
        if name == "text_encoder":
            state = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in state.items()}
        found[name] = (json.loads((folder / name / "config.json").read_text()), state)
    return found


@pytest.mark.parametrize("kind", ["sd1", "sd2-v"])
def test_from_single_file(kind, tmp_path):
    folder, path = write_stock(kind, tmp_path / "model"), tmp_path / "m.safetensors"
    components = read_folder(folder)
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    write_single_file(path, components, scheduler)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stock = cast(Any, StableDiffusionPipeline).from_single_file(
            str(path), config=str(folder), local_files_only=True, torch_dtype=torch.float32
        )
    for name, (_, state) in components.items():
        found = getattr(stock, name).state_dict()
        if name == "text_encoder":
            found = {
                f"text_model.{k.removeprefix('text_model.')}": v for k, v in found.items() if "position_ids" not in k
            }
        assert same(found, state), name
    got = read_single_file(path)
    assert got.scheduler["prediction_type"] == ("epsilon" if kind == "sd1" else "v_prediction")
    assert all(same(got.components[name][1], state) for name, (_, state) in components.items())
    # By the folder's configs, as stock, also without any of its own.
    assert all(same(read_single_file(path, config=folder).components[n][1], s) for n, (_, s) in components.items())
