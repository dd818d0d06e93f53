"""What is no Stable Diffusion 1 or 2, damaged or ambiguous is refused by name, with the way out."""

import json
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from t2i.interop.pickles import CALLBACK, read_ckpt
from t2i.interop.resolve import resolve
from t2i.interop.single_file import read_single_file, write_single_file

from .tiny import ODD, SCHEDULER, SD1, foreign, make, same, write

ONE = torch.zeros(1)


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        (["conditioner.embedders.0.transformer.text_model.final_layer_norm.bias"], "Stable Diffusion XL"),
        (["add_embedding.linear_1.weight", "conv_in.weight"], "Stable Diffusion XL"),
        (["model.diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight"], "Stable Diffusion 3"),
        (["double_blocks.0.img_attn.norm.key_norm.scale"], "Flux"),
        (["control_model.time_embed.0.weight"], "ControlNet"),
        (["model.diffusion_model.label_emb.0.0.weight", "model.diffusion_model.out.2.bias"], "unCLIP"),
        (["down_blocks.0.motion_modules.0.norm.bias"], "AnimateDiff"),
        (["lora_unet_mid.lora_down.weight", "lora_unet_mid.lora_up.weight", "lora_unet_mid.alpha"], "LoRA"),
        (["unet.mid.attn1.to_q.lora.down.weight", "unet.mid.attn1.to_q.lora.up.weight"], "LoRA"),
        (["unet.mid.attn1.to_q.lora_A.weight", "unet.mid.attn1.to_q.lora_B.weight"], "LoRA"),
        (["emb_params"], "--embedding"),
        (["<cat>"], "--embedding"),
        (["conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"], "component of a diffusers folder"),
        (["first_stage_model.quant_conv.bias"] * 2 + ["betas"], r"no U-Net .* and no text encoder"),
        ([], "holds nothing"),
    ],
)
def test_other_files_are_refused_by_name(keys, name, tmp_path):
    path = write(tmp_path / "m.safetensors", {key: ONE.clone() for key in keys})
    with pytest.raises(ValueError, match=name) as error:
        read_single_file(path)
    assert str(path) in str(error.value)


def test_pickles_and_damage(tmp_path):
    path = tmp_path / "m.ckpt"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"t2i convert \S+/m\.ckpt \S+/m\.safetensors"):
        read_single_file(path)
    with pytest.raises(ValueError, match="no such file"):
        read_single_file(tmp_path / "absent.safetensors")
    whole = write(tmp_path / "m.safetensors", foreign(make(SD1))).read_bytes()
    for n in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        cut = tmp_path / "cut.safetensors"
        cut.write_bytes(whole[:n])
        with pytest.raises(ValueError, match=r"cut\.safetensors: not a readable safetensors file"):
            read_single_file(cut)


def test_every_fault_of_the_keys_is_listed(tmp_path):
    state = foreign(make(SD1))
    state["model.diffusion_model.mystery.weight"] = ONE
    state["something_else"] = ONE.clone()
    del state["first_stage_model.encoder.norm_out.bias"]
    state["model.diffusion_model.out.0.bias"] = torch.zeros(3)
    name = "cond_stage_model.transformer.text_model.final_layer_norm.bias"
    state[name] = state[name].long()
    with pytest.raises(ValueError, match=r"m\.safetensors \(configs: inferred\)") as error:
        read_single_file(write(tmp_path / "m.safetensors", state))
    for fault in (
        "missing first_stage_model.encoder.norm_out.bias",
        "unexpected model.diffusion_model.mystery.weight",
        "unexpected something_else",
        "model.diffusion_model.out.0.bias has shape (3,)",
        f"{name} is torch.int64",
    ):
        assert fault in str(error.value)


def test_a_tensor_that_is_of_no_known_build():
    shapes = {key: tuple(tensor.shape) for key, tensor in foreign(make(SD1)).items()}
    for key, part in (
        ("model.diffusion_model.time_embed.0.weight", "U-Net"),
        ("first_stage_model.decoder.conv_in.weight", "autoencoder"),
        ("cond_stage_model.transformer.text_model.embeddings.token_embedding.weight", "text encoder"),
    ):
        left = {k: shape for k, shape in shapes.items() if k != key}
        with pytest.raises(ValueError, match=f"the {part} is not built(.|\n)*{key.split('.')[-2]}(.|\n)*--config DIR"):
            resolve(Path("m.safetensors"), left, {}, None, config=None, prediction=None)


