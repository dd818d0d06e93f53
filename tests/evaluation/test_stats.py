"""Statistics of a reference in a file: ours there and back, and those that others write."""

import contextlib
import zipfile

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
        ({"mu": np.ones((3, 1)), "sigma": np.eye(3)}, r"mu has shape \(3, 1\), a vector is needed"),
        ({"t2i": np.array([1])}, r"t2i has shape \(1,\), a number is needed"),
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
    torch.save({"mu": "text", "sigma": {}, "t2i": {}}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt: mu and sigma are no numbers"):
        load_reference(tmp_path / "x.pt")
    torch.save({"mu": Evil()}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="not readable statistics of torch-fidelity"):
        load_reference(tmp_path / "x.pt")
    assert "run" not in capsys.readouterr().out


def npz(path, arrays):
    """Writes an npz whose members have the given headers, followed by zeros as long as they claim, compressed."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, (shape, dtype, zeros) in arrays.items():
            with file.open(f"{name}.npy", "w") as stream:
                np.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
                stream.write(bytes(zeros))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"mu": ((2**40,), "<f8", 2**16), "sigma": ((2, 2), "<f8", 32)},
            f"mu has {2**40} values of float64",
        ),
        ({"mu": ((2,), "<f8", 16), "sigma": ((2**20, 2**20), "<f8", 2**16)}, "sigma has 1048576x1048576 values"),
        ({"t2i": ((), "<i8", 8), "identity": ((), "<U500000000", 2**16)}, "identity has 1 values of <U500000000"),
        ({"t2i": ((), "<i8", 8), "mean": ((3,), "<U99999", 2**16)}, "mean has 3 values of <U99999"),
    ],
)
def test_arrays_that_claim_too_much_are_refused_by_name_unread(tmp_path, arrays, message, monkeypatch):
    npz(tmp_path / "bomb.npz", arrays)
    monkeypatch.setattr(np, "load", None)
    with pytest.raises(ValueError, match=rf"bomb\.npz: not a readable npz of statistics \({message}"):
        load_reference(tmp_path / "bomb.npz")


def test_pickles_that_unpack_to_too_much_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as file, file.open("x/data.pkl", "w") as stream:
        for _ in range(17):
            stream.write(bytes(2**20))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("t2i.evaluation.stats.MOST_BYTES", 2**24)
        with pytest.raises(ValueError, match=r"x\.pt: 17825792 bytes unpacked, statistics have 16777216 at most"):
            load_reference(tmp_path / "x.pt")


def test_flipped_bits_of_statistics_are_one_message(tmp_path, features):
    save_reference(Reference.of(Moments.of(features), SAID), path := tmp_path / "r.npz")
    whole = path.read_bytes()
    for bit in range(5, 8 * len(whole), 211):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with contextlib.suppress(ValueError):  # a flip in the zip's dates changes nothing
            assert torch.equal(load_reference(path).mean, Moments.of(features).mean)
