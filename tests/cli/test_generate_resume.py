"""`t2i generate --resume` and `t2i grid --resume` after a kill, beside another process, and with too much text."""

import io
import json
import os
from functools import partial

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from pipeline.tiny import make_pipeline

from t2i.files import lock
from t2i.pipeline.outputs import LEFT, LOCK, ImageFolder, read_settings


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "tiny-model"
    make_pipeline().save_pretrained(path)
    return path


@pytest.fixture
def resume(t2i, model, tmp_path):
    """resume() -> (exit code, stdout, stderr) of a command of three images in `outputs`."""
    lines = [{"prompt": "a red circle", "seed": 7}, {"prompt": "a blue square", "seed": 9}]
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return partial(
        t2i, "generate", "x", "--prompts-file", "jobs.jsonl", "-m", model, "--steps", 1, "--seed", 1, "--resume"
    )


def rows(folder):
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def test_an_image_that_was_written_before_its_line_is_not_drawn_again(resume, tmp_path):
    assert resume()[0] == 0
    outputs = tmp_path / "outputs"
    names, whole = sorted(path.name for path in outputs.glob("0*.png")), rows(outputs)
    text = (outputs / "metadata.jsonl").read_text()
    last = text.splitlines()[-1]
    (outputs / "metadata.jsonl").write_text(text[: -len(last) // 2])  # killed within the last line
    (outputs / f".{names[-1]}-0123abcd.partial").write_bytes(b"half")
    Image.new("RGB", (3, 2)).save(outputs / "00077-0.png")  # another program's
    code, out, err = resume()
    assert code == 0 and "nothing is left to do" in out and "outputs holds 3 of 3 images already" in err
    assert sorted(path.name for path in outputs.glob("0*.png")) == [*names, "00077-0.png"]
    assert not list(outputs.glob("*.partial")) and not list(outputs.glob(".*.partial"))
    lines = (outputs / "metadata.jsonl").read_text().splitlines()
    assert [json.loads(lines[i]) for i in (0, 1, 3)] == whole


def test_images_of_several_prompts_are_drawn_again_one_by_one(resume, tmp_path):
    assert resume("y", "-c", 2)[0] == 0  # x and y with seeds 1 to 4, then the lines
    outputs = tmp_path / "outputs"
    lost = {name: (outputs / name).read_bytes() for name in ("00001-2.png", "00002-3.png")}
    for name in lost:
        (outputs / name).unlink()
    code, out, err = resume("y", "-c", 2)
    assert code == 0 and "outputs holds 6 of 8 images already" in err and "00008-2.png to 00009-3.png" in out
    for old, new in zip(lost, ("00008-2.png", "00009-3.png"), strict=True):
        assert read_settings(outputs / new)["prompt"] == {"00001-2.png": "x", "00002-3.png": "y"}[old]
        with Image.open(io.BytesIO(lost[old])) as before, Image.open(outputs / new) as after:
            assert np.abs(np.array(before).astype(int) - np.array(after).astype(int)).max() <= 1


def test_two_processes_do_not_resume_one_folder(resume, tmp_path):
    (tmp_path / "outputs").mkdir()
    with lock(tmp_path / "outputs" / LOCK) as alone:
        assert alone
        code, _, err = resume()
    assert code == 2 and "outputs: another process resumes in this folder" in err
    assert resume()[0] == 0 and len(rows(tmp_path / "outputs")) == 3


def test_a_grid_takes_an_image_without_its_line(t2i, model, tmp_path):
    command = ("grid", "a red circle", "-x", "cfg=1,2", "-m", model, "--steps", 1, "--seed", 3)
    assert t2i(*command)[0] == 0
    whole = rows(tmp_path / "outputs")
    (tmp_path / "outputs" / "metadata.jsonl").unlink()
    code, _, err = t2i(*command, "--resume")
    assert code == 0 and "outputs holds 2 of 2 cells already" in err
    assert rows(tmp_path / "outputs") == whole
    with lock(tmp_path / "outputs" / LOCK):
        assert t2i(*command, "--resume")[0] == 2


def test_what_a_killed_process_left_is_swept_once_it_is_old(tmp_path):
    for name in (".00000-0.png-0123abcd.partial", ".00001-0.png-0123abcd.partial"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / ".tmp123456").write_bytes(b"the user's")
    for name in (".00000-0.png-0123abcd.partial", ".tmp123456"):
        os.utime(tmp_path / name, (0, 0))
    assert LEFT > 1
    ImageFolder(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".00001-0.png-0123abcd.partial", ".tmp123456"]


def test_too_much_text_is_refused_before_anything_is_drawn(t2i, model, tmp_path):
    long = "\U0001f98a" * 99_000  # each text is short enough for a text encoder
    (tmp_path / "long.jsonl").write_text(
        json.dumps({"prompt": "x"}) + "\n" + json.dumps({"prompt": long, "negative": long})
    )
    code, _, err = t2i("generate", "--prompts-file", "long.jsonl", "-m", model, "--steps", 1)
    assert code == 2 and "long.jsonl, line 2: the settings are" in err
    assert "an image holds 1048576: shorten the prompt" in err
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("name", ["pipe", "zero"])
def test_an_image_that_names_a_pipe_or_a_device(t2i, model, tmp_path, name):
    Image.new("RGB", (16, 16)).save(tmp_path / "init.png")
    command = ("generate", "x", "-m", model, "--steps", 2, "--seed", 1, "--init-image", "init.png")
    assert t2i(*command)[0] == 0
    made = tmp_path / "outputs" / "00000-1.png"
    info = PngImagePlugin.PngInfo()
    info.add_text("t2i", json.dumps(read_settings(made) | {"image": name}))
    Image.new("RGB", (16, 16)).save(made, pnginfo=info)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    code, _, err = t2i("generate", "--from", made, "-m", model, "-o", "again")
    assert code == 2 and f"was made with {name!r}" in err and "give --init-image FILE" in err


def test_comments_in_a_file_of_prompts_are_counted(t2i, model, tmp_path):
    (tmp_path / "prompts.txt").write_text("# my prompts\na red circle\n\n# more\n")
    code, _, err = t2i("generate", "--prompts-file", "prompts.txt", "-m", model, "--steps", 1)
    assert code == 0 and "prompts.txt: 2 comment lines skipped" in err and "1 blank line skipped" in err
    assert [row["text"] for row in rows(tmp_path / "outputs")] == ["a red circle"]
