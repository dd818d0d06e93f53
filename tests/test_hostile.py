"""Damaged and hostile files through the public readers: read rightly or refused with the reason, in no time."""

import json
import random
import resource
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile import (
    PIXELS,
    SETTINGS,
    attempt,
    damaged,
    hostile_pngs,
    hostile_safetensors,
    make_png,
    ours,
    pixels,
    split_safetensors,
)
from PIL import Image
from pipeline.tiny import make_pipeline, make_vae
from text.tiny import encoder as make_encoder
from text.tiny import t5 as make_t5

from t2i.__main__ import main
from t2i.autoencoder.kl import AutoencoderKL
from t2i.component import read_safetensors
from t2i.data.decode import decode
from t2i.generator.scheduler_config import SchedulerConfig
from t2i.generator.unet import UNet
from t2i.pipeline import Defaults, Pipeline
from t2i.pipeline.metadata import read_png, request_from
from t2i.text.encoder import load_text_encoder
from t2i.text.inversion import add_embedding

MOST_MEMORY = 300 * 2**20  # more than before, whatever is read


@pytest.fixture(autouse=True)
def little_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_MEMORY


def check_png(path, data):
    """(whether settings were read, whether a picture was), both compared with what was written."""
    path.write_bytes(data)
    found, reason = attempt(lambda: read_png(path))
    assert reason is None or str(path) in reason
    if found is not None:
        attempt(request_from, found.settings)
    picture, reason = attempt(decode, data)
    return found, None if picture is None else pixels(picture)


def test_damaged_pngs(tmp_path):
    """A bit or the end of the file: settings are never changed; nor are pixels, as every chunk has its checksum."""
    rng, whole, counted = random.Random(1), make_png(), [0, 0]
    for _ in range(50):
        found, picture = check_png(tmp_path / "x.png", damaged(rng, whole))
        if found is not None:
            assert {k: found.settings[k] for k in SETTINGS} == SETTINGS
        if picture is not None:
            assert np.array_equal(picture, PIXELS)
        counted[0] += found is None
        counted[1] += picture is None
    assert counted[0] >= 45 and counted[1] >= 5


@pytest.mark.parametrize("name", hostile_pngs())
def test_hostile_pngs(tmp_path, name):
    data, readable, is_picture = hostile_pngs()[name]
    found, picture = check_png(tmp_path / "x.png", data)
    assert (found is not None, picture is not None) == (readable, is_picture)
    if found is not None:
        assert {k: found.settings[k] for k in SETTINGS} == SETTINGS
    shown = {"bomb of pixels": PIXELS * 0, "too few rows": np.concatenate([PIXELS, PIXELS * 0])}.get(name, PIXELS)
    if picture is not None and name != "jpeg":
        assert np.array_equal(picture, shown)


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae") / "vae"
    make_vae(block_out_channels=(8,)).save(folder)
    return folder


def check_weights(folder, data):
    """The reason for which a component's weights are refused; read, they are those in the file."""
    file = folder / "diffusion_pytorch_model.safetensors"
    file.write_bytes(data)
    state, reason = attempt(read_safetensors, file)
    network, second = attempt(AutoencoderKL.load, folder)
    assert all(text is None or str(folder) in text for text in (reason, second))
    if network is None:
        return reason or second
    header, numbers = split_safetensors(data)
    assert state is not None and reason is None
    for key, tensor in network.state_dict().items():
        first, last = header[key]["data_offsets"]
        assert tensor.numpy().tobytes() == state[key].numpy().tobytes() == numbers[first:last]
    return None


def test_damaged_weights(vae, tmp_path):
    """Weights have no checksum: what is read is what the file says."""
    rng, folder = random.Random(2), shutil.copytree(vae, tmp_path / "vae")
    whole = (vae / "diffusion_pytorch_model.safetensors").read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    reasons = [check_weights(folder, damaged(rng, whole, 0, header if k % 2 else None)) for k in range(40)]
    assert 20 <= sum(reason is not None for reason in reasons) < 40


BIAS = "encoder.conv_in.bias"
HARMLESS = {"the same key twice"}


def test_hostile_weights(vae, tmp_path):
    folder = shutil.copytree(vae, tmp_path / "vae")
    whole = (vae / "diffusion_pytorch_model.safetensors").read_bytes()
    for name, data in hostile_safetensors(whole, BIAS).items():
        assert (check_weights(folder, data) is None) == (name in HARMLESS), name


def test_hostile_embeddings(tmp_path):
    """The text encoder is as it was after every one that is refused."""
    rng, encoder = random.Random(3), make_encoder()
    mark, path = encoder.fingerprint(), tmp_path / "zorp.safetensors"
    from safetensors.torch import save

    whole = save({"emb_params": torch.ones(2, 32)})
    cases = [damaged(rng, whole, 0, 80) for _ in range(12)]
    cases += [save({name: tensor}) for name, tensor in {
        "emb_params": torch.full((1, 32), float("nan")), "": torch.ones(1, 32), "red": torch.ones(1, 32),
        "wide": torch.ones(1, 33), "none": torch.ones(0, 32), "deep": torch.ones(1, 1, 32),
        "int": torch.ones(1, 32).int(),
    }.items()]  # fmt: skip
    refused = 0
    for data in cases:
        path.write_bytes(data)
        found, reason = attempt(add_embedding, encoder, path)
        if found is None:
            assert reason is not None and str(path) in reason and encoder.fingerprint() == mark
            refused += 1
        else:
            encoder = make_encoder()
    assert refused >= 15


