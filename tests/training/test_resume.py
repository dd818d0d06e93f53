"""A run that was interrupted ends as the straight one, bit for bit; what does not fit is refused."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from t2i.component import read_safetensors
from t2i.files import read_json
from t2i.training.log import Log
from t2i.training.resume import alone_in

from . import tiny
from .conftest import SAVE_EVERY, STEPS
from .processes import finished, start, until

LAST = f"checkpoints/step_{STEPS:07}"


def again(out: Path, **train):
    return tiny.vae(out, **({"steps": STEPS, "save_every": SAVE_EVERY, "ema": 0.9, "warmup_steps": 3} | train))


def assert_same_end(found: Path, expected: Path) -> None:
    """Weights, average and optimiser to the bit, what is exported, and every line of the metrics."""
    files = {path.name for path in (expected / LAST).iterdir()}
    assert files == {path.name for path in (found / LAST).iterdir()} and len(files) == 5
    for name in [f"{LAST}/{name}" for name in files if name.endswith(".safetensors")] + [
        "vae/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "report.json",
    ]:
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name
    states = [read_json(folder / LAST / "state.json") for folder in (found, expected)]
    assert [state["recipe"].pop("out") for state in states] == [str(found), str(expected)]
    assert states[0] == states[1]
    lines = [[row | {"samples_per_second": 0} for row in tiny.rows(folder, "step")] for folder in (found, expected)]
    assert lines[0] == lines[1] and len(lines[0]) == STEPS + 1


@pytest.fixture
def copied(straight, tmp_path):
    """A copy of the straight run, and its recipe."""
    out = tmp_path / "run"
    shutil.copytree(straight, out)
    return out


def test_killed_then_interrupted_is_the_straight_run(straight, tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"
    command = ["train", "vae", tiny.written(again(out), tmp_path / "recipe.yaml")]

    killed = start([command], log)
    until((out / f"checkpoints/step_{SAVE_EVERY:07}").exists, killed)
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    assert killed.exitcode == -signal.SIGKILL and not (out / LAST).exists()

    stopped = start([command], log)
    until((out / f"checkpoints/step_{4 * SAVE_EVERY:07}").exists, stopped)
    os.kill(stopped.pid, signal.SIGINT)
    stopped.join()
    assert stopped.exitcode == 130, log.read_text()
    step = read_json(sorted((out / "checkpoints").glob("step_*"))[-1] / "state.json")["step"]
    said = log.read_text()
    assert f"stopped after step {step}; the same command resumes from it" in said and "Traceback" not in said
    assert 4 * SAVE_EVERY < step < STEPS

    said = finished(start([command], log), log)
    assert f"steps {step}..{STEPS}" in said and f"finished at step {STEPS}" in said
    assert_same_end(out, straight)
    assert not [path for path in out.rglob(".*") if path.name != ".lock"]


def test_a_damaged_checkpoint_is_passed_over_and_said(straight, copied, capsys):
    average = copied / LAST / "vae.ema.safetensors"
    damaged = bytearray(average.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    average.write_bytes(damaged)
    tiny.run("vae", again(copied))
    said = capsys.readouterr().out
    assert "skipped, vae.ema.safetensors is damaged" in said and f"steps {STEPS - SAVE_EVERY}..{STEPS}" in said
    assert_same_end(copied, straight)


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: data.replace(b"latent", b"lbtent")])
def test_a_damaged_state_of_the_newest_checkpoint_does_not_block_the_run(straight, copied, capsys, damage):
    state = copied / LAST / "state.json"
    state.write_bytes(damage(state.read_bytes()))
    tiny.run("vae", again(copied))
    assert "skipped, state.json is damaged" in capsys.readouterr().out
    assert_same_end(copied, straight)


def test_a_finished_run_has_nothing_to_do(straight, copied, capsys):
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*.safetensors")}
    tiny.run("vae", again(copied))
    assert f"finished at step {STEPS}" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in copied.rglob("*.safetensors")}


def test_another_recipe_is_refused_by_name(copied):
    values = again(copied, lr=0.5, ema=None)
    values["vae"] = tiny.VAE | {"latent_channels": 4}
    with pytest.raises(ValueError, match="started with another recipe") as error:
        tiny.run("vae", values)
    for said in ("`train.lr` was 0.003, is 0.5", "`train.ema` was 0.9, is None", "`vae.latent_channels` was 2, is 4"):
        assert said in str(error.value)
    assert "micro_batch" not in str(error.value)


def test_what_may_change_may_change(copied, tmp_path, capsys):
    moved = tmp_path / "moved"
    copied.rename(moved)
    tiny.run("vae", again(moved, steps=STEPS + 2, micro_batch=2, log_every=2, save_every=50, keep=1))
    assert f"steps {STEPS}..{STEPS + 2}" in capsys.readouterr().out
    assert [path.name for path in (moved / "checkpoints").iterdir()] == [f"step_{STEPS + 2:07}"]
    assert tiny.rows(moved)[-1]["step"] == STEPS + 2


def test_two_trainings_in_one_folder_are_refused(copied):
    with alone_in(copied), pytest.raises(ValueError, match="another process trains in this folder"):
        tiny.run("vae", again(copied))


def test_a_torn_line_of_the_metrics_is_dropped(copied, straight):
    with (copied / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6')
    tiny.run("vae", again(copied))
    lines = (copied / "metrics.jsonl").read_text()
    assert lines == (straight / "metrics.jsonl").read_text() and all(map(json.loads, lines.splitlines()))


def test_damaged_lines_of_the_metrics_are_dropped_and_counted(copied, straight, capsys):
    metrics = copied / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines(keepends=True)
    metrics.write_bytes(b"".join([lines[0], b'{"stap": 1}\n', b"\xff\xfe\n", b"[" * 100_000 + b"\n", *lines[1:]]))
    tiny.run("vae", again(copied))
    assert "metrics.jsonl: line 2 is damaged: 3 lines are dropped" in capsys.readouterr().out
    assert metrics.read_text() == (straight / "metrics.jsonl").read_text()


def test_metrics_are_rewritten_whole(copied, monkeypatch):
    """A process that is killed while it drops lines leaves the old file."""
    with (copied / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6')
    before = (copied / "metrics.jsonl").read_text()
    monkeypatch.setattr("os.replace", lambda *_: os._exit(1))
    child = os.fork()
    if child == 0:
        Log(copied, STEPS, quiet=False)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert (copied / "metrics.jsonl").read_text() == before


def test_what_a_killed_writer_left_is_removed(copied):
    for left in (copied / ".vae-0123abcd.partial", copied / "checkpoints" / f".{Path(LAST).name}-0123abcd.partial-old"):
        left.mkdir()
        (left / "half").write_text("")
    with alone_in(copied):
        assert sorted(p.name for p in copied.rglob(".*")) == [".lock"]


def test_the_environment_is_recorded(straight):
    recorded = read_json(straight / "environment.json")
    assert recorded["torch"] == torch.__version__ and recorded["threads"] == torch.get_num_threads()
    assert read_json(straight / "recipe.json")["train"]["steps"] == STEPS
    scale = read_json(straight / "report.json")["scaling_factor"]
    assert read_json(straight / "vae" / "config.json")["scaling_factor"] == scale != 0.18215
    shadow = read_safetensors(straight / LAST / "vae.ema.safetensors")
    exported = read_safetensors(straight / "vae" / "diffusion_pytorch_model.safetensors")
    assert all(shadow[name].equal(exported[name]) for name in exported)
