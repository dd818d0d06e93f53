"""Rules of the code: imports go downward, commands start without torch, names and docstrings are plain."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from importlinter.cli import lint_imports

ROOT = Path(__file__).parent.parent
HELP = """
import sys
sys.argv = ["t2i", *{arguments!r}]
from t2i.__main__ import main
try:
    main()
finally:
    heavy = {{"torch", "transformers", "accelerate", "numpy"}} & set(sys.modules)
    print("loaded:", *sorted(heavy), file=sys.stderr)
"""


def test_layers_hold(capsys):
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), cache_dir=None) == 0, capsys.readouterr().out


def test_help_loads_no_torch():
    for arguments in (["--help"], ["train", "--help"], ["train", "unet", "--help"], ["generate", "--help"]):
        command = [sys.executable, "-c", HELP.format(arguments=arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "Usage" in done.stdout and done.stderr.strip() == "loaded:", done.stderr


TREES = {path: ast.parse(path.read_text(encoding="utf8")) for path in sorted((ROOT / "t2i").rglob("*.py"))}
VAGUE = {"found", "said", "wanted", "own", "rest", "there"}
QUESTION = re.compile(r"(What|Whether|Where|How|Of|Who|That)\b")


def nodes(*kinds: type) -> Iterator[tuple[Path, Any]]:
    return ((path, node) for path, tree in TREES.items() for node in ast.walk(tree) if isinstance(node, kinds))


def check_none(faults: Iterable[tuple[Path, ast.AST]]) -> None:
    lines = [f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}" for path, node in faults]
    assert not lines, f"{len(lines)} places:\n" + "\n".join(lines)


def edits(call: Any, error: str | None) -> bool:
    """True if a node is a call of .replace on something made of the caught error."""
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "replace"):
        return False
    return error in {name.id for name in ast.walk(call.func.value) if isinstance(name, ast.Name)}


def test_no_error_text_is_edited():
    """A caller that knows a longer key raises `error.under(key)`."""
    handlers = nodes(ast.ExceptHandler)
    check_none((path, call) for path, handler in handlers for call in ast.walk(handler) if edits(call, handler.name))


def test_cli_imports_no_private_names():
    imports = ((path, node) for path, node in nodes(ast.ImportFrom) if ROOT / "t2i" / "cli" in path.parents)
    check_none((path, node) for path, node in imports if any(name.name[0] == "_" for name in node.names))


def test_docstrings_do_not_open_with_a_question_word():
    documented = nodes(ast.Module, ast.ClassDef, ast.FunctionDef)
    check_none((path, node) for path, node in documented if QUESTION.match(ast.get_docstring(node) or ""))


def test_locals_are_named_for_what_they_hold():
    assigned = ((path, node) for path, node in nodes(ast.Name) if isinstance(node.ctx, ast.Store))
    check_none((path, node) for path, node in assigned if node.id in VAGUE)


def test_the_map_names_real_files():
    names = re.findall(r"`([\w/]+\.py)`", (ROOT / "t2i" / "README.md").read_text(encoding="utf8"))
    assert len(names) > 20
    assert not [name for name in names if not (ROOT / "t2i" / name).is_file()]
