"""What `-m` and `--vae` take: folders, single files, and what is refused with the way out."""

import hashlib

import pytest
import torch
from pipeline.tiny import make_pipeline
from safetensors.torch import load_file, save_file

from t2i.interop.keys_vae import vae_places
from t2i.interop.layout import send
from t2i.interop.single_file import read_single_file
from t2i.interop.tokenizer import clip_tokenizer, describe_tokenizer
from t2i.pipeline import Pipeline
from t2i.pipeline.load import from_checkpoint, hashed_files, load_vae
from t2i.pipeline.outputs import read_settings
from t2i.text.openclip import PAD
from t2i.text.tokenizer import END

PLAIN = {"encoder_hid_dim": None, "cross_attention_dim": 32}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "tiny-model"
    make_pipeline(unet=PLAIN).save_pretrained(path)
    return path


def test_a_single_file_draws_what_the_folder_draws(t2i, model, tmp_path):
    assert t2i("convert", model, "one.safetensors")[0] == 0
    asked = ("generate", "a red circle", "--steps", 2, "--seed", 1)
    code, _, err = t2i(*asked, "-m", "one.safetensors", "-o", "file")
    assert code == 0 and "t2i: model: tokenizer: its own, in the file's metadata" in err
    assert t2i(*asked, "-m", model, "-o", "folder")[0] == 0
    of_file, of_folder = (read_settings(tmp_path / out / "00000-1.png") for out in ("file", "folder"))
    digest = hashlib.sha256((tmp_path / "one.safetensors").read_bytes()).hexdigest()
    assert of_file == of_folder | {"model": "one.safetensors", "model_sha256": digest}
    # What a file does not say of itself is in the picture.
    asked = ("generate", "a red circle", "--steps", 2, "--seed", 2, "-m", "one.safetensors")
    assert t2i(*asked, "-o", "v", "--prediction-type", "v")[0] == 0
    code, _, err = t2i("generate", "--from", "v/00000-2.png", "-m", "one.safetensors", "-o", "again")
    assert code == 0 and "are ignored" not in err and "prediction v_prediction: as asked for" in err
    first, again = ((tmp_path / out / "00000-2.png").read_bytes() for out in ("v", "again"))
    assert first == again
    assert t2i(*asked, "-o", "x0", "--prediction-type", "sample")[0] == 0
    assert (tmp_path / "x0" / "00000-2.png").read_bytes() != first
    ours, other = (
        Pipeline.from_pretrained(place)("a red circle", seeds=1, output_type="latent")
        for place in (model, "one.safetensors")
    )
    assert torch.equal(ours.images, other.images)
    assert t2i("grid", "a red circle", "-x", "cfg=1,2", "--steps", 1, "-m", "one.safetensors", "-o", "sheet")[0] == 0


def test_a_picture_of_a_file_read_by_a_folders_configs_is_made_again(t2i, model, tmp_path):
    assert t2i("convert", model, "one.safetensors")[0] == 0
    asked = ("generate", "a red circle", "--steps", 2, "--seed", 1, "-m", "one.safetensors", "--config", model)
    assert t2i(*asked, "-o", "first")[0] == 0
    again = ("generate", "--from", "first/00000-1.png", "-m", "one.safetensors")
    code, _, err = t2i(*again, "-o", "x")
    assert code == 2 and f"its model was read by the files of {model.name!r}; give --config DIR" in err
    code, _, err = t2i(*again, "--config", model, "-o", "second")
    assert code == 0 and "are ignored" not in err
    first, second = ((tmp_path / out / "00000-1.png").read_bytes() for out in ("first", "second"))
    assert first == second


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "x.ckpt"], "x.ckpt: a pickle, which can run code; `t2i convert x.ckpt x.safetensors`"),
        (["-m", "x.safetensors"], "x.safetensors: not a readable safetensors file"),
        (
            ["-m", "x.safetensors", "--variant", "fp16"],
            "--variant = 'fp16': is for folders and hub repositories; x.safetensors is a single file",
        ),
        (["-m", "MODEL", "--config", "."], "--config: is for single files"),
        (["-m", "MODEL", "--prediction-type", "v"], "--prediction-type: is for single files"),
        (["-m", "MODEL", "--variant", "fp16"], "has no such variant; it has none"),
        (["-m", "MODEL", "--revision", "main"], "--revision = 'main': is for hub repositories"),
    ],
)
def test_what_is_refused(t2i, model, tmp_path, arguments, message):
    (tmp_path / "x.ckpt").write_bytes(b"x")
    (tmp_path / "x.safetensors").write_bytes(b"\xff" * 100)
    code, _, err = t2i("generate", "x", *(model if a == "MODEL" else a for a in arguments))
    assert code == 2 and message in err and "Traceback" not in err


