"""Statistics of a reference in a file: ours there and back, and those that others write."""

import numpy as np
import pytest
import torch

from t2i.evaluation.frechet import Moments, Reference, frechet
from t2i.evaluation.protocol import IDENTITY
from t2i.evaluation.stats import load_reference, save_reference

SAID = {key: f"some {key}" for key in IDENTITY}


@pytest.fixture(scope="module")
def features():
    return torch.randn(200, 12, generator=torch.Generator().manual_seed(0)).double()


@pytest.fixture(scope="module")
def other():
    return Moments.of(0.5 + torch.randn(300, 12, generator=torch.Generator().manual_seed(1)).double())


def test_ours_comes_back_to_the_last_bit(tmp_path, features, other):
    reference = Reference.of(Moments.of(features), SAID)
    save_reference(reference, tmp_path / "r.npz")
    found = load_reference(tmp_path / "r.npz")
    assert (found.n, found.trace, dict(found.identity)) == (200, reference.trace, SAID)
    assert frechet(other, found) == frechet(other, reference)
    assert [p.name for p in tmp_path.iterdir()] == ["r.npz"]


def test_ours_says_what_it_is_of(tmp_path, features):
    with pytest.raises(ValueError, match="need an identity: features, fingerprint"):
        save_reference(Reference.of(Moments.of(features)), tmp_path / "r.npz")


def test_theirs_gives_the_same_distance(tmp_path, features, other):
    mu, sigma = features.mean(0).numpy(), np.cov(features.numpy(), rowvar=False)
    np.savez(tmp_path / "pytorch_fid.npz", mu=mu, sigma=sigma)
    torch.save({"mu": mu, "sigma": sigma}, tmp_path / "fidelity-stat-fid-2048.pt")
    wanted = frechet(other, Reference.of(Moments.of(features))).value
    for path in tmp_path.iterdir():
        found = load_reference(path)
        assert found.n is None
        assert frechet(other, found).value == pytest.approx(wanted, rel=1e-10)


class Evil:
    def __reduce__(self):
        return print, ("run",)


def test_bad_files_are_named(tmp_path, capsys):
    path = tmp_path / "x.npz"
    with pytest.raises(ValueError, match="no such file"):
        load_reference(path)
    for arrays, message in (
        ({"a": np.ones(3)}, "statistics are `mu` and `sigma`"),
        ({"mu": np.ones(3), "sigma": np.ones((2, 2))}, "mu has shape"),
        ({"mu": np.full(2, np.nan), "sigma": np.eye(2)}, "NaN"),
        ({"mu": np.ones(2), "sigma": np.array([[1.0, 0.5], [0.0, 1.0]])}, "not symmetric"),
        ({"mu": np.array([object()]), "sigma": np.eye(1)}, "not a readable npz"),
        ({"t2i": np.array(7)}, "format 7"),
        ({"t2i": np.array(1), "n": np.array(3)}, "lacks factor, identity"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(ValueError, match=message):
            load_reference(path)
    path.write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(ValueError, match="not a readable npz"):
        load_reference(path)
    torch.save({"mu": Evil()}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="not readable statistics of torch-fidelity"):
        load_reference(tmp_path / "x.pt")
    assert "run" not in capsys.readouterr().out
