"""`t2i data check`: what it prints, leaves and how it ends."""

import json
from functools import partial

import pytest
from data.planted import CLEAN, PLANTED, encoded, photo, plant
from PIL import Image
from text.tiny import encoder as make_encoder

from t2i.cli.data import measure
from t2i.files import write_json


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """What a check reads of a model: its text encoder, and the sizes of the other two."""
    folder = tmp_path_factory.mktemp("model")
    make_encoder(max_tokens=64).save(folder)
    for part, config in (("unet", {"sample_size": 32}), ("vae", {"block_out_channels": [32, 32]})):
        (folder / part).mkdir()
        write_json(folder / part / "config.json", config)
    return folder


@pytest.fixture
def t2i(t2i, model):
    """t2i(*arguments) -> (exit code, stdout, stderr) of t2i data check in a folder of its own."""
    return partial(t2i, "data", "check", "-m", model)


def test_a_folder_with_faults(t2i, tmp_path):
    code, out, err = t2i(plant(tmp_path / "pets"))
    assert code == 1 and out.startswith("9 of 68 images are lost, more than 0.05 of them") and "Traceback" not in err
    assert "  4 unreadable: " in out and "  1 tiny: tiny.png (20x16)" in out and "at 64x64: " in out
    assert out.count("\nfor example ") == 3 and out.endswith("check-pets: check.json, check.html\n")
    values = json.loads((tmp_path / "check-pets" / "check.json").read_text())
    assert {(f["kind"], f["name"]) for f in values["findings"]} == PLANTED and len(PLANTED) < CLEAN
    code, out, _ = t2i(tmp_path / "pets", "--max-lost", "0.14", "-o", "other")
    assert code == 0 and (tmp_path / "other" / "check.html").is_file()
    assert out.startswith("59 of 68 images are usable; 9 of 68 images are lost\n")


@pytest.fixture
def bare(tmp_path):
    (tmp_path / "bare").mkdir()
    for k in range(2):
        (tmp_path / "bare" / f"red_frog_{k}.png").write_bytes(encoded(photo(k)))
    return tmp_path / "bare"


def test_options_reach_the_check(t2i, bare):
    code, out, _ = t2i(bare, "--instance-prompt", "a photo of sks dog", "--size", "32x16", "--background", "red")
    assert code == 0 and "at 32x16: " in out and "from: instance prompt 2" in out
    assert t2i(bare, "--file-name-captions")[1].count("'red frog'") == 2
    (bare / "metadata.csv").write_text("file_name,caption\nred_frog_0.png,x\nred_frog_1.png,y\n")
    assert "'y'" in t2i(bare, "--caption-column", "caption")[1]
    assert t2i(bare)[0] == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "none of the 2 images has a caption"),
        (["--kohya-folders"], "N_name"),
        (["--instance-prompt", " "], "`instance_prompt`"),
        (["--revision", "x"], "revision means nothing"),
        (["--max-lost", "2", "--instance-prompt", "x"], "0 to 1"),
        (["--size", "64", "--instance-prompt", "x"], "WxH"),
        (["--background", "whit"], "whit"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(t2i, bare, options, said):
    code, out, err = t2i(bare, *options)
    assert code == 2 and said in err and err.startswith("t2i: ") and "Traceback" not in err and out == ""
    assert [path.name for path in bare.parent.iterdir()] == ["bare"]


def test_no_folder_and_no_model(t2i, bare, model):
    assert t2i("nowhere")[0] == 2
    assert t2i(bare, "-m", bare / "none")[0] == 2


def test_the_text_encoders_own_tokens(model):
    words, size = measure(model)
    encoder = make_encoder(max_tokens=64)
    long = "red " * 99
    assert size == (64, 64) and words.limit == encoder.max_tokens
    (short, longer) = words.count(["a red fox", long])
    assert short == int(encoder(["a red fox"]).conditioning.mask.sum()) and longer > words.limit


def test_names_that_are_commands_to_a_terminal(t2i, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "\x1b[2J\u202e.png").write_bytes(b"junk")
    (tmp_path / "bad" / "a.png").write_bytes(encoded(photo(0)))
    code, out, _ = t2i(tmp_path / "bad", "--instance-prompt", "\x1b[31m x", "--max-lost", "0.9")
    assert code == 0 and "\x1b" not in out and "\u202e" not in out
    page = (tmp_path / "check-bad" / "check.html").read_text()
    assert "\x1b" not in page and "\u202e" not in page


def test_the_way_out_is_an_option_of_this_command(t2i, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (16, 16)).save(folder / "a.png")
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "prompt": "x"}\n')
    code, _, err = t2i(folder)
    assert code == 2 and "--caption-column = 'text'" in err and "set 'prompt'" in err
    assert t2i(folder, "--caption-column", "prompt")[0] == 0
