"""The README's own commands: they parse, and the files that they name exist."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from t2i.cli.app import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.S)
COMMANDS = [shlex.split(line, comments=True) for block in BLOCKS for line in block.splitlines() if line.strip()]
OURS = [words[words.index("t2i") + 1 :] for words in COMMANDS if "t2i" in words]


@pytest.mark.parametrize("words", [words for words in OURS if words], ids=" ".join)
def test_command_parses(words):
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    context = command.make_context("t2i", list(words))
    recipe = context.params.get("recipe")
    assert recipe is None or (ROOT / recipe).is_file()


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.S))
def test_python_runs(block, monkeypatch, tmp_path):
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})


def test_named_files_exist():
    scripts = [word for words in COMMANDS for word in words if word.startswith("scripts/")]
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert scripts
    assert links
    assert not [name for name in scripts + links if not (ROOT / name).exists()]
