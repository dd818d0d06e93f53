"""Stock diffusers reads the single files that are written here: the same tensors as in the folder."""

import json

import pytest
from pipeline.stock import load_stock_file, read_folder, write_stock

from t2i.interop.single_file import read_single_file, write_single_file

from .tiny import same


@pytest.mark.parametrize("kind", ["sd1", "sd2-v"])
def test_from_single_file(kind, tmp_path):
    folder, path = write_stock(kind, tmp_path / "model"), tmp_path / "m.safetensors"
    components = read_folder(folder)
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    write_single_file(path, components, scheduler)
    stock = load_stock_file(path, folder)
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
