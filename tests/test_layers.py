"""The rooms import only downward, and the command line starts without torch."""

import subprocess
import sys
from pathlib import Path

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
