"""The command line in this process."""

import signal
import sys

import pytest

from t2i.__main__ import main

# A shell starts what runs in the background deaf to Ctrl-C, and so would be every process of these tests.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def t2i(monkeypatch, tmp_path, capsys):
    """t2i(*arguments) -> (exit code, stdout, stderr), in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["t2i", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run
