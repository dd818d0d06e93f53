"""A small part of scripts/torture_resume.py: one kill and one write fault of each kind, and flipped bits."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_little_torture(tmp_path):
    command = [sys.executable, ROOT / "scripts" / "torture_resume.py", "--folder", tmp_path, "--flips", "50"]
    done = subprocess.run(
        [*map(str, command), "--kills", "4", "--faults", "4", "--two-processes", "1"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
