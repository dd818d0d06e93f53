"""The command line as a whole: version, help, arguments that are not text, a folder that is gone."""

import os
import re

import pytest
from pipeline.tiny import make_pipeline

from t2i.cli.app import VERBS
from t2i.pipeline.settings import SETTINGS

OURS = ("generate", "grid", "pnginfo", "train", "finetune", "recipes", "precompute", "doctor")
BYTES = os.fsdecode(b"caf\xe9")  # as Python hands on what is not UTF-8


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "tiny-model"
    make_pipeline().save_pretrained(path)
    return path


def test_the_version(t2i):
    code, out, err = t2i("--version")
    assert code == 0 and re.fullmatch(r"t2i \d+\.\d+.*\n", out) and not err


def test_verbs_are_listed_in_the_order_of_use(t2i):
    code, out, _ = t2i("--help")
    assert code == 0 and re.findall(r"^│ ([a-z]+)  ", out, re.M) == list(VERBS)


@pytest.mark.parametrize("verb", OURS)
def test_help_cuts_no_name_at_80_columns(t2i, monkeypatch, verb):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = t2i(verb, "--help")
    assert code == 0 and "…" not in out and max(map(len, out.splitlines())) <= 80
    for flag in (flag for setting in SETTINGS.values() for flag in setting.flags if verb == "generate"):
        assert all(part in out for part in flag.split("/"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", BYTES],
        ["generate", "x", "-n", "\ud83e"],
        ["grid", "-x", f"prompt={BYTES}|b"],
        ["finetune", "--data", BYTES],
        ["train", "vae", BYTES],
        ["pnginfo", BYTES],
    ],
)
def test_arguments_that_are_not_text_are_named(t2i, arguments):
    code, out, err = t2i(*arguments)
    assert code == 2 and not out and "is not valid text: write it in UTF-8" in err
    assert ascii(arguments[-1])[1:-1] in err


@pytest.mark.parametrize("arguments", [["doctor"], ["train", "vae", "x.yaml"], ["generate", "x"]])
def test_a_current_folder_that_was_deleted(t2i, tmp_path, monkeypatch, arguments):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    code, _, err = t2i(*arguments)
    assert code == 2 and "t2i: the current folder has been deleted" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["-c", 10**30],
        ["-c", 10**9],
        ["y", "--interpolate", 10**30],
        ["--seed", 10**30],
        ["--steps", 10**30],
        ["--size", "999999x999999"],
        ["--cfg", "1e400"],
        ["--clip-skip", 10**30],
        ["--vae-tile", 10**30],
        ["--variation-seed", 10**30, "--variation-strength", 0.5],
        ["--prompts-file", "huge.jsonl"],
        ["--prompts-file", "deep.jsonl"],
    ],
)
def test_numbers_beyond_all_bounds(t2i, model, tmp_path, arguments):
    (tmp_path / "huge.jsonl").write_text('{"prompt": "a", "cfg": 1' + "0" * 400 + "}")
    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    code, _, err = t2i("generate", "x", "-m", model, *arguments)
    assert code == 2 and len(err) < 2000, err
    assert not (tmp_path / "outputs").exists()


@pytest.fixture
def pipe(tmp_path):
    """A pipe that nobody writes to, and a link to a device without end."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")


@pytest.mark.parametrize("name", ["pipe", "zero"])
@pytest.mark.parametrize("flag", ["--init-image", "--mask", "--prompts-file", "--embedding"])
def test_pipes_and_devices_are_refused_by_name(t2i, pipe, flag, name):
    code, _, err = t2i("generate", "x", flag, name)
    assert code == 2 and f"{name}: a pipe, a socket or a device, not a regular file" in err
    assert flag in err or flag == "--prompts-file"


@pytest.mark.parametrize("verb", [["train", "vae"], ["train", "unet"], ["precompute"], ["finetune"]])
def test_a_pipe_is_not_a_recipe(t2i, pipe, verb):
    code, _, err = t2i(*verb, "pipe")
    assert code == 2 and "pipe: a pipe, a socket or a device, not a regular file" in err
