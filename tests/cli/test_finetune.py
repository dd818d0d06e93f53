"""`t2i finetune` by its command line: three commands from a folder to a picture; diffusers' flags; pointers."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from training import finetuning as f
from typer.testing import CliRunner

from t2i.cli.app import app
from t2i.cli.finetune import gather, read_flags
from t2i.data.data_config import config_for
from t2i.data.open import open_source
from t2i.files import lock
from t2i.pipeline import Pipeline
from t2i.training.finetune.data import split_source
from t2i.training.resume import check_run


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("all")
    return f.make_model(folder / "tiny"), f.make_pictures(folder / "pictures"), folder


def test_from_a_folder_to_a_picture(places, monkeypatch):
    model, data, folder = places
    monkeypatch.chdir(folder)
    run = ["finetune", "-m", str(model), "--data", str(data), "-o", "run", *f.FAST]
    runner = CliRunner()
    found = runner.invoke(app, run, catch_exceptions=False)
    assert found.exit_code == 0, found.output
    for word in ("trained     ", "memory      about", "time        about", "images are usable"):
        assert word in found.output
    again = runner.invoke(app, run, catch_exceptions=False)  # finished: nothing to do, no fault
    assert again.exit_code == 0, again.output
    found = runner.invoke(
        app,
        ["generate", "a red square", "-m", "run", "--steps", "2", "--seed", "3", "-o", "out"],
        catch_exceptions=False,
    )
    assert found.exit_code == 0, found.output
    assert "layers changed" in found.output
    first = Path("out/00000-3.png").read_bytes()
    flags = ["--lora", "run/pytorch_lora_weights.safetensors:1", "--steps", "2", "--seed", "3", "-o", "by-flag"]
    found = runner.invoke(app, ["generate", "a red square", "-m", str(model), *flags], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    assert _pixels("by-flag/00000-3.png") == _pixels("out/00000-3.png")
    found = runner.invoke(app, ["generate", "--from", "out/00000-3.png", "-m", "run", "-o", "again"])
    assert found.exit_code == 0, found.output
    assert "other weights" not in found.output
    assert _pixels("again/00000-3.png") == _pixels("out/00000-3.png")
    assert first


def test_moved_model_is_named(places, tmp_path):
    model, data, _ = places
    shutil.copytree(model, tmp_path / "base")
    f.run(tmp_path / "base", data, tmp_path / "run")
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    found = CliRunner().invoke(app, ["generate", "x", "-m", str(tmp_path / "run"), "-o", str(tmp_path / "out")])
    assert isinstance(found.exception, ValueError)
    assert "give it with -m MODEL --lora" in str(found.exception)


def test_captionless_folder_needs_an_instance_prompt(places, tmp_path):
    model, _, _ = places
    data = f.make_pictures(tmp_path / "bare", captions=False)
    with pytest.raises(ValueError, match="--instance-prompt"):
        f.prepare(model, data, tmp_path / "run")
    task = f.prepare(model, data, tmp_path / "run", "data.instance_prompt=a red thing")
    assert set(task.data.captions) == {"a red thing"}


@pytest.mark.parametrize("kind", ["empty", "none"])
def test_no_pictures(kind, places, tmp_path):
    model, _, _ = places
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no images|no such folder"):
        f.prepare(model, tmp_path / kind, tmp_path / "run")


def test_diffusers_flags_are_keys(tmp_path):
    numbers = ["--resolution=64", "--train_batch_size", "2", "--gradient_accumulation_steps", "3", "--rank", "8"]
    numbers += ["--max_train_steps=40", "--learning_rate", "1e-4", "--prior_loss_weight", "0.5"]
    words = ["--lr_scheduler", "constant_with_warmup", "--class_prompt", "dog", "--mixed_precision", "no"]
    switches = ["--with_prior_preservation", "--train_text_encoder", "--random_flip", "--validation_prompt"]
    command = [*numbers, *words, *switches]
    given = {"model": "m", "data": str(tmp_path), "out": "o", "method": "dreambooth"}
    values = gather([*command, "a sks dog", "train.keep=1"], given)
    assert values["size"] == 64
    expected = {"micro_batch": 2, "global_batch": 6, "steps": 40, "lr": "1e-4", "lr_schedule": "constant", "keep": 1}
    assert values["train"] == expected | {"mixed_precision": "no"}
    assert values["lora"] == {"rank": 8, "text_encoder": True}
    assert values["prior"] == {"prompt": "dog", "weight": 0.5}
    assert values["flip"] is True
    assert values["sample"] == {"prompts": ["a sks dog"]}
    assert values["data"]["path"] == str(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max_train_step", "3"], "did you mean --max_train_steps"),
        (["--snr_gamma", "5"], "no such option"),
        (["--rank"], "needs a value"),
        (["a.yaml", "b.yaml"], "one recipe"),
        (["--with_prior_preservation"], "give --class_prompt"),
        (["--rank", "["], r"--rank: '\[' is not a value"),
        (["--rank", "9" * 5000], "--rank: '999"),
        (["--gradient_accumulation_steps", "x"], "--gradient_accumulation_steps = 'x': not a whole number"),
        (["--train_batch_size", "1", "five.yaml"], "train = 5: not a section of keys"),
        (["scenes/vae"], "vae.yaml: this is a recipe for `t2i train vae`"),
    ],
)
def test_bad_flags_are_named(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "five.yaml").write_text("train: 5\n")
    with pytest.raises(ValueError, match=message):
        gather(arguments, {"model": "m", "data": str(tmp_path), "out": "o"})


def test_diffusers_names_of_the_options(tmp_path):
    flags = ["--pretrained_model_name_or_path", "m", "--train_data_dir", str(tmp_path), "--output_dir=2", "x=1"]
    values = gather([*flags, "--instance_prompt", "a: dog"], {"method": "lora"})
    assert (values["model"], values["out"], values["x"]) == ("m", "2", 1)
    assert values["data"] == {"source": "folder", "path": str(tmp_path), "instance_prompt": "a: dog"}
    assert gather(flags, {"model": "n"})["model"] == "n"


def test_a_size_beyond_all_bounds(places, tmp_path):
    model, data, _ = places
    with pytest.raises(ValueError, match=r"size = 1000000000000: not a number of pixels in 1\.\.4096"):
        f.prepare(model, data, tmp_path / "run", "size=1000000000000")


def test_a_second_process_is_refused_before_it_writes(places, tmp_path):
    model, data, _ = places
    (tmp_path / "run").mkdir()
    with lock(tmp_path / "run" / ".lock") as alone:
        assert alone
        command = ["finetune", "-m", str(model), "--data", str(data), "-o", str(tmp_path / "run"), *f.FAST]
        found = CliRunner().invoke(app, command)
    assert "another process trains in this folder" in str(found.exception)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".lock", "cache"}


def test_needless_flags_are_said(capsys):
    assert read_flags(["--report_to", "wandb", "x=1", "--center_crop"]) == (["x=1"], {})
    assert capsys.readouterr().err.count("ignored") == 2


def test_run_in_a_place_that_is_no_folder(places, tmp_path):
    model, data, _ = places
    (tmp_path / "file").write_text("")
    command = ["finetune", "-m", str(model), "--data", str(data), "-o", str(tmp_path / "file" / "run"), *f.FAST]
    found = CliRunner().invoke(app, command)
    assert isinstance(found.exception, ValueError)
    assert "cannot be written" in str(found.exception)


def _pixels(path):
    from PIL import Image

    return Image.open(path).tobytes()


def test_pointer_goes_with_both_folders(places, tmp_path):
    model, data, _ = places
    shutil.copytree(model, tmp_path / "a" / "base")
    f.run(tmp_path / "a" / "base", data, tmp_path / "a" / "run")
    (tmp_path / "a").rename(tmp_path / "b")
    from t2i.pipeline import Pipeline

    assert Pipeline.from_pretrained(tmp_path / "b" / "run").report
    assert json.loads((tmp_path / "b" / "run" / "finetuned.json").read_text())["model"] == "../base"


def test_a_run_is_converted_with_what_it_learnt(places, tmp_path, monkeypatch):
    model, data, _ = places
    monkeypatch.chdir(tmp_path)
    for method in ("lora", "full", "textual-inversion"):
        extra = ["inversion.templates=['{token}']"] if method == "textual-inversion" else []
        f.run(model, data, tmp_path / method, f"method={method}", *extra)
    for method in ("lora", "full"):
        found = CliRunner().invoke(app, ["convert", method, f"{method}-whole"], catch_exceptions=False)
        assert found.exit_code == 0, found.output
        options = {"seeds": 1, "num_inference_steps": 2, "output_type": "pt"}
        run, whole = (
            Pipeline.from_pretrained(place)("a red square", **options).images for place in (method, f"{method}-whole")
        )
        torch.testing.assert_close(run, whole, atol=1e-5, rtol=0)
    found = CliRunner().invoke(app, ["convert", "textual-inversion", "no"])
    assert "a textual inversion, which is separate from its model" in str(found.exception)


def test_a_finished_run_is_lengthened(places, tmp_path):
    model, data, _ = places
    assert f.prepare(model, data, tmp_path / "run").recipe.train.warmup_steps == 0
    f.run(model, data, tmp_path / "run")
    longer = f.prepare(model, data, tmp_path / "run", "train.steps=80")  # alone, it would warm up for 4 steps
    assert longer.recipe.train.warmup_steps == 0
    check_run(longer.recipe, couples_batch=False)


@pytest.mark.parametrize("inside", [".", "run"])
def test_no_run_among_its_own_pictures(inside, places):
    model, data, _ = places
    with pytest.raises(ValueError, match="lies in the folder of the images"):
        f.prepare(model, data, data / inside)


def test_an_instance_prompt_is_no_template(places, tmp_path):
    model, data, _ = places
    with pytest.raises(ValueError, match=r"inversion.templates=\['a photo of \{token\}'\]"):
        f.prepare(model, data, tmp_path / "run", "method=textual-inversion", "data.instance_prompt=a thing")


def test_a_shipped_recipe_by_its_name():
    assert gather(["finetune/lora"], {})["lora"]["rank"] == 8


@pytest.mark.parametrize(("pictures", "held"), [(30, 6), (10, 2), (200, 10)])
def test_pictures_held_out(pictures, held, tmp_path):
    data = f.make_pictures(tmp_path / "many", pictures)
    config = config_for(data)
    source = open_source(config)
    assert len(split_source(source, config, None, None, 0).held_out) == held
