"""`t2i train` and `t2i precompute`: exit codes, and messages without a traceback."""

import os
import sys

import pytest
from training import tiny

from t2i.__main__ import main
from t2i.files import read_json


@pytest.fixture(scope="module")
def components(tmp_path_factory):
    folder = tmp_path_factory.mktemp("components")
    tiny.make_components(folder)
    return folder


@pytest.fixture
def t2i(monkeypatch, capsys):
    """Run the command line in this process: exit code, what it said, and what it said of faults."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["t2i", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return int(end.value.code or 0), out, err

    return run


@pytest.fixture
def recipe(tmp_path):
    return tiny.written(tiny.vae(tmp_path / "run", steps=2), tmp_path / "recipe.yaml")


def test_trains_and_says_what_it_does(t2i, recipe, tmp_path):
    code, out, err = t2i("train", "vae", recipe, "train.steps=3", "seed=7")
    assert code == 0
    assert "steps 0..3, global batch 4 = micro-batch 4 x accumulation 1 x processes 1, 8 samples, " in out
    assert "seed: 7" in out
    assert "training images: 8 of 8 rows used; 8 images, all readable" in err and "run 3/3" in err
    assert read_json(tmp_path / "run" / "recipe.json")["train"]["steps"] == 3
    assert (tmp_path / "run" / "vae" / "config.json").is_file()


def test_precompute_then_train_the_unet(t2i, components, tmp_path):
    values = tiny.unet(tmp_path / "run", components, steps=1) | {"cache": str(tmp_path / "cache")}
    values["sample"] = {"prompts": ["a red star", "a blue star"], "steps": 2}
    path = tiny.written(values, tmp_path / "recipe.yaml")
    assert t2i("precompute", path)[0] == 0
    assert len(list((tmp_path / "cache").rglob("manifest.json"))) == 4
    code, out, _ = t2i("train", "unet", path)
    assert code == 0 and "finished at step 1" in out
    assert (tmp_path / "run" / "samples" / "step_0000001.png").is_file()
    assert (tmp_path / "run" / "model" / "model_index.json").is_file()


def test_a_run_that_fails_exits_with_1(t2i, recipe, tmp_path):
    code, _, err = t2i("train", "vae", recipe, "train.steps=9", "train.lr=1e30", "train.save_every=1")
    assert code == 1
    assert "t2i: step 2: `loss` of `vae` is " in err and "after the forward pass; nothing was updated" in err
    assert os.listdir(tmp_path / "run" / "checkpoints") == ["step_0000001"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.stepz=3"], "unknown key `train.stepz`; did you mean `train.steps`?"),
        (["vae.latent_chanels=3"], "unknown key `vae.latent_chanels`; did you mean `vae.latent_channels`?"),
        (["train.mixed_precision=yes"], "`train.mixed_precision`: Input should be 'no', 'fp16' or 'bf16'"),
        (["train.micro_batch=3"], "train.global_batch=4 is not a multiple of train.micro_batch=3 x 1 processes"),
        (["data={source: folder, path: /no/such/place}"], "data.path = '/no/such/place': does not exist"),
        (["data={source: folder}"], "`data`: path is needed for source=folder"),
        (["data={source: nowhere}"], "`data.source`: Input should be 'folder', 'parquet', 'hub' or 'scenes'"),
        (["data.count=0"], "`data.count`"),
        (["vae.block_out_channels=[6, 8]"], "not a multiple of `norm_num_groups` = 4"),
        (["train.init=/no/such/place"], "/no/such/place: no such folder"),
        (["loss.reconstruction=l3"], "`loss.reconstruction`: Input should be 'l1' or 'l2'"),
        (["size=15"], "size = 15: not a multiple of the autoencoder's factor 2"),
        (["train.steps"], "an override has the form key=value"),
    ],
)
def test_bad_input_exits_with_2_and_names_the_key(t2i, recipe, overrides, said):
    code, _, err = t2i("train", "vae", recipe, *overrides)
    assert code == 2 and said in err, err


def test_what_a_run_cannot_go_on_with_is_refused_before_pictures_are_read(t2i, recipe, tmp_path):
    assert t2i("train", "vae", recipe)[0] == 0
    for override, said in (
        ("train.lr=1", "was started with another recipe: `train.lr` was"),
        ("train.steps=1", "is already at step 2, beyond train.steps=1"),
    ):
        code, _, err = t2i("train", "vae", recipe, override)
        assert code == 2 and said in err and "reading" not in err
    (tmp_path / "file").write_text("")
    code, _, err = t2i("train", "vae", recipe, f"out={tmp_path / 'file'}")
    assert code == 2 and "is a file: give a folder" in err


def test_an_empty_folder_and_a_missing_recipe_are_named(t2i, recipe, tmp_path):
    (tmp_path / "empty").mkdir()
    code, _, err = t2i("train", "vae", recipe, f"data={{source: folder, path: {tmp_path / 'empty'}}}")
    assert code == 2 and str(tmp_path / "empty") in err
    code, _, err = t2i("train", "vae", tmp_path / "nothing.yaml")
    assert code == 2 and "nothing.yaml: no such recipe" in err


def test_missing_components_are_named(t2i, components, tmp_path):
    values = tiny.unet(tmp_path / "run", components, steps=1) | {"cache": str(tmp_path / "cache")}
    path = tiny.written(values, tmp_path / "recipe.yaml")
    code, _, err = t2i("train", "unet", path, "vae=/no/such/vae")
    assert code == 2 and "vae=/no/such/vae: /no/such/vae: no such folder" in err
    code, _, err = t2i("train", "unet", path, f"text_encoder={components / 'vae'}")
    assert code == 2 and "is not a text encoder" in err
    code, _, err = t2i("train", "unet", path, "sample.solver=eular")
    assert code == 2 and "did you mean 'euler'" in err
