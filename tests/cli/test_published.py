"""Stable Diffusion 1.5 and 2.1 at full size, every key as published, random in half precision: in, drawn, out."""

import json
import shutil
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from data.published import WEIGHTS, published, write_published_folder, write_published_single_file
from PIL import Image
from safetensors.torch import load_file

from t2i.__main__ import main
from t2i.autoencoder.kl import AutoencoderKL
from t2i.interop.tokenizer import clip_tokenizer
from t2i.text.openclip import PAD
from t2i.text.tokenizer import END, save_tokenizer

# What `t2i` says of each single file, line by line.
SAID = {
    "sd15": [
        "Stable Diffusion 1, by the text encoder's key names and 768 wide text states",
        "prediction epsilon: as Stable Diffusion 1 was trained",
        "configs of unet, vae, text_encoder, scheduler: inferred from the shapes and the family",
        "tokenizer: CLIP's standard vocabulary, padded with <|endoftext|>",
        "ignored 12 keys: buffers of the training's noise schedule, which the scheduler computes",
        "ignored 1 key: position ids, a buffer",
        "ignored 688 keys: EMA weights of the U-Net, which `t2i convert --ema` reads instead",
    ],
    "sd21": [
        "Stable Diffusion 2, by the text encoder's key names and 1024 wide text states",
        "prediction v_prediction: assumed, as the file does not record it: Stable Diffusion 2 for 768 pixels predicts "
        "v, its base for 512 pixels epsilon; if the images are noise, give --prediction-type epsilon",
        "configs of unet, vae, text_encoder, scheduler: inferred from the shapes and the family",
        "tokenizer: CLIP's standard vocabulary, padded with !",
        "ignored 12 keys: buffers of the training's noise schedule, which the scheduler computes",
        "ignored 1 key: the scale of CLIP's contrastive loss",
        "ignored 1 key: the projection of a pooled state that the pipeline does not use",
        "ignored 12 keys: OpenCLIP's last block, behind the penultimate layer, which is the one read",
    ],
}
OF_FOLDER = {
    "sd15": ["ignored feature_extractor, safety_checker: they are not needed for sampling"],
    "sd21": ["ignored feature_extractor: they are not needed for sampling"],
}
# Of text_encoder/config.json: notes, a dropout that the tower lacks, and token ids that were published wrong.
NOT_KEPT = {"torch_dtype", "transformers_version", "dropout", "bos_token_id", "eos_token_id", "pad_token_id"}
POSITIONS = "text_encoder: ignored 1 key: position ids, a buffer"


@pytest.fixture
def t2i(monkeypatch, tmp_path, capsys):
    """t2i(*arguments) -> what it said of the model; it ends well. Its folder is gone afterwards."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["t2i", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        with capsys.disabled():
            print(f"\n$ t2i {' '.join(map(str, arguments))}\n{err}{out}", end="")
        assert end.value.code == 0
        return [line.removeprefix("t2i: model: ") for line in err.splitlines() if line.startswith("t2i: model: ")]

    yield run
    shutil.rmtree(tmp_path)  # gigabytes


def draw(t2i, model, out):
    said = t2i("generate", "a frog!", "-m", model, "--steps", 2, "--size", "64x64", "--seed", 0, "-o", out)
    return said, np.asarray(Image.open(f"{out}/00000-0.png"))


def same(found, expected):
    return found.keys() == expected.keys() and all(
        found[k].dtype == v.dtype and torch.equal(found[k], v) for k, v in expected.items()
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15", "sd21"])
def test_a_single_file(t2i, tmp_path, name):
    file = write_published_single_file(name, tmp_path / f"{name}.safetensors")
    said, expected = draw(t2i, file.name, "first")
    assert Counter(said) == Counter(SAID[name])
    assert Counter(t2i("convert", file.name, "folder")) == Counter(SAID[name])
    assert not any("ignored" in line for line in t2i("convert", "folder", "again.safetensors"))
    given, again = load_file(file), load_file("again.safetensors")
    assert same(again, {key: tensor for key, tensor in given.items() if key in again})
    counts = [int(line.split()[1]) for line in SAID[name] if line.startswith("ignored")]
    assert sum(counts) == len(given) - len(again) > 0
    assert np.array_equal(draw(t2i, "folder", "second")[1], expected) and expected.std() > 1
    assert np.array_equal(draw(t2i, "again.safetensors", "third")[1], expected)


def folder_tensors(folder):
    """By component; without the text tower's buffer, the autoencoder by today's names."""
    found = {name: load_file(folder / name / file) for name, file in WEIGHTS.items()}
    found["vae"] = AutoencoderKL.rename_keys(found["vae"])
    return found | {"text_encoder": {k: v for k, v in found["text_encoder"].items() if "position_ids" not in k}}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15", "sd21"])
def test_a_folder(t2i, tmp_path, name):
    folder = write_published_folder(name, tmp_path / name)
    pad = {"sd15": END, "sd21": PAD}[name]
    save_tokenizer(clip_tokenizer(pad, split=False), folder / "tokenizer")
    expected_lines = [*OF_FOLDER[name], POSITIONS]
    said, expected = draw(t2i, name, "first")
    assert said == expected_lines
    assert t2i("convert", name, "one.safetensors") == expected_lines
    single, listed = load_file("one.safetensors"), published(name).single_file
    assert all(list(tensor.shape) == listed[key] for key, tensor in single.items())
    assert not any("ignored" in line for line in t2i("convert", "one.safetensors", "back"))
    before, after = folder_tensors(folder), folder_tensors(tmp_path / "back")
    assert all(same(after[part], before[part]) for part in WEIGHTS)
    for path, values in published(name).configs.items():
        if path != "model_index.json":
            now = json.loads((tmp_path / "back" / path).read_text())
            differ = {k for k in values if not k.startswith("_") and now.get(k) != values[k]}
            assert differ <= NOT_KEPT
    assert np.array_equal(draw(t2i, "one.safetensors", "second")[1], expected) and expected.std() > 1
    assert np.array_equal(draw(t2i, "back", "third")[1], expected)
