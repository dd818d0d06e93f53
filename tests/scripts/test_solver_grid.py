"""The picture of solvers and steps: every cell is what the pipeline draws."""

import sys

import numpy as np
from PIL import Image
from pipeline.tiny import make_pipeline

from scripts import solver_grid
from t2i.diffusion.solvers import SOLVERS
from t2i.pipeline import Pipeline
from t2i.report.grid import LabelledGrid


def test_rows_are_steps_and_columns_are_solvers(tmp_path, monkeypatch, capsys):
    make_pipeline().save_pretrained(tmp_path / "model")
    given = ["a red circle", "--model", tmp_path / "model", "--steps", 2, 3, "--solvers", "ddim", "euler-a"]
    words = [tmp_path / "out.png", "--prompt", *given]
    monkeypatch.setattr(sys, "argv", ["solver_grid.py", *map(str, words)])
    solver_grid.main()
    assert str(tmp_path / "out.png") in capsys.readouterr().out
    pipeline = Pipeline.from_pretrained(tmp_path / "model")
    asked = [(steps, solver) for steps in (2, 3) for solver in ("ddim", "euler-a")]
    wanted = [pipeline("a red circle", num_inference_steps=n, solver=s, seeds=0).images[0] for n, s in asked]
    boxes = LabelledGrid("a red circle, seed 0", (16, 16), ("ddim", "euler-a"), ("2 steps", "3 steps")).layout.boxes
    with Image.open(tmp_path / "out.png") as drawn:
        for box, picture in zip(boxes, wanted, strict=True):
            assert np.abs(np.array(drawn.crop(box)).astype(int) - np.array(picture).astype(int)).max() <= 1


def test_what_is_left_out_is_a_solver():
    assert set(solver_grid.LEFT_OUT) < set(SOLVERS)
