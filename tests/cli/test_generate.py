"""`t2i generate`: what it writes, what it says, how it ends."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from pipeline.tiny import make_pipeline

from t2i.files import sha256
from t2i.pipeline import Pipeline
from t2i.pipeline.load import hashed_files
from t2i.pipeline.outputs import read_settings
from tests.hang import SECONDS

LONG = "a red circle and a blue square and a green triangle and a large red square"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "tiny-model"
    make_pipeline().save_pretrained(path)
    return path


def lines(folder):
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_pictures_with_their_settings(t2i, model, tmp_path):
    code, out, err = t2i(
        "generate", "a red circle", LONG, "-m", model, "-n", "blurry", "--num-inference-steps", 3,
        "--guidance-scale", 2, "--eta", 0.5, "--seed", 40, "-c", 2, "--size", "20x16", "--batch-size", 3,
    )  # fmt: skip
    assert code == 0, err
    outputs = tmp_path / "outputs"
    pictures = ["00000-40.png", "00001-41.png", "00002-42.png", "00003-43.png"]
    assert names(outputs) == [*pictures, "grid-00000.png", "metadata.jsonl"]
    assert "outputs: 00000-40.png to 00003-43.png, seed 40" in out and "grid-00000.png" in out
    assert f"prompt {LONG!r} is too long" in err and "large red square" in err
    rows = lines(outputs)
    assert [row["file_name"] for row in rows] == pictures
    assert [row["text"] for row in rows] == ["a red circle"] * 2 + [LONG] * 2
    assert read_settings(outputs / "00001-41.png") == {
        "schema_version": 1, "prompt": "a red circle", "negative": "blurry", "steps": 3, "cfg": 2.0, "solver": "ddim",
        "eta": 0.5, "seed": 41, "size": "20x16", "model": "tiny-model", "dtype": "float32", "rng": "cpu",
        "model_sha256": sha256(*hashed_files(model, None)),
    }  # fmt: skip
    assert {k: v for k, v in rows[1].items() if k not in ("file_name", "text")} == read_settings(
        outputs / "00001-41.png"
    )
    assert str(tmp_path).encode() not in (outputs / "00001-41.png").read_bytes()
    expected = Pipeline.from_pretrained(model)(
        LONG, "blurry", num_inference_steps=3, guidance_scale=2, eta=0.5, seeds=43, height=16, width=20
    ).images[0]  # fmt: skip
    with Image.open(outputs / "00003-43.png") as picture:
        assert picture.size == (20, 16)
        assert np.abs(np.array(picture).astype(int) - np.array(expected).astype(int)).max() <= 2


def test_another_request_is_added_and_nothing_overwritten(t2i, model, tmp_path):
    asked = ("generate", "a red circle", "-m", model, "--steps", 1, "-o", "kept", "--seed", 1)
    assert t2i(*asked)[0] == 0
    first = (tmp_path / "kept" / "00000-1.png").read_bytes()
    (tmp_path / "kept" / "00007-1.png").write_bytes(b"mine")
    with open(tmp_path / "kept" / "metadata.jsonl", "a") as file:
        file.write('{"file_name": "00009-5.png", "te')  # cut off by a crash
    code, out, _ = t2i(*asked[:-2], "--seed", 1, "-c", 2)
    assert code == 0 and "00010-1.png to 00011-2.png" in out
    assert names(tmp_path / "kept") == [
        "00000-1.png", "00007-1.png", "00010-1.png", "00011-2.png", "grid-00010.png", "metadata.jsonl"
    ]  # fmt: skip
    assert (tmp_path / "kept" / "00000-1.png").read_bytes() == first
    assert (tmp_path / "kept" / "00010-1.png").read_bytes() == first
    text = (tmp_path / "kept" / "metadata.jsonl").read_text().splitlines()
    assert [json.loads(text[i])["file_name"] for i in (0, 2, 3)] == ["00000-1.png", "00010-1.png", "00011-2.png"]


def test_prompts_of_a_file_follow_those_given_and_a_drawn_seed_is_said(t2i, model, tmp_path):
    (tmp_path / "prompts.txt").write_bytes("\ufeffein größer Kreis\r\n\n  \na blue square".encode())
    code, out, err = t2i("generate", "a red circle", "--prompts-file", "prompts.txt", "-m", model, "--steps", 1)
    assert code == 0 and "2 blank lines skipped" in err
    rows = lines(tmp_path / "outputs")
    assert [row["text"] for row in rows] == ["a red circle", "ein größer Kreis", "a blue square"]
    assert rows[1]["seed"] == rows[0]["seed"] + 1
    assert f"seed {rows[0]['seed']}" in out and f"seed {rows[0]['seed']}" in err


def test_a_grid_shows_at_most_64(t2i, model, tmp_path):
    code, out, _ = t2i("generate", "x", "-m", model, "--steps", 1, "-c", 65, "--seed", 0, "--batch-size", 65)
    assert code == 0 and "the first 64 of 65" in out
    with Image.open(tmp_path / "outputs" / "grid-00000.png") as grid:
        assert grid.size == (8 * 18 + 2, 8 * 18 + 2)


def test_guidance_one_says_that_the_negative_prompt_is_ignored(t2i, model):
    code, _, err = t2i("generate", "x", "-m", model, "--steps", 1, "--cfg", 1, "-n", "y")
    assert code == 0 and "t2i: guidance_scale = 1 is no guidance" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no prompt"),
        (["x", "--size", "15x16"], "width = 15: not a multiple of 2"),
        (["x", "--size", "16"], "--size = '16': not WxH"),
        (["x", "--dtype", "int8"], "--dtype = 'int8'"),
        (["x", "--solver", "eular"], "--solver = 'eular': unknown; did you mean 'euler'"),
        (["x", "--steps", "0"], "--steps = 0"),
        (["x", "--device", "gpu"], "--device = 'gpu'"),
        (["x", "-m", "nowhere"], "nowhere: no such folder"),
        (["x", "-o", "a-file"], "a-file: cannot hold images"),
        (["--prompts-file", "missing"], "missing: not readable (No such file or directory)"),
        (["--prompts-file", "latin1"], "latin1: not UTF-8"),
        (["--prompts-file", "blank"], "blank: no prompt in it"),
        (["x", "--no-such-option"], "No such option"),
    ],
)
def test_bad_input_is_exit_code_2_and_one_message(t2i, model, tmp_path, arguments, message):
    (tmp_path / "a-file").write_text("")
    (tmp_path / "blank").write_text("\n\n")
    (tmp_path / "latin1").write_bytes("größer".encode("latin1"))
    code, _, err = t2i("generate", *([] if "-m" in arguments else ["-m", model]), *arguments)
    assert code == 2 and message in err and "Traceback" not in err
    assert not (tmp_path / "outputs").exists()


def test_without_a_model_the_shipped_one_of_the_current_folder_is_taken(t2i, model, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "glyphs").symlink_to(model)
    assert t2i("generate", "x", "--steps", 1)[0] == 0
    assert lines(tmp_path / "outputs")[0]["solver"] == "ddim"


def test_a_black_picture_is_never_written(t2i, tmp_path):
    broken = make_pipeline()
    broken.autoencoder.decoder.conv_out.bias.data.fill_(float("nan"))
    broken.save_pretrained(tmp_path / "broken")
    code, _, err = t2i("generate", "x", "-m", "broken", "--steps", 1)
    assert code == 1 and "the VAE put out non-finite values" in err
    assert names(tmp_path / "outputs") == []


def test_ctrl_c_keeps_every_finished_picture(model, tmp_path):
    outputs = tmp_path / "outputs"
    command = [sys.executable, "-m", "t2i", "generate", "x", "-m", str(model), "-c", "9999", "--steps", "20"]
    process = subprocess.Popen([*command, "--batch-size", "2", "-o", str(outputs)], stderr=subprocess.PIPE)
    deadline = time.monotonic() + SECONDS
    while not list(outputs.glob("00003-*.png")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    written = [name for name in names(outputs) if name.endswith(".png")]
    assert f"{len(written)} of 9999 images are in {outputs}" in err.decode()
    assert len(written) >= 4 and [row["file_name"] for row in lines(outputs)] == written
    for name in written:
        assert read_settings(outputs / name)["prompt"] == "x"


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"]])
def test_help_imports_no_torch(arguments):
    code = (
        "import sys\nfrom t2i.__main__ import main\n"
        f"sys.argv = ['t2i', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert not {'torch', 'transformers', 'PIL', 'numpy'} & set(sys.modules), 'heavy'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "generate" in done.stdout
