"""Fréchet distance at d = 2048: ours against torch-fidelity, pytorch-fid and torchmetrics, in turns in one process.

`file`: the reference's statistics come from a file, as they do in a sweep. `none`: from two covariances.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scripts.benching import fail, interleave, report, show, summary
from t2i.evaluation.frechet import Moments, Reference, frechet
from t2i.evaluation.protocol import IDENTITY
from t2i.evaluation.stats import load_reference, save_reference

TOLERANCE = 1e-6
LEAST = {"file": 2.0, "none": 1.2}
SAID = dict.fromkeys(IDENTITY, "bench")
Stats = dict[str, np.ndarray]


def features(n: int, dim: int, seed: int) -> torch.Tensor:
    """Returns correlated features with a falling spectrum, as real features have."""
    draw = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, dim + 1).double() ** -0.5
    turn = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(0)).double()).Q
    return (torch.randn(n, dim, generator=draw).double() * scale * (1 + 0.1 * seed)) @ turn + 0.02 * seed


def peers() -> dict[str, Callable[[Stats, Stats], float]]:
    """Returns each installed peer's function of two pairs of mean and covariance."""
    from pytorch_fid.fid_score import calculate_frechet_distance
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric
    from torchmetrics.image.fid import _compute_fid

    def torchmetrics(a: Stats, b: Stats) -> float:
        tensors = [torch.from_numpy(s[key]) for s in (a, b) for key in ("mu", "sigma")]
        return _compute_fid(*tensors).item()

    return {
        "torch-fidelity": lambda a, b: fid_statistics_to_metric(a, b, False)[KEY_METRIC_FID],
        "pytorch-fid": lambda a, b: float(calculate_frechet_distance(a["mu"], a["sigma"], b["mu"], b["sigma"])),
        "torchmetrics": torchmetrics,
    }


def sides(moments: Moments, reference: Moments, folder: Path) -> dict[str, tuple[Callable[[], float], Any]]:
    """Returns, for each case, t2i's function and a map from a peer to its function; both read their file inside."""

    def stats(m: Moments) -> Stats:
        return {"mu": m.mean.numpy(), "sigma": (m.scatter / (m.n - 1)).numpy()}

    fake, real = stats(moments), stats(reference)
    save_reference(Reference.of(reference, SAID), folder / "ours.npz")
    np.savez(folder / "peer.npz", mu=real["mu"], sigma=real["sigma"])

    def from_file(peer: Callable[[Stats, Stats], float]) -> float:
        with np.load(folder / "peer.npz") as file:
            return peer(fake, {"mu": file["mu"], "sigma": file["sigma"]})

    return {
        "file": (lambda: frechet(moments, load_reference(folder / "ours.npz")).value, from_file),
        "none": (lambda: frechet(moments, Reference.of(reference)).value, lambda peer: peer(fake, real)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    ours, theirs = (Moments.of(features(args.samples, args.dim, seed)) for seed in (1, 2))
    with tempfile.TemporaryDirectory() as folder:
        cases = sides(ours, theirs, Path(folder))
        parity = {
            f"{case}, {name}": abs(mine() / other(peer) - 1)
            for case, (mine, other) in cases.items()
            for name, peer in peers().items()
        }
        if max(parity.values()) > TOLERANCE:
            fail(parity)
        cells = {}
        for case, (mine, other) in cases.items():
            for name, peer in peers().items():
                timings = interleave(mine, lambda other=other, peer=peer: other(peer), args.rounds, warmups=0)
                cells[f"{case}, {name}"] = summary(timings)
                show(f"{case}, {name}", cells[f"{case}, {name}"])
    results = report(cells, parity, {})
    for case, least in LEAST.items():
        fastest = min(cell["ratio"] for name, cell in cells.items() if name.startswith(case))
        results[case] = {"ratio": fastest, "least": least, "ok": fastest >= least}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
