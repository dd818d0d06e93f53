"""`t2i convert`: bit by bit there and back, readable by stock, never half written."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from pipeline.stock import load_stock, write_stock
from pipeline.tiny import make_pipeline
from safetensors.torch import load_file, save_file

from t2i.cli.convert import parse_bytes
from t2i.component import load_weights
from t2i.files import read_json
from t2i.pipeline import Pipeline
from tests.hang import SECONDS

PLAIN = {"encoder_hid_dim": None, "cross_attention_dim": 32}
NAMES = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "tiny-model"
    make_pipeline(unet=PLAIN).save_pretrained(path)
    return path


def tensors(folder):
    """All weights of a folder, a text tower's without the prefix that not all files have."""
    found = {}
    for part, stem in NAMES.items():
        state = load_weights(folder / part, f"{stem}.safetensors")
        found |= {f"{part}.{key.removeprefix('text_model.')}": tensor for key, tensor in state.items()}
    return found


def same(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def drawn(place, **options):
    return Pipeline.from_pretrained(place, **options)(
        "a red circle", seeds=0, num_inference_steps=3, output_type="latent"
    ).images


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sd2-v"])
def test_there_and_back_bit_by_bit(t2i, tmp_path, kind):
    """Folders of stock's, one network in half precision: each tensor keeps its dtype."""
    folder = write_stock(kind, tmp_path / "stock")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({k: v.half() for k, v in load_file(weights).items()}, weights)
    code, out, err = t2i("convert", folder, "one.safetensors")
    assert (
        code == 0
        and "one.safetensors: " in out
        and " tensors of F16, " in out
        and "the tokenizer is not CLIP's own" in err
    )
    assert t2i("convert", "one.safetensors", "back")[0] == 0
    assert t2i("convert", "back", "two.safetensors")[0] == 0
    assert same(tensors(folder), tensors(tmp_path / "back"))
    assert same(load_file("one.safetensors"), load_file("two.safetensors"))
    before, after = (read_json(place / "scheduler" / "scheduler_config.json") for place in (folder, tmp_path / "back"))
    assert {k: v for k, v in after.items() if k not in before} in ({}, {"prediction_type": "epsilon"})
    assert all(after[k] == v for k, v in before.items())
    expected = drawn(folder)
    assert torch.equal(drawn("one.safetensors"), expected) and torch.equal(drawn("back"), expected)


def test_stock_loads_shards_of_ours(t2i, tmp_path):
    folder = write_stock("t5", tmp_path / "stock")
    assert t2i("convert", folder, "shards", "--shard-size", "200KB")[0] == 0
    index = json.loads((tmp_path / "shards" / "unet" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    state = tensors(folder)
    assert index["metadata"]["total_size"] == sum(v.nbytes for k, v in state.items() if k.startswith("unet."))
    for file in (tmp_path / "shards").rglob("*.safetensors"):
        assert file.stat().st_size < 230_000 or len(load_file(file)) == 1
    assert same(state, tensors(tmp_path / "shards"))
    stock, before = load_stock(tmp_path / "shards"), load_stock(folder)
    for part in NAMES:
        assert same(getattr(stock, part).state_dict(), getattr(before, part).state_dict())
    assert type(stock.scheduler) is type(before.scheduler)


@pytest.mark.parametrize("variant", ["fp16", None])
def test_ours_loads_what_stock_wrote_as_a_variant_in_shards(tmp_path, variant):
    stock = load_stock(write_stock("sd1", tmp_path / "plain"))
    stock.save_pretrained(tmp_path / "again", variant=variant, max_shard_size="100KB")
    assert list((tmp_path / "again" / "unet").glob("*.index*.json"))
    assert torch.equal(drawn(tmp_path / "again", variant=variant), drawn(tmp_path / "plain"))


def test_another_dtype(t2i, model, tmp_path):
    assert t2i("convert", model, "half", "--dtype", "bf16")[0] == 0
    assert same(tensors(tmp_path / "half"), {k: v.bfloat16() for k, v in tensors(model).items()})
    big = shutil.copytree(model, tmp_path / "big")
    weights = big / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    state["conv_in.bias"][0] = 1e6
    save_file(state, weights)
    code, _, err = t2i("convert", big, "half.safetensors", "--dtype", "fp16")
    assert code == 2 and "unet: conv_in.bias has values beyond torch.float16's 65504" in err
    assert not (tmp_path / "half.safetensors").exists()


def test_a_ckpt_is_read_as_tensors_alone(t2i, model, tmp_path):
    assert t2i("convert", model, "one.safetensors")[0] == 0
    torch.save({"state_dict": load_file("one.safetensors"), "global_step": 3}, "one.ckpt")
    code, _, err = t2i("convert", "one.ckpt", "back", "--config", model)
    assert code == 0, err
    assert same(tensors(tmp_path / "back"), tensors(model)) and torch.equal(drawn("back"), drawn("back"))

    class Evil:
        def __reduce__(self):
            return (os.mkdir, ("evil",))

    torch.save({"state_dict": {"x": Evil()}}, "evil.ckpt")
    code, _, err = t2i("convert", "evil.ckpt", "bad")
    assert code == 2 and "evil.ckpt" in err and not (tmp_path / "evil").exists()
    (tmp_path / "one.safetensors").rename("misnamed.ckpt")
    code, _, err = t2i("convert", "misnamed.ckpt", "bad")
    assert code == 2 and "misnamed.ckpt: is a safetensors file: name it so, misnamed.safetensors" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back", "evil.ckpt", "misnamed.ckpt", "one.ckpt"]


def test_a_pickle_of_a_part_becomes_safetensors(t2i, model, tmp_path):
    """An embedding of A1111, one of diffusers, a VAE: by the command that the refusals name."""
    vectors, vae = torch.randn(2, 32), load_file(model / "vae" / "diffusion_pytorch_model.safetensors")
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": torch.nn.Parameter(vectors)}}, "cat.pt")
    torch.save({"<dog>": vectors[:1]}, "dog.bin")
    torch.save({"state_dict": vae}, "vae.ckpt")
    for name, flag in (("cat.pt", "--embedding"), ("dog.bin", "--embedding"), ("vae.ckpt", "--vae")):
        code, _, err = t2i("generate", "a red circle", "-m", model, flag, name, "--steps", "2")
        command = re.search(r"`t2i (convert \S+ \S+)` reads its tensors alone", err)
        assert code == 2 and command is not None
        code, out, err = t2i(*command[1].split())
        assert code == 0 and "not a whole model" in out, err
        safe = Path(name).with_suffix(".safetensors")
        code, _, err = t2i("generate", "a red circle", "-m", model, flag, safe, "--steps", "2", "-o", f"out-{name}")
        assert code == 0, err
    assert load_file("cat.safetensors")["emb_params"].equal(vectors)
    torch.save({"<dog>": torch.full((1, 32), torch.nan)}, "nan.pt")
    code, _, err = t2i("convert", "nan.pt", "nan.safetensors")
    assert code == 2 and "not finite" in err and not (tmp_path / "nan.safetensors").exists()


def test_weights_that_are_not_finite_are_refused(t2i, model, tmp_path):
    broken = shutil.copytree(model, tmp_path / "broken")
    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    state["conv_in.bias"][0] = torch.nan
    save_file(state, weights)
    code, _, err = t2i("convert", broken, "x.safetensors")
    assert code == 2 and "unet: conv_in.bias has values that are not finite" in err
    assert not (tmp_path / "x.safetensors").exists()


def test_what_a_single_file_cannot_hold(t2i, tmp_path):
    make_pipeline().save_pretrained(tmp_path / "projector")
    code, _, err = t2i("convert", "projector", "x.safetensors")
    assert code == 2 and "encoder_hid_proj" in err
    write_stock("t5", tmp_path / "t5")
    code, _, err = t2i("convert", "t5", "x.safetensors")
    assert code == 2 and "x.safetensors" in err and not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MODEL", "x.ckpt"], "pickles are not written"),
        (["MODEL", "x", "--format", "zip"], "--format = 'zip' is unknown"),
        (["MODEL", "x", "--format", "single-file"], "--format single-file is called X.safetensors"),
        (["MODEL", "x.safetensors", "--format", "diffusers"], "--format diffusers is a folder"),
        (["MODEL", "x.safetensors", "--shard-size", "2GB"], "--shard-size is for folders"),
        (["MODEL", "x", "--shard-size", "2 apples"], "--shard-size = '2 apples'"),
        (["MODEL", "x", "--dtype", "int8"], "--dtype = 'int8'"),
        (["MODEL", "x", "--ema"], "--ema is for single files"),
        (["MODEL", "MODEL", "--overwrite"], "holds or is SRC itself"),
        (["MODEL", "there"], "exists already; --overwrite replaces it"),
        (["MODEL", "there", "--overwrite"], "is not a model's folder"),
        (["nowhere", "x"], "nowhere: no such folder"),
    ],
)
def test_what_is_refused(t2i, model, tmp_path, arguments, message):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("x")
    code, _, err = t2i("convert", *(model if a == "MODEL" else a for a in arguments))
    assert code == 2 and message in err and "Traceback" not in err
    assert [p.name for p in tmp_path.iterdir()] == ["there"] and (tmp_path / "there" / "mine").exists()


def test_sizes():
    assert [parse_bytes(t) for t in ("2GB", "1GiB", "1.5MB", "7")] == [2 * 10**9, 2**30, 1_500_000, 7]
    with pytest.raises(ValueError, match="not a size"):
        parse_bytes("0")


def test_a_model_is_replaced_and_an_interrupted_one_is_not(t2i, model, tmp_path):
    assert t2i("convert", model, "x")[0] == 0 and t2i("convert", model, "x", "--overwrite", "--dtype", "fp16")[0] == 0
    assert same(tensors(tmp_path / "x"), {k: v.half() for k, v in tensors(model).items()})
    before = tensors(tmp_path / "x")
    code = (
        "import t2i.pipeline.conversion as c, t2i.pipeline.folder as f, os, sys\n"
        "real = f.save_weights\n"
        "def slow(*a):\n"
        "    real(*a); print('written', flush=True); __import__('time').sleep(1200)\n"
        "f.save_weights = slow\n"
        "from t2i.__main__ import main\n"
        f"sys.argv = ['t2i', 'convert', {str(model)!r}, 'x', '--overwrite']\nmain()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "written\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(SECONDS) == 130
    assert same(tensors(tmp_path / "x"), before) and [p.name for p in tmp_path.iterdir()] == ["x"]
