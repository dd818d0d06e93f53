"""The documents: their commands parse, their Python runs, their links lead somewhere, every recipe key is explained."""

import importlib
import pkgutil
import re
import shlex
from pathlib import Path

import pytest
import typer
from pydantic import BaseModel

import t2i.study
import t2i.training
from t2i.cli.app import app
from t2i.component import ComponentConfig

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCUMENTS = [README, *(ROOT / name / "README.md" for name in ("t2i", "configs", "scripts", "checkpoints/study-scenes"))]
TEXTS = {path: path.read_text(encoding="utf8") for path in DOCUMENTS}


def commands(path: Path) -> list[list[str]]:
    """The words of each line in a document's bash blocks."""
    blocks = re.findall(r"```bash\n(.*?)```", TEXTS[path], re.S)
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines() if line.strip()]


def ours(words: list[str]) -> list[str]:
    """The arguments of t2i in a command; none in a command without it."""
    start = next((i for i, word in enumerate(words) if Path(word).name == "t2i"), len(words))
    return words[start + 1 :]


@pytest.mark.parametrize(
    "words", [words for path in DOCUMENTS for c in commands(path) if (words := ours(c))], ids=" ".join
)
def test_command_parses(words):
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    context = command.make_context("t2i", list(words))
    recipe = context.params.get("recipe")
    assert recipe is None or (ROOT / recipe).is_file()


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", "\n".join(TEXTS.values()), re.S))
def test_python_runs(block, monkeypatch, tmp_path):
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.parent.name)
def test_named_files_exist(path):
    scripts = [word for words in commands(path) for word in words if word.startswith("scripts/")]
    links = re.findall(r"\]\(([^)#:]+)", TEXTS[path])
    assert links or path != README
    assert not [name for name in scripts if not (ROOT / name).exists()]
    assert not [name for name in links if not (path.parent / name).exists()]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.parent.name)
def test_linked_sections_exist(path):
    for name, section in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", TEXTS[path]):
        text = (path.parent / name).read_text(encoding="utf8") if name else TEXTS[path]
        titles = re.findall(r"^#+ (.*)$", text, re.M)
        assert section in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], section


def sections(kind: type[BaseModel]) -> list[type[BaseModel]]:
    """The recipes' models of t2i; the configs of components have diffusers' keys and are not among them."""
    return [c for sub in kind.__subclasses__() if not issubclass(sub, ComponentConfig) for c in (sub, *sections(sub))]


def test_every_recipe_key_is_explained():
    for package in (t2i.training, t2i.study):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            importlib.import_module(module.name)
    text = TEXTS[ROOT / "configs" / "README.md"]
    recipes = [c for c in sections(BaseModel) if c.__module__.startswith("t2i.") and "evaluation" not in c.__module__]
    keys = {key for model in recipes for key in model.model_fields}
    assert {"global_batch", "source", "shorten", "held_out", "encoders"} <= keys
    assert not sorted(key for key in keys if not re.search(rf"`([\w.]+\.)?{key}(\.\w+)?`", text))
