"""A pipeline's folder: whole, readable by stock, and refused by name where it does not fit."""

import json
import shutil

import pytest
import torch

from t2i.pipeline import Defaults, Pipeline

from .tiny import apart, make_pipeline


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "model")


def edit(path, **keys):
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_what_the_folder_holds(folder, stock):
    assert sorted(path.name for path in folder.iterdir()) == [
        "model_index.json", "scheduler", "t2i.json", "text_encoder", "tokenizer", "unet", "vae"
    ]  # fmt: skip
    assert json.loads((folder / "t2i.json").read_text()) == {
        "schema_version": 1, "solver": "ddim", "steps": 5, "guidance": 4.0, "null": 'text([""])'
    }  # fmt: skip
    assert stock.safety_checker is None and stock.config.requires_safety_checker is False
    assert stock.vae.config.scaling_factor == 0.7


def test_saved_again_it_makes_the_same_picture(ours, tmp_path):
    ours.save_pretrained(tmp_path / "again")
    ours.save_pretrained(tmp_path / "again")  # over itself
    again = Pipeline.from_pretrained(tmp_path / "again")
    assert again.defaults == ours.defaults and again.scheduler == ours.scheduler
    asked = {"seeds": 0, "output_type": "latent"}
    assert torch.equal(again("a red circle", **asked).images, ours("a red circle", **asked).images)
    ours.save_pretrained(tmp_path / "half", torch.float16)
    half = Pipeline.from_pretrained(tmp_path / "half")
    assert half.generator.unet.conv_in.weight.dtype == torch.float32
    assert 0 < apart(half("a red circle", **asked).images, ours("a red circle", **asked).images) < 0.1


def test_a_save_that_fails_leaves_the_old_folder(copy, ours):
    before = (copy / "unet" / "config.json").read_bytes()
    broken = make_pipeline()
    broken.defaults = None  # pyright: ignore
    with pytest.raises(AttributeError):
        broken.save_pretrained(copy)
    assert (copy / "unet" / "config.json").read_bytes() == before
    assert [path.name for path in copy.parent.iterdir()] == ["model"]


def test_a_stock_folder_gets_the_stock_defaults(copy):
    (copy / "t2i.json").unlink()
    assert Pipeline.from_pretrained(copy).defaults == Defaults(solver="ddim", steps=50, guidance=7.5)
    edit(copy / "scheduler" / "scheduler_config.json", _class_name="DPMSolverMultistepScheduler")
    assert Pipeline.from_pretrained(copy).defaults.solver == "dpm++2m"


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_component_is_named(copy, name):
    shutil.rmtree(copy / name)
    with pytest.raises(ValueError, match=f"lacks {name};"):
        Pipeline.from_pretrained(copy)


def test_no_model_at_all(tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        Pipeline.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"model_index\.json: no such file"):
        Pipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("file", "keys", "message"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionXLPipeline"}, "'StableDiffusionXLPipeline' is not"),
        ("t2i.json", {"schema_version": 2}, r"t2i\.json: `schema_version`"),
        ("t2i.json", {"null": "zeros"}, r"t2i\.json: `null`"),
        ("t2i.json", {"guidence": 2}, "unknown key `guidence`; did you mean `guidance`"),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, r"(?s)scheduler_config\.json.*zero term"),
    ],
)
def test_a_folder_that_says_what_is_not_supported(copy, file, keys, message):
    edit(copy / file, **keys)
    with pytest.raises(ValueError, match=message):
        Pipeline.from_pretrained(copy)


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder"])
def test_pickled_weights_are_refused(copy, name):
    weights = next((copy / name).glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match="is a pickle"):
        Pipeline.from_pretrained(copy)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"unet": {"in_channels": 8}}, "`in_channels` = 8, but vae/config.json: `latent_channels` = 4"),
        ({"vae": {"latent_channels": 8}}, "`in_channels` = 4, but vae/config.json: `latent_channels` = 8"),
        ({"unet": {"encoder_hid_dim": 48}}, "`encoder_hid_dim` = 48, but the text encoder's states are 32 wide"),
        ({"unet": {"encoder_hid_dim": None}}, "`cross_attention_dim` = 24, but the text encoder's states are 32 wide"),
    ],
)
def test_components_that_were_not_made_for_each_other(parts, message):
    with pytest.raises(ValueError, match=message):
        make_pipeline(**parts)
