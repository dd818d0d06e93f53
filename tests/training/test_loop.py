"""The loop on tasks that can be worked out by hand."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from t2i.errors import RunFailed
from t2i.training.log import Log
from t2i.training.loop import Run, train
from t2i.training.optim import adamw, learning_rate
from t2i.training.recipes import Recipe

from . import tiny
from .toys import Duel, Regression


def recipe(out: Path, **keys) -> Recipe:
    train = {"steps": 4, "global_batch": 8, "lr": 0.1, "log_every": 1} | keys
    return Recipe.model_validate({"out": str(out), "data": {}, "train": train})


def weights(task) -> list[torch.Tensor]:
    return [p.detach().clone() for network in task.networks.values() for p in network.parameters()]


def test_all_gradients_are_taken_before_any_update(tmp_path):
    settings = recipe(tmp_path, steps=1, clip_norm=None)
    duel, by_hand = Duel(), Duel()
    before = weights(duel)
    train(duel, settings)
    batch = by_hand.batch(by_hand.order(0, 8, 0), 0)
    gradients = {}
    for name, network in by_hand.networks.items():
        loss, _ = by_hand.loss(name, by_hand.networks, batch)
        own = [p for p in network.parameters() if p.requires_grad]
        gradients[name] = torch.autograd.grad(loss, own)
    for name, network in by_hand.networks.items():
        own = [p for p in network.parameters() if p.requires_grad]
        for weight, gradient in zip(own, gradients[name], strict=True):
            weight.grad = gradient
        optimizer = adamw(network.parameters(), settings.train)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(0, settings.train)
        optimizer.step()
    for found, expected in zip(weights(duel), weights(by_hand), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    moved = [not a.equal(b) for a, b in zip(before, weights(duel), strict=True)]
    assert moved == [True, True, True, False, True, True]  # what was frozen stays so
    assert not duel.networks["critic"][0].bias.requires_grad  # pyright: ignore


def test_each_network_has_its_figures_and_its_files(tmp_path):
    train(Duel(), recipe(tmp_path, steps=2, ema=0.9))
    assert {"generator.loss", "generator.grad_norm", "critic.loss", "critic.grad_norm"} <= tiny.rows(tmp_path)[0].keys()
    names = {path.name for path in (tmp_path / "checkpoints" / "step_0000002").iterdir()}
    parts = {f"{name}.{part}safetensors" for name in ("generator", "critic") for part in ("", "optimizer.", "ema.")}
    assert names == parts | {"state.json", "manifest.json"}


@pytest.mark.parametrize("clip", [1.0, None])
@pytest.mark.parametrize(("fault", "stage"), [("loss", "forward"), ("gradient", "backward")])
def test_what_is_not_finite_stops_the_run_before_the_update(tmp_path, fault, stage, clip):
    good = Regression()
    train(good, recipe(tmp_path / "good", steps=2, lr_schedule="constant", clip_norm=clip))
    bad = Regression(fault)
    settings = recipe(tmp_path / "bad", steps=4, lr_schedule="constant", clip_norm=clip, save_every=1, keep=9)
    with pytest.raises(RunFailed, match=f"step 3: .* of `line` is nan after the {stage} pass"):
        train(bad, settings)
    assert weights(bad)[0].equal(weights(good)[0])
    saved = sorted((tmp_path / "bad" / "checkpoints").iterdir())
    assert [path.name for path in saved] == ["step_0000001", "step_0000002"]


@pytest.mark.parametrize("ema", [None, 0.9])
def test_the_last_update_is_checked_before_anything_is_saved(tmp_path, ema):
    with pytest.raises(RunFailed, match="step 1: `weight` of `line` is not finite after the update; nothing was saved"):
        train(Regression(), recipe(tmp_path, steps=1, ema=ema, lr=1e39))
    assert not (tmp_path / "weights.json").exists()
    assert not (tmp_path / "checkpoints").exists()


def test_a_failure_to_write_metrics_or_samples_does_not_end_the_run(tmp_path, capsys):
    class Painter(Regression):
        def samples(self, networks):
            return torch.zeros(1, 3, 8, 8)

    (tmp_path / "metrics.jsonl").mkdir()
    (tmp_path / "samples").write_text("a file where the folder should be")
    settings = recipe(tmp_path, sample_every=2)
    Run(Painter(), settings)._steps(0)
    out = capsys.readouterr().out
    assert "metrics.jsonl: not written (Is a directory)" in out
    assert out.count("the run goes on without this sample") == 2
    assert (tmp_path / "weights.json").exists()


def test_lines_that_the_disk_refused_are_written_later(tmp_path, capsys):
    log = Log(tmp_path, 0, quiet=False)
    (tmp_path / "metrics.jsonl").mkdir()
    log.validation(1, {"a": 1.0})
    (tmp_path / "metrics.jsonl").rmdir()
    log.validation(2, {"a": 2.0})
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]


def test_a_stop_in_the_last_step_stops_what_comes_after_the_run(tmp_path, capsys):
    class Stopped(Regression):
        def loss(self, name, networks, batch):
            if batch["bad"]:
                os.kill(os.getpid(), signal.SIGINT)
            return super().loss(name, networks, batch)

    with pytest.raises(KeyboardInterrupt):
        train(Stopped(when=3), recipe(tmp_path))
    assert "stopped after step 4; the run is finished" in capsys.readouterr().out
    assert (tmp_path / "checkpoints" / "step_0000004").exists()


def test_a_step_waits_for_the_device_once(tmp_path, monkeypatch):
    class Reads(TorchDispatchMode):
        scalars = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.scalars += func is torch.ops.aten._local_scalar_dense.default  # item(), float() and bool()
            return func(*args, **(kwargs or {}))

    lists = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: lists.append(tensor) or tolist(tensor))
    run = Run(Duel(), recipe(tmp_path))
    micros = next(run.batches(0))
    lists.clear()
    with Reads() as reads:
        run.step(micros, 0)
    assert reads.scalars == 0 and len(lists) == 1


def test_gradients_are_clipped_to_the_norm(tmp_path):
    def moved(clip) -> torch.Tensor:
        task = Regression()
        begun = weights(task)[0]
        train(task, recipe(tmp_path / str(clip), steps=1, clip_norm=clip, betas=(0.0, 0.0), weight_decay=0.0))
        return weights(task)[0] - begun

    # AdamW's epsilon, 1e-8, counts where the clipped gradient is of its size.
    assert moved(None).abs().min() > 0.09 and moved(1e-8).abs().max() < 0.09
    free, clipped = tiny.rows(tmp_path / "None")[0], tiny.rows(tmp_path / "1e-08")[0]
    assert free["grad_norm"] == pytest.approx(clipped["grad_norm"]) and free["grad_norm"] > 0.1


def test_a_batch_in_parts_is_the_batch_at_once(tmp_path):
    tiny.run("vae", tiny.vae(tmp_path / "whole", steps=6, global_batch=8))
    tiny.run("vae", tiny.vae(tmp_path / "parts", steps=6, global_batch=8, micro_batch=2))
    whole, parts = tiny.curve(tmp_path / "whole"), tiny.curve(tmp_path / "parts")
    assert len(whole) == 6 and whole.unique().numel() == 6
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=0)
    norms = tiny.curve(tmp_path / "whole", "grad_norm"), tiny.curve(tmp_path / "parts", "grad_norm")
    torch.testing.assert_close(norms[1], norms[0], rtol=1e-3, atol=0)


def test_export_and_validation_see_the_averaged_weights_and_training_the_live_ones(tmp_path):
    task = Regression()
    train(task, recipe(tmp_path, ema=0.5))
    from t2i.component import read_safetensors
    from t2i.files import read_json

    saved = tmp_path / "checkpoints" / "step_0000004"
    average = read_safetensors(saved / "line.ema.safetensors")["weight"]
    live = read_safetensors(saved / "line.safetensors")["weight"]
    assert torch.tensor(read_json(tmp_path / "weights.json")["line"][0]).equal(average) and not average.equal(live)
    assert weights(task)[0].equal(live)


def test_a_run_that_cannot_be_saved_says_so(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(RunFailed, match=r"step 4 could not be saved: .*checkpoints.*MiB free.*from the beginning"):
        train(Regression(), recipe(tmp_path))


def test_time_of_validation_and_saving_is_not_training_time(tmp_path):

    class Slow(Regression):
        def validate(self, networks):
            time.sleep(0.5)
            return {}

    start = time.monotonic()
    train(Slow(), recipe(tmp_path, steps=3, validate_every=1))
    seconds = sum(8 / row["samples_per_second"] for row in tiny.rows(tmp_path, "samples_per_second"))
    assert seconds <= time.monotonic() - start - 3 * 0.5
