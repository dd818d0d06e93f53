"""`t2i generate --lora` and `t2i convert --merge-lora`: the same pictures, said in their settings."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pipeline.stock import write_stock

from t2i.interop.lora import load_lora
from t2i.interop.lora_write import write_lora
from t2i.nn.lora import LoraConfig, add_lora, lora_state, remove_lora
from t2i.pipeline import Pipeline
from t2i.pipeline.metadata import read_png

ASK = ["generate", "a red circle", "--steps", 3, "--seed", 4]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_stock("sd1", tmp_path_factory.mktemp("tiny") / "tiny-model")


@pytest.fixture(scope="module")
def loras(model, tmp_path_factory):
    """Two LoRA: of the U-Net by kohya's names; of the text encoder too, in a folder of diffusers'."""
    folder, pipeline = tmp_path_factory.mktemp("loras"), Pipeline.from_pretrained(model)
    found, draw = {}, torch.Generator().manual_seed(0)
    for component, network in {"unet": pipeline.generator.unet, "text_encoder": pipeline.text_encoder.tower}.items():
        add_lora(network, LoraConfig(rank=2))
        found[component] = {
            k: c._replace(up=0.2 * torch.randn(c.up.shape, generator=draw)) for k, c in lora_state(network).items()
        }
        remove_lora(network)
    write_lora(folder / "frog.safetensors", {"unet": found["unet"]}, pipeline.networks, "kohya")
    write_lora(folder / "run" / "pytorch_lora_weights.safetensors", found, pipeline.networks)
    return folder / "frog.safetensors", folder / "run"


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def test_several_at_once(t2i, model, loras, tmp_path):
    code, _, err = t2i(*ASK, "-m", model, "--lora", f"{loras[0]}:0.8", "--lora", f"{loras[1]}:-.5", "-o", "with")
    assert code == 0, err
    assert "frog.safetensors: layers changed: 80 of unet, weight 0.8" in err
    assert f"{loras[1]}: layers changed: 80 of unet and 12 of text_encoder, weight -0.5" in err
    assert t2i(*ASK, "-m", model, "-o", "bare")[0] == 0
    pipeline = Pipeline.from_pretrained(model)
    for path, weight in zip(loras, (0.8, -0.5), strict=True):
        load_lora(pipeline.networks, path, weight)
    [expected] = pipeline("a red circle", seeds=4, num_inference_steps=3).images
    found = pixels(tmp_path / "with" / "00000-4.png")
    assert np.abs(found - np.asarray(expected)).max() <= 1
    assert np.abs(found - pixels(tmp_path / "bare" / "00000-4.png")).max() > 20


def test_settings_name_them_and_draw_again(t2i, model, loras, tmp_path):
    assert t2i(*ASK, "-m", model, "--lora", f"{loras[0]}:0.8", "--lora", loras[1])[0] == 0
    picture = tmp_path / "outputs" / "00000-4.png"
    names = [(name, weight) for name, _, weight in read_png(picture).settings["loras"]]
    assert names == [("frog.safetensors", 0.8), ("run", 1.0)]
    text = str(Image.open(picture).info["parameters"])
    assert text.startswith("a red circle <lora:frog:0.8> <lora:run:1>\n")
    code, _, err = t2i("generate", "--from", picture, "-m", model, "-o", "again")
    assert code == 2
    assert "was made with 'frog.safetensors'" in err
    assert "--lora FILE" in err
    for path in loras:
        (tmp_path / path.name).symlink_to(path)
    code, _, err = t2i("generate", "--from", picture, "-m", model, "-o", "again")
    assert code == 0, err
    assert np.array_equal(pixels(picture), pixels(tmp_path / "again" / "00000-4.png"))
    rows = [json.loads((tmp_path / f / "metadata.jsonl").read_text().splitlines()[0]) for f in ("outputs", "again")]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("place", ["merged", "merged.safetensors"])
def test_merged(t2i, model, loras, tmp_path, place):
    flags = [f"{loras[0]}:0.8", f"{loras[1]}:-0.5"]
    code, _, err = t2i("convert", model, tmp_path / place, "--merge-lora", flags[0], "--merge-lora", flags[1])
    assert code == 0, err
    assert "80 of unet and 12 of text_encoder, weight -0.5" in err
    assert t2i(*ASK, "-m", tmp_path / place, "-o", "merged-out", "--cfg", 4)[0] == 0
    assert t2i(*ASK, "-m", model, "--lora", flags[0], "--lora", flags[1], "-o", "with", "--cfg", 4)[0] == 0
    assert np.array_equal(pixels(tmp_path / "merged-out" / "00000-4.png"), pixels(tmp_path / "with" / "00000-4.png"))


def test_bad_input(t2i, model, loras, tmp_path):
    for text in ("x.safetensors:much", "x.safetensors:nan", "x.safetensors:1e9"):
        code, _, err = t2i(*ASK, "-m", model, "--lora", text)
        assert code == 2
        assert f"'{text}' is not FILE or FILE:WEIGHT" in err
    code, _, err = t2i(*ASK, "-m", model, "--lora", "none.safetensors")
    assert code == 2
    assert "none.safetensors: no such file" in err
    code, _, err = t2i("convert", model, tmp_path / "dst", "--merge-lora", "none.safetensors")
    assert code == 2
    assert not (tmp_path / "dst").exists()
    assert not (tmp_path / "outputs").exists()
