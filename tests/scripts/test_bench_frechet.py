"""The benchmark of the Fréchet distance: both sides agree, and every case has its figure."""

import json
import sys

import pytest
import torch

from scripts import bench_frechet
from t2i.evaluation.frechet import Distance

SMALL = ["bench_frechet", "--dim=32", "--samples=200", "--rounds=2", f"--threads={torch.get_num_threads()}"]


@pytest.fixture
def peers():
    for module in ("pytorch_fid", "torch_fidelity", "torchmetrics"):
        pytest.importorskip(module)


def test_it_runs_small(peers, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", SMALL)
    bench_frechet.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(found["cells"]) == len(found["parity"]) == 6
    assert max(found["parity"].values()) < 1e-6
    assert {"ratio", "least", "ok"} == found["file"].keys() == found["none"].keys()


def test_sides_that_differ_are_not_timed(peers, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", SMALL)
    monkeypatch.setattr(bench_frechet, "frechet", lambda *_: Distance(1.0, 0.0, 0.0, 0.0))
    with pytest.raises(SystemExit) as end:
        bench_frechet.main()
    assert end.value.code == 1
    assert "parity failed" in capsys.readouterr().err
