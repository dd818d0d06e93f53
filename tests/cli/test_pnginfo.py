"""`t2i pnginfo`: what it prints, how it ends, that it is light."""

import json
import subprocess
import sys

import pytest
from PIL import Image, PngImagePlugin

from t2i.pipeline.outputs import ImageFolder

ASKED = {"prompt": "a red circle\nbelow", "negative": "", "steps": 3, "cfg": 2.0, "solver": "ddim", "seed": 7}


@pytest.fixture
def ours(tmp_path):
    return ImageFolder(tmp_path / "ours").add(Image.new("RGB", (3, 2)), ASKED | {"odd": 1})


def parameters(path, text):
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", text)
    Image.new("RGB", (3, 2)).save(path, pnginfo=info)
    return path


def test_a_listing(t2i, ours):
    code, out, err = t2i("pnginfo", ours)
    assert code == 0 and err == ""
    assert out.splitlines() == [
        f"{ours}: settings of t2i",
        "  schema_version  1",
        "  prompt          a red circle",
        "                  below",
        "  negative        ",
        "  steps           3",
        "  cfg             2.0",
        "  solver          ddim",
        "  seed            7",
        "  ignored         odd = 1",
    ]


def test_json_is_a_line_a_file_and_the_rest_is_read_though_one_is_refused(t2i, ours, tmp_path):
    plain = tmp_path / "plain.png"
    Image.new("RGB", (3, 2)).save(plain)
    theirs = parameters(tmp_path / "theirs.png", "a fox\nSteps: 3, Sampler: Euler, Seed: 1, Odd: 2")
    code, out, err = t2i("pnginfo", "--json", ours, plain, theirs)
    assert code == 2 and err == f"t2i: {plain}: holds no settings of t2i, A1111, InvokeAI, Fooocus or SwarmUI\n"
    first, second = map(json.loads, out.splitlines())
    assert first["source"] == "t2i" and first["settings"]["prompt"] == ASKED["prompt"] and first["file"] == str(ours)
    assert second["settings"]["solver"] == "euler" and second["ignored"] == ['Odd = "2"']


@pytest.mark.parametrize("arguments", [["missing.png"], [__file__], []])
def test_nothing_to_read_is_exit_code_2(t2i, arguments):
    code, out, err = t2i("pnginfo", *arguments)
    assert code == 2 and out == "" and "Traceback" not in err
    assert not arguments or arguments[0] in err


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_no_text_of_a_picture_reaches_the_terminal_as_a_command(t2i, tmp_path, options):
    evil = parameters(
        tmp_path / "x.png", "\x1b[2Jred\x07 \x9b31m \u202eback\nSteps: 3, Sampler: \x1bx, Seed: 1, Odd\x1b: 2"
    )
    code, out, _ = t2i("pnginfo", *options, evil)
    assert code == 0 and "red" in out
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(out)


def test_it_is_light(ours):
    code = (
        f"import sys\nfrom t2i.__main__ import main\nsys.argv = ['t2i', 'pnginfo', {str(ours)!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert not {'torch', 'transformers', 'PIL', 'numpy'} & set(sys.modules), 'heavy'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0 and "a red circle" in done.stdout, done.stderr
