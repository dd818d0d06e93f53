"""A component's folder: whole or not at all, every key accounted for, never a pickle."""

import os
import stat

import pytest
import torch
from torch import nn

from t2i.component import Component, ComponentConfig, fingerprint, read_safetensors, save_weights
from t2i.files import read_json, write_json


class LineConfig(ComponentConfig):
    width: int = 3
    names: tuple[str, ...] = ("a",)


class Line(Component):
    Config = LineConfig
    diffusers_class = "Line"

    def __init__(self, config: LineConfig) -> None:
        super().__init__(config)
        self.first = nn.Linear(config.width, 2)
        self.second = nn.Linear(2, 1)


def line(seed: int = 0, **keys) -> Line:
    torch.manual_seed(seed)
    return Line(LineConfig(**keys))


def test_round_trip(tmp_path):
    made = line(width=5, names=("x", "y"))
    made.save(tmp_path / "line")
    assert sorted(os.listdir(tmp_path / "line")) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert read_json(tmp_path / "line" / "config.json") == {"_class_name": "Line", "names": ["x", "y"], "width": 5}
    loaded = Line.load(tmp_path / "line")
    torch.testing.assert_close(loaded.state_dict(), made.state_dict(), rtol=0, atol=0)
    assert loaded.config == made.config and not loaded.training and loaded.fingerprint() == made.fingerprint()
    made.save(tmp_path / "line", torch.float16)
    assert read_safetensors(tmp_path / "line" / Line.weights_name)["first.weight"].dtype == torch.float16
    assert Line.load(tmp_path / "line").first.weight.dtype == torch.float32
    assert Line.load(tmp_path / "line", torch.bfloat16).first.weight.dtype == torch.bfloat16


def test_fingerprint_tells_weights_and_configs_apart():
    assert line().fingerprint() == line().fingerprint()
    assert len({line().fingerprint(), line(1).fingerprint(), line(names=("b",)).fingerprint()}) == 3
    whole = torch.tensor([1.0, 2.0])
    kinds = [whole, whole.view(2, 1), whole.bfloat16(), whole.double(), whole[0], torch.empty(0)]
    assert len({fingerprint({"w": kind}) for kind in kinds} | {fingerprint({"v": whole})}) == 7
    assert fingerprint({"w": torch.arange(6.0).view(2, 3).T}) == fingerprint(
        {"w": torch.arange(6.0).view(2, 3).T.clone()}
    )


def test_keys_that_do_not_fit_are_all_listed(tmp_path):
    line().save(tmp_path)
    state = line().state_dict()
    state["third.weight"] = state.pop("second.bias")
    state["first.weight"] = torch.zeros(2, 4)
    save_weights(state, tmp_path / Line.weights_name)
    with pytest.raises(ValueError, match="the weights do not fit") as error:
        Line.load(tmp_path)
    for said in (
        "missing second.bias",
        "unexpected third.weight",
        "first.weight has shape (2, 4), config.json asks for (2, 3)",
    ):
        assert said in str(error.value)
    assert str(tmp_path) in str(error.value) and str(error.value).count("\n") == 3


def test_config_faults_name_the_file_and_the_key(tmp_path):
    line().save(tmp_path)
    write_json(tmp_path / "config.json", {"_class_name": "Line", "_diffusers_version": "0", "widht": 3})
    with pytest.raises(ValueError, match=r"config\.json: unknown key `widht`; did you mean `width`\?"):
        Line.load(tmp_path)
    write_json(tmp_path / "config.json", {"_diffusers_version": "0", "width": 3})
    assert Line.load(tmp_path).config == LineConfig()
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"config\.json: a JSON object is needed, not list"):
        Line.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: not readable JSON"):
        Line.load(tmp_path)
    with pytest.raises(ValueError, match=r"nothing: no such folder"):
        Line.load(tmp_path / "nothing")


def test_weights_that_are_no_safetensors_are_refused(tmp_path):
    line().save(tmp_path)
    weights = tmp_path / Line.weights_name
    good = weights.read_bytes()
    for bad in (good[:-1], good[:20], b"", b"x" * 200):
        weights.write_bytes(bad)
        with pytest.raises(ValueError, match=r"diffusion_pytorch_model\.safetensors: not a readable safetensors file"):
            Line.load(tmp_path)
    weights.unlink()
    with pytest.raises(ValueError, match="the folder holds no weights for this component"):
        Line.load(tmp_path)
    torch.save(line().state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model\.bin is a pickle, which can run code"):
        Line.load(tmp_path)


@pytest.mark.parametrize(
    ("mask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700), (0o002, 0o664, 0o775)]
)
def test_files_follow_the_umask(tmp_path, mask, file, folder):
    before = os.umask(mask)
    try:
        line().save(tmp_path / "line")
        line().save(tmp_path / "line")  # and again over the old one
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "line").stat().st_mode) == folder
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "line").iterdir()} == {file}


def test_another_components_folder_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}', encoding="utf8")
    with pytest.raises(ValueError, match=r"this is a AutoencoderKL, not a "):
        Line.load(tmp_path)