VALUES = [None, True, -1, 0, 3.5, 1e308, 10**9, 10**30, "x", "", [], {}, [[]], [0], [10**9] * 2, ["x"], "../../passwd"]
TEXTS = {"deep": "[" * 100_000, "deep object": '{"a":' * 100_000, "empty": "", "null": "null", "list": "[]",
         "no utf-8": b"\xff\xfe{}", "cut": '{"_class_name": "x', "nan": '{"scaling_factor": NaN}',
         "digits": '{"layers_per_block": ' + "9" * 5000 + "}"}  # fmt: skip
NOT_READ = ("architectures", "model_type", "eos_token_id")  # the tokenizer says which token ends a prompt
READERS = {
    "unet/config.json": lambda folder: UNet.load(folder / "unet").config.model_dump(),
    "vae/config.json": lambda folder: AutoencoderKL.load(folder / "vae").config.model_dump(),
    "scheduler/scheduler_config.json": lambda folder: SchedulerConfig.load(folder / "scheduler").model_dump(),
    "t2i.json": lambda folder: Defaults.read(folder / "t2i.json").model_dump(),
    "model_index.json": lambda folder: Pipeline.from_pretrained(folder) and None,
    "text_encoder/config.json": lambda folder: load_text_encoder(folder).file_config(),
    "tokenizer/tokenizer_config.json": lambda folder: load_text_encoder(folder) and None,
    "tokenizer/tokenizer.json": lambda folder: load_text_encoder(folder) and None,
    "t5/text_encoder/config.json": lambda folder: load_text_encoder(folder / "t5").file_config(),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile") / "model"
    make_pipeline().save_pretrained(folder)
    make_t5().save(folder / "t5")
    return folder


@pytest.mark.parametrize("file", READERS)
def test_hostile_configs(model, tmp_path, file):
    """15 values of a wrong type or size, and files that are none: what is read is what the file says."""
    folder = shutil.copytree(model, tmp_path / "model")
    path, read, rng = folder / file, READERS[file], random.Random(file)
    whole = json.loads(path.read_text())
    assert attempt(read, folder)[1] is None
    keys = ["model", "added_tokens", "normalizer"] if file.endswith("tokenizer.json") else sorted(whole)
    refused, loose = 0, file.startswith("tokenizer") or file == "model_index.json"  # with keys that nothing reads
    for name, text in TEXTS.items():
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        found, reason = attempt(read, folder)
        assert (reason is not None and str(folder) in reason) or (loose and name == "nan")
    for _ in range(4 if file == "model_index.json" else 15):
        key, value = rng.choice(keys), rng.choice(VALUES)
        path.write_text(json.dumps(whole | {key: value}))
        found, reason = attempt(read, folder)
        assert reason is None or str(folder) in reason
        if found is not None and key in found and key not in NOT_READ and value is not None:
            same = json.loads(json.dumps(found[key]))
            assert same == value or (isinstance(value, int) and same == float(value)), (key, value)
        refused += reason is not None
    assert refused >= (0 if loose else 5)


@pytest.mark.parametrize(
    ("files", "arguments"),
    [
        ({"x.png": make_png()[:200]}, ["pnginfo", "x.png"]),
        ({"x.png": make_png(texts={"t2i": "[" * 100_000})}, ["pnginfo", "x.png"]),
        ({"x.png": make_png(texts=ours(steps="20"))}, ["generate", "--from", "x.png", "-m", "model"]),
        ({"x.png": make_png(width=60_000, height=60_000)}, ["generate", "x", "--init-image", "x.png", "-m", "model"]),
        ({"x.safetensors": b"\xff" * 8 + b"{}"}, ["generate", "x", "--embedding", "x.safetensors", "-m", "model"]),
        (
            {"x.safetensors": b"\x08" + bytes(7) + b"[[[[[[[["},
            ["generate", "x", "--vae", "x.safetensors", "-m", "model"],
        ),
        ({"model/unet/config.json": b'{"a":' * 100_000}, ["generate", "x", "-m", "model"]),
        ({"model/unet/diffusion_pytorch_model.safetensors": b"\x80\x04"}, ["generate", "x", "-m", "model"]),
        ({"model/vae/config.json": b'{"layers_per_block": 1000000000}'}, ["generate", "x", "-m", "model"]),
        ({"model/tokenizer/tokenizer.json": b'{"model": 3}'}, ["generate", "x", "-m", "model"]),
        ({"model/scheduler/scheduler_config.json": b'{"_class_name": []}'}, ["generate", "x", "-m", "model"]),
    ],
)
def test_on_the_command_line(model, tmp_path, monkeypatch, capsys, files, arguments):
    shutil.copytree(model, tmp_path / "model")
    for name, data in files.items():
        Path(tmp_path / name).write_bytes(data)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["t2i", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capsys.readouterr()
    assert end.value.code == 2 and err.startswith("t2i: ") and "Traceback" not in out + err
    assert not (tmp_path / "outputs").exists()


def test_a_picture_is_read_whole():
    assert np.array_equal(pixels(decode(make_png())), PIXELS) and isinstance(decode(make_png()), Image.Image)