def test_a_hub_that_does_not_answer_is_bad_input(t2i, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, _, err = t2i("generate", "x", "-m", "someone/nothing", "--revision", "v1")
    assert code == 2 and "model 'someone/nothing' at v1: no such folder, and the hub did not give it" in err


def test_a_vae_by_the_original_codes_names(model, tmp_path):
    pipeline = Pipeline.from_pretrained(model)
    vae = make_pipeline(unet=PLAIN).autoencoder
    bias = vae.decoder.conv_out.bias
    assert bias is not None
    with torch.no_grad():
        bias.add_(0.5)
    state = send(vae_places(vae.config, vae.state_dict(), ""), vae.state_dict())
    for prefix in ("", "first_stage_model."):
        file = tmp_path / "vae.safetensors"
        save_file({prefix + k: v for k, v in state.items()} | {f"{prefix}loss.logvar": torch.zeros(())}, file)
        found, report = load_vae(file, pipeline.autoencoder)
        assert all(torch.equal(found.state_dict()[k], v) for k, v in vae.state_dict().items())
        assert len(report) == 1 and "ignored 1 key" in report[0] and "loss" in report[0]
    state["encoder.mid.block_7.x"] = state.pop("encoder.conv_in.bias")
    save_file(state, file)
    with pytest.raises(ValueError, match=r"missing encoder\.conv_in\.bias\n  unexpected encoder\.mid\.block_7\.x"):
        load_vae(file, pipeline.autoencoder)


def test_the_hash_of_shards_is_of_their_bytes_in_order(t2i, model, tmp_path):
    assert t2i("convert", model, "shards", "--shard-size", "1MB")[0] == 0
    files = hashed_files(tmp_path / "shards", None)
    shards = sorted((tmp_path / "shards" / "unet").glob("*.safetensors"))
    assert len(shards) > 2 and files[: len(shards)] == shards
    assert {file.parent.name for file in files} == {"unet", "vae", "text_encoder", "tokenizer"}
    assert t2i("generate", "x", "-m", "shards", "--steps", 1, "--seed", 0)[0] == 0
    expected = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    assert read_settings(tmp_path / "outputs" / "00000-0.png")["model_sha256"] == expected


@pytest.mark.parametrize(("pad", "split"), [(END, False), (PAD, True), (PAD, False)])
def test_clips_vocabulary_is_told_by_its_name(pad, split):
    made = clip_tokenizer(pad, split)
    told = describe_tokenizer(made)
    assert told == {"vocabulary": "clip", "pad_token": pad, "model_max_length": 77, "split_special_tokens": split}
    ids = made("a photo of an astronaut!", padding="max_length").input_ids
    assert ids[:6] == [49406, 320, 1125, 539, 550, 18376] and ids[-1] == {END: 49407, PAD: 0}[pad]


@pytest.mark.parametrize("values", [{}, {"vocabulary": "clip", "pad_token": "x"}, {"files": {"tokenizer.json": 1}},
    {"files": dict.fromkeys(("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"), "[")}])  # fmt: skip
def test_a_damaged_tokenizer_in_the_metadata(t2i, model, tmp_path, values):
    assert t2i("convert", model, "one.safetensors")[0] == 0
    file = tmp_path / "one.safetensors"
    found = read_single_file(file)._replace(tokenizer=values)
    with pytest.raises(ValueError, match=r"one\.safetensors"):
        from_checkpoint(found, file, None)
    assert load_file(file)