HUGE = 10**12


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("unet", {"layers_per_block": HUGE}, "unet"),
        ("unet", {"block_out_channels": [HUGE * 4] * 3}, "unet"),
        ("unet", {"in_channels": "four"}, "in_channels"),
        ("unet", {"new_key": 1}, "new_key"),
        ("text_encoder", {"num_hidden_layers": HUGE}, "num_hidden_layers"),
        ("text_encoder", {"hidden_size": -1}, "hidden_size"),
        ("text_encoder", {"model_type": "t5"}, "model_type"),
        ("unet", {"layers_per_block": 1}, "the weights do not fit"),
        ("scheduler", {"prediction_type": ["v"]}, "prediction"),
    ],
)
def test_damaged_configs_in_the_metadata(part, changes, message, tmp_path):
    components, path = make(ODD), tmp_path / "m.safetensors"
    write_single_file(path, components, SCHEDULER)
    values: dict[str, Any] = {name: config for name, (config, _) in components.items()} | {"scheduler": SCHEDULER}
    values = values | {"schema_version": 1, part: values[part] | changes}
    size = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + size])
    header["__metadata__"]["t2i"] = json.dumps(values)
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + path.read_bytes()[8 + size :])
    with pytest.raises(ValueError, match=message):
        read_single_file(path)


@pytest.mark.parametrize("text", ["{", "[]", "3", "[" * 100_000, '{"schema_version": 2}', '{"schema_version": 1}'])
def test_damaged_metadata(text, tmp_path):
    keys = ("model.diffusion_model.a", "first_stage_model.a", "cond_stage_model.model.a")
    path = write(tmp_path / "m.safetensors", {key: ONE.clone() for key in keys}, {"t2i": text})
    with pytest.raises(ValueError, match="its metadata `t2i`"):
        read_single_file(path)


def test_what_a_single_file_cannot_hold(tmp_path):
    components, path = make(ODD), tmp_path / "m.safetensors"

    def changed(part, **values):
        return components | {part: (components[part][0] | values, components[part][1])}

    for wrong, message in (
        (changed("unet", encoder_hid_dim=8), "projector"),
        (changed("text_encoder", model_type="t5"), "CLIP's text tower alone, not for 't5'"),
        (changed("text_encoder", control="control-null"), "control-null"),
        ({k: v for k, v in components.items() if k != "vae"}, "missing or too much: vae"),
        (changed("text_encoder", num_hidden_layers=1), "unexpected text_model.encoder.layers.1"),
    ):
        with pytest.raises(ValueError, match=message):
            write_single_file(path, wrong, SCHEDULER)
    assert not list(tmp_path.iterdir())


def test_config_folder_that_is_none(tmp_path):
    path = write(tmp_path / "m.safetensors", foreign(make(SD1)))
    for folder, message in ((tmp_path / "absent", "no such folder"), (tmp_path, r"holds none of unet/config\.json")):
        with pytest.raises(ValueError, match=message):
            read_single_file(path, config=folder)


class Opened:
    """A pickle that makes a file when it is run."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_ckpt_is_read_without_running_it(tmp_path):
    state, path = {"a": torch.arange(3.0), "b": torch.ones(2, 2).half()}, tmp_path / "m.ckpt"
    torch.save({"state_dict": state, "epoch": 3, "global_step": 875000}, path)
    assert same(read_ckpt(path), state)
    torch.save({"state_dict": state | {"x": Opened(str(tmp_path / "run"))}}, path)
    with pytest.raises(ValueError, match="more than tensors"):
        read_ckpt(path)
    assert not (tmp_path / "run").exists()
    torch.save({"state_dict": state | {"settings": {"a": 1}}}, path)
    with pytest.raises(ValueError, match="settings in its state dict is not a tensor"):
        read_ckpt(path)


def test_ckpt_that_names_lightnings_callback(tmp_path):
    module, _, name = CALLBACK.rpartition(".")
    names = [".".join(module.split(".")[: i + 1]) for i in range(module.count(".") + 1)]
    made = {n: types.ModuleType(n) for n in names if n not in sys.modules}
    callback = type(name, (), {"__module__": module, "__qualname__": name})
    sys.modules.update(made)
    try:
        setattr(sys.modules[module], name, callback)
        torch.save({"callbacks": {callback: {"best": None}}, "state_dict": {"a": ONE}}, tmp_path / "m.ckpt")
    finally:
        for n in made:
            del sys.modules[n]
    assert read_ckpt(tmp_path / "m.ckpt").keys() == {"a"}


def test_ckpt_that_is_none(tmp_path):
    path = tmp_path / "m.ckpt"
    with pytest.raises(ValueError, match="no such file"):
        read_ckpt(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(ValueError, match="no state dict"):
        read_ckpt(path)
    for data in (b"", b"nothing", pickle.dumps([1]), path.read_bytes()[:200]):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"m\.ckpt: "):
            read_ckpt(path)
