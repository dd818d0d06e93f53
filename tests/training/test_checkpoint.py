"""Checkpoints: every damaged byte is found, and the newest good one is never the one that is dropped."""

import random
import stat

import pytest
import torch
from torch import nn

from t2i.training import checkpoint
from t2i.training.checkpoint import Parts
from t2i.training.ema import EMA


def parts(seed: int = 0, width: int = 3, steps: int = 2) -> Parts:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(width, 4), nn.Linear(4, 1))
    optimizer, ema = torch.optim.AdamW(network.parameters(), lr=0.1, betas=(0.8, 0.9)), EMA(network, 0.9)
    for _ in range(steps):
        network(torch.randn(2, width)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update()
    return Parts({"net": network}, {"net": optimizer}, {"net": ema})


def test_round_trip(tmp_path):
    saved, loaded = parts(), parts(seed=1, steps=0)
    checkpoint.save(tmp_path, {"step": 5, "recipe": {"a": 1}}, saved, keep=2)
    assert checkpoint.load(tmp_path / "step_0000005", loaded)["recipe"] == {"a": 1}
    torch.testing.assert_close(saved.networks["net"].state_dict(), loaded.networks["net"].state_dict(), rtol=0, atol=0)
    old, new = (p.optimizers["net"].state_dict() for p in (saved, loaded))
    torch.testing.assert_close(old["state"], new["state"], rtol=0, atol=0)
    assert [g["lr"] for g in new["param_groups"]] == [0.1] and list(new["param_groups"][0]["betas"]) == [0.8, 0.9]
    torch.testing.assert_close(saved.emas["net"].shadow, loaded.emas["net"].shadow, rtol=0, atol=0)
    assert loaded.emas["net"].updates == 2
    for part in (saved, loaded):  # and both go on alike
        part.networks["net"](torch.ones(1, 3)).sum().backward()
        part.optimizers["net"].step()
    torch.testing.assert_close(saved.networks["net"].state_dict(), loaded.networks["net"].state_dict(), rtol=0, atol=0)


def test_a_network_of_another_shape_is_refused_by_key(tmp_path):
    checkpoint.save(tmp_path, {"step": 5}, parts(), keep=2)
    with pytest.raises(ValueError, match=r"0\.weight has shape \(4, 3\).*\(4, 5\)"):
        checkpoint.load(tmp_path / "step_0000005", parts(width=5))


def test_every_single_flipped_bit_is_found(tmp_path):
    checkpoint.save(tmp_path, {"step": 5}, parts(), keep=2)
    folder = tmp_path / "step_0000005"
    draw = random.Random(0)
    for path in [*sorted(folder.glob("*.safetensors")), folder / "state.json"]:
        good = path.read_bytes()
        for _ in range(50):
            bad = bytearray(good)
            bad[draw.randrange(len(bad))] ^= 1 << draw.randrange(8)
            path.write_bytes(bad)
            assert checkpoint.damage(folder) == f"{path.name} is damaged (its SHA-256 differs)"
        path.write_bytes(good[:-1])
        assert checkpoint.damage(folder) is not None
        path.unlink()
        assert checkpoint.damage(folder) == f"{path.name} is missing"
        path.write_bytes(good)
    assert checkpoint.damage(folder) is None
    (folder / "manifest.json").write_text("{")
    assert "manifest.json" in str(checkpoint.damage(folder))


def test_the_newest_are_kept_and_one_that_was_passed_over_takes_no_place(tmp_path, capsys):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, {"step": step}, parts(), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_0000002", "step_0000003"]
    (tmp_path / "step_0000003" / "state.json").unlink()
    assert checkpoint.latest(tmp_path) == tmp_path / "step_0000002"
    assert "step_0000003: skipped, state.json is missing" in capsys.readouterr().out
    checkpoint.save(tmp_path, {"step": 2}, parts(), keep=1)
    assert checkpoint.latest(tmp_path) == tmp_path / "step_0000002"
    assert [path.name for path in tmp_path.iterdir()] == ["step_0000002"]
    assert checkpoint.latest(tmp_path / "nothing") is None


def test_a_save_that_fails_leaves_what_was_there(tmp_path):
    checkpoint.save(tmp_path, {"step": 5}, parts(), keep=1)
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path, {"step": 6, "recipe": object()}, parts(), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_0000005"]
    assert checkpoint.latest(tmp_path) == tmp_path / "step_0000005"


def test_files_follow_the_umask(tmp_path):
    checkpoint.save(tmp_path, {"step": 5}, parts(), keep=1)
    beside = tmp_path / "beside"
    beside.touch()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "step_0000005").iterdir()}
    assert set(modes.values()) == {stat.S_IMODE(beside.stat().st_mode)}
