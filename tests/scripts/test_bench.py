"""The benchmarks: their statistics, and that they refuse to time two sides that differ."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from PIL import Image
from pipeline.tiny import make_pipeline

from scripts import bench_generate, benching
from scripts.bench_generate import FIGURES
from scripts.benching import Round

ROOT = Path(__file__).parents[2]
KEYS = {"ratio", "ci95", "ours", "peer", "parity", "cells", "peak_mb"}


def rounds(*pairs):
    return [Round(ours, peer, ours / 2, peer) for ours, peer in pairs]


def test_ratio_of_medians_and_what_a_slow_round_does_to_it():
    found = benching.summary(rounds((1.0, 2.0), (1.1, 2.2), (0.9, 1.8), (9.0, 2.1), (1.0, 2.0)))
    assert found["ratio"] == pytest.approx(2.0)
    assert (found["ours"], found["peer"], found["rounds"]) == (1.0, 2.0, 5)
    assert found["ours_cpu"] == pytest.approx(0.5)
    assert found["peer_cpu"] == pytest.approx(2.0)
    low, high = found["ci95"]
    assert low < 2.0 <= high


def test_the_interval_keeps_pairs_together():
    """Both sides slow down by the same factor in every round: the ratio is known exactly, though the times are not."""
    assert benching.summary(rounds(*((s, 1.5 * s) for s in (1.0, 3.0, 2.0, 7.0, 5.0))))["ci95"] == [1.5, 1.5]
    few = benching.summary(rounds(*((1 + 0.1 * (i % 3), 1.5) for i in range(6))))["ci95"]
    many = benching.summary(rounds(*((1 + 0.1 * (i % 3), 1.5) for i in range(600))))["ci95"]
    assert 0 <= many[1] - many[0] < few[1] - few[0]


def test_sides_take_turns_and_warm_ups_are_not_counted():
    order = []
    found = benching.interleave(lambda: order.append("a"), lambda: order.append("b"), rounds=2, warmups=1)
    assert "".join(order) == "ab" + "abba" * 2
    assert len(found) == 2
    assert all(seconds > 0 for one in found for seconds in (one.ours, one.peer))


def test_the_report_leads_with_the_worst_cell():
    cells = {"good": benching.summary(rounds((1, 2))), "bad": benching.summary(rounds((2, 1)))}
    found = benching.report(cells, {}, {"ours": 1.0, "peer": 2.0})
    assert found.keys() >= KEYS
    assert (found["ratio"], found["ours"], found["peer"]) == (0.5, 2, 1)
    assert found["cells"]["good"]["ratio"] == 2


def painter(latents, pixels, side=4):
    """A side that always makes the same."""
    image = Image.new("RGB", (side, side), (pixels,) * 3)
    return lambda batch, kind, size: latents if kind == "latent" else [image] * batch


@pytest.mark.parametrize(
    ("shift", "pixels", "figure", "ok"),
    [
        (1e-4, 102, "documented", True),
        (1e-2, 100, "documented", False),
        (0, 103, "documented", False),
        (1e-2, 106, "tuned", True),
        (0, 120, "tuned", False),
        (1e-2, 106, "bf16-over-fp32", True),
        (0, 120, "bf16-over-fp32", False),
    ],
)
def test_parity_of_pictures(shift, pixels, figure, ok):
    latents = torch.ones(2, 4, 2, 2)
    found = bench_generate.compare(painter(latents, 100), painter(latents + shift, pixels), 2, FIGURES[figure])
    assert found["ok"] is ok
    assert found["images_255"] == pytest.approx(pixels - 100)


def test_no_time_is_printed_where_the_sides_differ(tmp_path, monkeypatch, capsys):
    make_pipeline().save_pretrained(tmp_path / "model")
    monkeypatch.setattr(bench_generate, "peer_side", lambda *_: painter(torch.ones(1, 4, 8, 8), 0, 16))
    options = Namespace(
        against=["documented"], steps=2, size=[None], batch=[1], rounds=1, warmups=0, device="cpu", engine="eager"
    )
    with pytest.raises(SystemExit, match="1"):
        bench_generate.bench(tmp_path / "model", options)
    printed = capsys.readouterr().out
    assert json.loads(printed)["parity"]["documented, batch 1"]["ok"] is False
    assert "ratio" not in printed


@pytest.mark.slow
@pytest.mark.parametrize("script", ["bench_train_step", "bench_generate", "bench_lora_step"])
def test_a_benchmark_runs(script, tmp_path):
    options = ["--rounds", "2", "--warmups", "1"]
    if script == "bench_generate":
        make_pipeline().save_pretrained(tmp_path / "model")
        options += ["--model", str(tmp_path / "model"), "--steps", "5", "--batch", "1", "2"]
    else:
        options += ["--tiny"] if script == "bench_lora_step" else ["--cells", "tiny fp32"]
    done = subprocess.run(
        [sys.executable, f"scripts/{script}.py", *options], cwd=ROOT, check=True, capture_output=True, text=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() >= KEYS
    assert found["ratio"] == min(cell["ratio"] for cell in found["cells"].values())
    assert all(cell["ok"] for cell in found["parity"].values())
    assert all(100 < found["peak_mb"][side] < 4000 for side in ("ours", "peer"))


@pytest.mark.slow
def test_the_figures_of_a_shape_are_told_apart():
    options = ["--tiny", "--size", "64", "--rounds", "2", "--warmups", "0"]
    done = subprocess.run(
        [sys.executable, "scripts/bench_generate.py", *options], cwd=ROOT, check=True, capture_output=True, text=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert list(found["cells"]) == ["documented, 64x64, batch 1", "tuned, 64x64, batch 1"]
    assert list(found["unequal_dtypes"]) == ["bf16-over-fp32, 64x64, batch 1"]
    assert found["ratio"] == min(cell["ratio"] for cell in found["cells"].values())
    assert all(cell["ok"] and cell["contrast_255"] > 20 for cell in found["parity"].values())


def test_a_shape_is_stable_diffusions():
    """The parameter count of Stable Diffusion 1.5's U-Net and VAE as published, without their memory."""
    from t2i.autoencoder.kl import AutoencoderKL, AutoencoderKLConfig
    from t2i.generator.unet import UNet
    from t2i.generator.unet_config import UNetConfig

    with torch.device("meta"):
        unet = UNet(UNetConfig(**bench_generate.SD15["unet"]))
        vae = AutoencoderKL(AutoencoderKLConfig(**bench_generate.SD15["vae"]))
    assert sum(x.numel() for x in unet.parameters()) == 859_520_964
    assert sum(x.numel() for x in vae.parameters()) == 83_653_863


def test_cuda_graphs_are_refused_without_cuda(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench_generate.py", "--tiny", "--engine", "graph"])
    with pytest.raises(SystemExit):
        bench_generate.parse()
    assert "CUDA graphs need --device cuda" in capsys.readouterr().err
