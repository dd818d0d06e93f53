"""Two processes train as one does."""

import os
import subprocess
import sys

import pytest
import torch

from tests.hang import SECONDS

from . import tiny
from .processes import ranks


def assert_alike(one, two, steps: int) -> None:
    a, b = tiny.curve(one), tiny.curve(two)
    assert len(a) == len(b) == steps and a.unique().numel() == steps
    torch.testing.assert_close(b, a, rtol=1e-5, atol=0)
    assert [row["lr"] for row in tiny.rows(one)] == [row["lr"] for row in tiny.rows(two)]


def test_two_processes_are_one(components, tmp_path):
    keys = {"global_batch": 8, "steps": 8, "warmup_steps": 2, "ema": 0.9}

    def recipes(name: str):
        unet = tiny.unet(tmp_path / name / "unet", components, **keys) | {"cache": str(tmp_path / name / "cache")}
        return {"unet": unet, "text-encoder": tiny.text_encoder(tmp_path / name / "text", **keys)}

    for kind, values in recipes("one").items():
        tiny.run(kind, values)
    commands = [
        ["train", kind, tiny.written(values, tmp_path / f"{kind}.yaml")] for kind, values in recipes("two").items()
    ]
    said = ranks(2, commands, tmp_path)
    assert_alike(tmp_path / "one" / "unet", tmp_path / "two" / "unet", 8)
    assert_alike(tmp_path / "one" / "text", tmp_path / "two" / "text", 8)
    assert (
        "8 = micro-batch 4 x accumulation 1 x processes 2, 8 samples, cpu, " in said[0]
        and "training images: 8 of 8 rows used" in said[0]
    )
    assert "images" not in said[1] and "steps" not in said[1]
    assert len(list((tmp_path / "two" / "cache").rglob("manifest.json"))) == 4
    for name in ("unet/model", "text/text_encoder", "text/image_encoder"):
        assert (tmp_path / "two" / name).is_dir()


@pytest.mark.slow
def test_two_processes_of_torchrun_are_one_over_fifty_steps(components, tmp_path):
    keys = {"global_batch": 8, "micro_batch": 2, "steps": 50, "warmup_steps": 5, "save_every": 20}
    tiny.run("unet", tiny.unet(tmp_path / "one", components, **keys))
    recipe = tiny.written(tiny.unet(tmp_path / "two", components, **keys), tmp_path / "recipe.yaml")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command = [*torchrun, "-m", "t2i", "train", "unet", recipe]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=SECONDS)
    assert_alike(tmp_path / "one", tmp_path / "two", 50)
