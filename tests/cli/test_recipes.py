"""`t2i recipes`: the list, the copies, and where the recipes are looked for."""

import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

import t2i as package
from t2i.cli import recipes

ROOT = Path(__file__).parents[2]


@pytest.fixture
def t2i(t2i):
    """t2i(*arguments) -> (exit code, stdout, stderr) of t2i recipes in an empty folder."""
    return partial(t2i, "recipes")


def test_every_recipe_is_listed_with_its_header(t2i):
    code, out, _ = t2i()
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert code == 0 and lines.keys() == {
        path.relative_to(ROOT / "configs").with_suffix("").as_posix() for path in (ROOT / "configs").rglob("*.yaml")
    }
    assert lines["scenes/vae"] == "Built-in scenes: 32x32 images <-> 8x8 latents of 4 channels. Minutes on two cores."


def test_a_copy_is_the_recipe(t2i, tmp_path):
    code, out, _ = t2i("copy", "glyphs/unet")
    assert code == 0 and out == "configs/glyphs/unet.yaml\n"
    assert (tmp_path / out.strip()).read_bytes() == (ROOT / out.strip()).read_bytes()
    assert t2i("copy", "configs/glyphs/vae.yaml", "mine/v.yaml")[1] == "mine/v.yaml\n"
    (tmp_path / "there").mkdir()
    assert t2i("copy", "scenes/vae", "there")[1] == "there/vae.yaml\n"


def test_what_is_there_stays(t2i, tmp_path):
    (tmp_path / "mine.yaml").write_text("mine")
    code, _, err = t2i("copy", "scenes/vae", "mine.yaml")
    assert code == 2 and "mine.yaml: exists and is kept" in err and (tmp_path / "mine.yaml").read_text() == "mine"
    code, _, err = t2i("copy", "scenes/vae", tmp_path / "mine.yaml" / "x.yaml")
    assert code == 2 and "cannot be written" in err


def test_in_a_checkout_the_recipe_itself_is_named(t2i, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert "the recipe itself is here" in t2i("copy", "scenes/vae")[1]


@pytest.mark.parametrize("words", [["scenes/vae"], ["copy"], ["move", "scenes/vae"]])
def test_what_is_no_verb(t2i, words):
    code, _, err = t2i(*words)
    assert code == 2 and "t2i recipes copy NAME [DST]" in err


@pytest.mark.parametrize("name", ["glyphs/vaee", "../secret", "/etc/passwd", ""])
def test_no_such_recipe(t2i, tmp_path, name):
    code, out, err = t2i("copy", name)
    assert code == 2 and "is not a recipe" in err and not out and not list(tmp_path.iterdir())
    assert name != "glyphs/vaee" or "did you mean glyphs/vae" in err


def test_in_an_installed_package_they_lie_inside(t2i, tmp_path, monkeypatch):
    installed = tmp_path / "site-packages" / "t2i"
    shutil.copytree(ROOT / "configs" / "scenes", installed / "configs" / "scenes")
    monkeypatch.setattr(package, "__file__", str(installed / "__init__.py"))
    assert [line.split()[0] for line in t2i()[1].splitlines()] == ["scenes/text-encoder", "scenes/unet", "scenes/vae"]
    assert t2i("copy", "scenes/vae")[0] == 0 and (tmp_path / "configs/scenes/vae.yaml").is_file()
    shutil.rmtree(installed / "configs")
    assert t2i()[0] == 2


def test_a_recipe_without_a_header(tmp_path):
    (tmp_path / "x.yaml").write_text("out: x\n")
    assert recipes.header(tmp_path / "x.yaml") == ""


def test_it_is_light():
    code = (
        "import sys\nfrom t2i.__main__ import main\nsys.argv = ['t2i', 'recipes']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert not {'torch', 'transformers', 'PIL', 'numpy', 'yaml'} & set(sys.modules), 'heavy'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0 and "scenes/vae" in done.stdout, done.stderr
