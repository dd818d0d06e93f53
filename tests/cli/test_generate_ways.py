"""`t2i generate`: the same picture again from its file, pictures from pictures, lines of JSON, and what is refused."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from pipeline.tiny import make_pipeline
from safetensors.torch import load_file, save_file

from t2i.files import sha256
from t2i.pipeline.load import unet_files
from t2i.pipeline.outputs import read_settings


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "tiny-model"
    make_pipeline().save_pretrained(path)
    return path


@pytest.fixture
def t2i(t2i):
    """t2i(*arguments) of `t2i generate` -> (exit code, stdout, stderr), in an empty folder."""
    return partial(t2i, "generate")


@pytest.fixture
def files(tmp_path):
    """A picture, a mask and an embedding in the current folder."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "init.png")
    mask = np.zeros((16, 16), np.uint8)
    mask[:, 8:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    save_file(
        {"emb_params": torch.randn(2, 32, generator=torch.Generator().manual_seed(0))}, tmp_path / "zorp.safetensors"
    )


def pixels(path):
    with Image.open(path) as picture:
        return np.array(picture).astype(int)


def pngs(folder):
    return sorted(path for path in folder.iterdir() if path.name[0] == "0")


WAYS = {
    "guidance": (["--guidance-rescale", 0.7, "--guidance-interval", "0.2,0.9", "--eta", 0.3], 2),
    "solver": (["--solver", "DPM++ 2M Karras", "--spacing", "linspace", "--clip-skip", 2], 0),
    "inpaint": (["--init-image", "init.png", "--mask", "mask.png", "--strength", 0.8, "--vae-tile", 8], 0),
    "variation": (["--variation-seed", 3, "--variation-strength", 0.3, "-c", 2, "-n", "blue"], 1),
    "words": (["--embedding", "zorp.safetensors", "--prompt-syntax", "a1111", "--long-prompts"], 2),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_picture_is_made_again_from_its_file(t2i, model, tmp_path, files, way):
    flags, index = WAYS[way]
    prompts = ["a red circle", "two green triangles", "a (blue:1.3) zorp"]
    code, _, err = t2i(*prompts, "-m", model, "--steps", 3, "--cfg", 3, "--seed", 5, "--batch-size", 1, *flags)
    assert code == 0, err
    made = pngs(tmp_path / "outputs")
    code, _, err = t2i("--from", made[index], "-m", model, "-o", "again")
    assert code == 0, err
    again = pngs(tmp_path / "again")[0]
    assert read_settings(again) == read_settings(made[index])
    assert np.array_equal(pixels(again), pixels(made[index]))
    plain = t2i(prompts[index // 2 if way == "variation" else index], "-m", model, "--steps", 3, "--cfg", 3,
                "--seed", read_settings(again)["seed"], "-o", "plain")  # fmt: skip
    assert plain[0] == 0 and not np.array_equal(pixels(pngs(tmp_path / "plain")[0]), pixels(again))


def test_flags_beside_a_picture_count_before_it(t2i, model, tmp_path):
    assert t2i("a red circle", "-m", model, "--steps", 2, "--seed", 1, "--cfg", 3)[0] == 0
    made = pngs(tmp_path / "outputs")[0]
    assert t2i("--from", made, "-m", model, "--seed", 2, "--steps", 1, "-o", "b")[0] == 0
    settings = read_settings(pngs(tmp_path / "b")[0])
    assert settings == read_settings(made) | {"seed": 2, "steps": 1}


def test_without_metadata_the_settings_are_in_the_line_alone(t2i, model, tmp_path):
    assert t2i("a red circle", "-m", model, "--steps", 1, "--no-metadata")[0] == 0
    made = pngs(tmp_path / "outputs")[0]
    with pytest.raises(ValueError, match="no settings"):
        read_settings(made)
    assert json.loads((tmp_path / "outputs" / "metadata.jsonl").read_text())["prompt"] == "a red circle"
    code, _, err = t2i("--from", made, "-m", model)
    assert code == 2 and "no settings" in err


def test_frames_between_prompts_share_their_noise_and_can_be_made_again(t2i, model, tmp_path):
    flags = ("-m", model, "--steps", 2, "--seed", 4)
    assert t2i("a red circle", "a blue square", *flags, "--interpolate", 2)[0] == 0
    made = pngs(tmp_path / "outputs")
    assert [path.name for path in made] == [f"{k:05}-4.png" for k in range(4)]
    towards = [read_settings(path).get("towards") for path in made]
    assert towards == [None, ["a blue square", pytest.approx(1 / 3)], ["a blue square", pytest.approx(2 / 3)], None]
    assert t2i("a red circle", "a blue square", *flags, "-o", "ends", "--batch-size", 1)[0] == 0
    first = pixels(pngs(tmp_path / "ends")[0])
    assert np.abs(first - pixels(made[0])).max() <= 1
    steps = [np.abs(pixels(path) - first).mean() for path in made]
    assert steps[1] < steps[2] and steps[1] > 0
    assert t2i("--from", made[1], "-m", model, "-o", "again")[0] == 0
    assert np.abs(pixels(pngs(tmp_path / "again")[0]) - pixels(made[1])).max() <= 1


def test_lines_of_json_are_continued_where_they_stopped(t2i, model, tmp_path):
    lines = [
        {"prompt": "a red circle", "seed": 7, "cfg": 2, "steps": 1, "size": "20x16"},
        {"prompt": "a blue square", "negative": "red"},
    ]
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    asked = ("--prompts-file", "jobs.jsonl", "-m", model, "--steps", 2, "--seed", 40, "-c", 2, "--resume")
    code, _, err = t2i(*asked)
    assert code == 0 and "already" not in err
    made = pngs(tmp_path / "outputs")
    settings = [read_settings(path) for path in made]
    assert [s["seed"] for s in settings] == [7, 8, 42, 43]
    assert [s["size"] for s in settings] == ["20x16", "20x16", "16x16", "16x16"]
    assert [(s["steps"], s["cfg"], s["negative"]) for s in settings[1:3]] == [(1, 2, ""), (2, 4.0, "red")]
    assert isinstance(settings[1]["cfg"], int)  # recorded as it was written, or earlier folders would be drawn again
    made[2].unlink()
    code, out, err = t2i(*asked)
    assert code == 0 and "outputs holds 3 of 4 images already: not drawn again" in err
    assert [read_settings(path)["seed"] for path in pngs(tmp_path / "outputs")] == [7, 8, 43, 42]
    code, out, _ = t2i(*asked)
    assert code == 0 and "nothing is left to do" in out


def test_another_vae_from_a_file_or_a_folder(t2i, model, tmp_path):
    other = make_pipeline().autoencoder
    with torch.no_grad():
        other.decoder.conv_out.bias.add_(0.5)
    other.save(tmp_path / "vae")
    save_file(other.state_dict(), tmp_path / "vae.safetensors")
    asked = ("a red circle", "-m", model, "--steps", 1, "--seed", 0)
    for name, flags in {"a": (), "b": ("--vae", "vae"), "c": ("--vae", "vae.safetensors")}.items():
        assert t2i(*asked, *flags, "-o", name)[0] == 0
    a, b, c = (pixels(pngs(tmp_path / name)[0]) for name in "abc")
    assert np.array_equal(b, c) and (b - a).mean() > 20
    assert read_settings(pngs(tmp_path / "b")[0])["vae"] == "vae"
    code, _, err = t2i(*asked, "--vae", model)
    assert code == 2 and f"is a whole pipeline; give {model / 'vae'}" in err


def test_previews_are_written_on_the_way(t2i, model, tmp_path):
    assert t2i("a", "b", "-m", model, "--steps", 2, "--preview-every", 2)[0] == 0
    with Image.open(tmp_path / "outputs" / "preview.png") as sheet:
        assert sheet.size == (2 * 18 + 2, 18 + 2)


def rewrite(path, settings):
    """A picture with other settings in it, as a stranger could send it."""
    info = PngImagePlugin.PngInfo()
    info.add_text("t2i", json.dumps(settings))
    with Image.open(path) as picture:
        picture.save(path, pnginfo=info)


def test_a_file_that_a_picture_was_made_with_is_known_by_its_bytes(t2i, model, tmp_path, files):
    assert t2i("a red circle", "-m", model, "--steps", 2, "--seed", 1, "--init-image", "init.png")[0] == 0
    made = pngs(tmp_path / "outputs")[0]
    (tmp_path / "init.png").rename(tmp_path / "moved.png")
    Image.new("RGB", (16, 16)).save(tmp_path / "init.png")
    code, _, err = t2i("--from", made, "-m", model)
    assert code == 2 and "was made with 'init.png'" in err and "give --init-image FILE" in err
    assert t2i("--from", made, "-m", model, "--init-image", "moved.png", "-o", "again")[0] == 0
    assert np.array_equal(pixels(pngs(tmp_path / "again")[0]), pixels(made))


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_another_vae_or_text_encoder_is_noticed(t2i, model, tmp_path, part):
    assert t2i("a red circle", "-m", model, "--steps", 1, "--seed", 1)[0] == 0
    made = pngs(tmp_path / "outputs")[0]
    changed = shutil.copytree(model, tmp_path / model.name)
    [file] = (changed / part).glob("*.safetensors")
    state = load_file(file)
    next(iter(state.values())).add_(0.5)
    save_file(state, file)
    code, _, err = t2i("--from", made, "-m", changed, "-o", "again")
    assert code == 0 and "was made with other weights" in err


def test_an_image_that_records_the_unet_alone_is_recognised(t2i, model, tmp_path):
    """As versions before the other parts were hashed wrote it."""
    assert t2i("a red circle", "-m", model, "--steps", 1, "--seed", 1)[0] == 0
    made = pngs(tmp_path / "outputs")[0]
    rewrite(made, read_settings(made) | {"model_sha256": sha256(*unet_files(model, None))})
    code, _, err = t2i("--from", made, "-m", model, "-o", "again")
    assert code == 0 and "records the U-Net alone, which is that of 'tiny-model'" in err and "other weights" not in err


def test_another_models_picture_and_another_programs_are_said(t2i, model, tmp_path):
    assert t2i("a red circle", "-m", model, "--steps", 1, "--seed", 1)[0] == 0
    made = pngs(tmp_path / "outputs")[0]
    other = make_pipeline()
    with torch.no_grad():
        other.generator.unet.conv_out.bias.add_(1)
    other.save_pretrained(tmp_path / "other")
    code, _, err = t2i("--from", made, "-m", "other")
    assert code == 0 and "was made with other weights than those of 'other'" in err
    code, _, err = t2i("--from", made)
    assert code == 2 and "was made with the model 'tiny-model'; give it with -m FOLDER" in err
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a red circle\nSteps: 2, Sampler: DPM++ 2M Karras, CFG scale: 3, Seed: 4, Size: 20x16")
    Image.new("RGB", (20, 16)).save(tmp_path / "a1111.png", pnginfo=info)
    code, _, err = t2i("--from", "a1111.png", "-m", model, "-o", "theirs")
    assert code == 0 and "an image of another program" in err
    settings = read_settings(pngs(tmp_path / "theirs")[0])
    wanted = {"prompt": "a red circle", "steps": 2, "solver": "dpm++2m", "sigmas": "karras", "cfg": 3, "seed": 4}
    assert settings | wanted | {"size": "20x16"} == settings
    assert settings["prompt_syntax"] == "a1111" and "is read with A1111's syntax" in err
    assert t2i("--from", "a1111.png", "-m", model, "-o", "flat", "--prompt-syntax", "plain")[0] == 0
    assert read_settings(pngs(tmp_path / "flat")[0]).get("prompt_syntax", "plain") == "plain"
    code, _, err = t2i("a (blue) circle", "--from", "a1111.png", "-m", model, "-o", "own")
    assert code == 0 and "A1111's syntax" not in err
    settings = read_settings(pngs(tmp_path / "own")[0])
    assert settings["prompt"] == "a (blue) circle" and settings.get("prompt_syntax", "plain") == "plain"


@pytest.mark.parametrize("name", ["{}/elsewhere", "../elsewhere", "m" * 300, "m\0"])
def test_a_pictures_model_is_looked_for_by_its_bare_name_alone(t2i, model, tmp_path, monkeypatch, name):
    shutil.copytree(model, tmp_path / "elsewhere")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert t2i("a red circle", "-m", model, "--steps", 1, "--seed", 1)[0] == 0
    made = pngs(tmp_path / "here" / "outputs")[0]
    name = name.format(tmp_path)
    rewrite(made, read_settings(made) | {"model": name})
    code, _, err = t2i("--from", made, "-o", "again")
    assert code == 2 and "was made with the model" in err and "give it with -m FOLDER" in err


@pytest.mark.parametrize("name", ["v" * 300, "../init.png", ""])
def test_a_pictures_files_are_looked_for_by_their_bare_names_alone(t2i, model, tmp_path, files, name):
    asked = ("a red circle", "-m", model, "--steps", 2, "--seed", 1, "--init-image", "init.png")
    assert t2i(*asked)[0] == 0
    made = pngs(tmp_path / "outputs")[0]
    rewrite(made, read_settings(made) | {"image": name})
    code, _, err = t2i("--from", made, "-m", model, "-o", "again")
    assert code == 2 and "image" in err and "Traceback" not in err


def test_a_picture_finds_its_model_and_its_files_in_the_folder_that_it_was_made_from(t2i, model, tmp_path, files):
    shutil.copytree(model, tmp_path / "tiny-model")
    (tmp_path / "deep").mkdir()
    (tmp_path / "init.png").rename(tmp_path / "deep" / "init.png")
    asked = ("--steps", 2, "--seed", 1, "--init-image", "deep/init.png")
    assert t2i("a red circle", "-m", "tiny-model", *asked)[0] == 0
    made = pngs(tmp_path / "outputs")[0]
    code, _, err = t2i("--from", made, "-o", "again")
    assert code == 0 and "its model is 'tiny-model' in the current folder" in err
    assert np.array_equal(pixels(pngs(tmp_path / "again")[0]), pixels(made))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "--strength", "0.5"], "--init-image: needed where strength is given"),
        (["x", "--init-image", "init.png", "--strength", "2"], "--strength = 2.0: not in 0..1"),
        (["x", "--init-image", "nowhere.png"], "--init-image nowhere.png: not readable"),
        (["x", "--init-image", "bad.jsonl"], "--init-image bad.jsonl: not a JPEG"),
        (["x", "--guidance-rescale", "2"], "--guidance-rescale = 2.0"),
        (["x", "--guidance-interval", "0.5"], "--guidance-interval = '0.5': not LO,HI"),
        (["x", "--guidance-interval", "0.5,0.1"], "--guidance-interval = (0.5, 0.1)"),
        (["x", "--variation-seed", "1"], "--variation-strength: needed, above 0"),
        (["x", "--interpolate", "3"], "--interpolate = 3"),
        (["x", "--resume"], "--resume continues"),
        (["--prompts-file", "bad.jsonl"], "bad.jsonl, line 2: unknown key 'promt'"),
        (["--prompts-file", "blank.jsonl"], 'blank.jsonl, line 1: has no "prompt"'),
        (["--prompts-file", "seedless.jsonl", "--resume"], "--resume identifies images by their seeds"),
        (["x", "--prompts-file", "seeds.jsonl", "--resume"], "--resume identifies images by their seeds"),
        (["--prompts-file", "wrong.jsonl"], "wrong.jsonl, line 1: steps = 0"),
        (["x", "--preview-every", "0"], "--preview-every = 0"),
        (["x", "--vae-tile", "3"], "a tile of 3 pixels"),
        (["x", "--from", "init.png"], "init.png: holds no settings"),
    ],
)
def test_bad_input_is_exit_code_2_and_one_message(t2i, model, tmp_path, files, arguments, message):
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"promt": "b"}\n')
    (tmp_path / "blank.jsonl").write_text('{"seed": 1}\n')
    (tmp_path / "seedless.jsonl").write_text('{"prompt": "a"}\n')
    (tmp_path / "seeds.jsonl").write_text('{"prompt": "a", "seed": 1}\n')
    (tmp_path / "wrong.jsonl").write_text('{"prompt": "a", "steps": 0}\n')
    code, _, err = t2i("-m", model, *arguments)
    assert code == 2 and message in err and "Traceback" not in err
    assert not (tmp_path / "outputs").exists()
