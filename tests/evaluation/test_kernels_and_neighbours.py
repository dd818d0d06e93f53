"""KID, CMMD, precision, recall, density and coverage: against torch-fidelity and the formulas written out."""

import numpy as np
import pytest
import torch

from t2i.evaluation.jackknife import group_by
from t2i.evaluation.kernel_distances import cmmd, kid
from t2i.evaluation.prdc import prdc


def draw(n, seed, shift=0.0, d=8):
    return shift + torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def places(n):
    return group_by([str(i) for i in range(n)])


def test_kid_is_torch_fidelitys_and_its_replicates_are_of_the_samples_left(monkeypatch):
    theirs = pytest.importorskip("torch_fidelity.metric_kid")
    monkeypatch.setattr("t2i.evaluation.kernel_distances.BLOCK", 37)
    x, y, groups = draw(200, 0, 0.2), draw(200, 1), places(200)
    found = kid(x, y, groups)
    options = {"kid_kernel": "poly", "kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None}
    wanted = theirs.kernel_mmd(x.double().numpy(), y.double().numpy(), **options, kid_kernel_poly_coef0=1)
    assert found.full == pytest.approx(wanted, rel=1e-9)
    for g in (0, 7, 19):
        rest = groups != g
        assert found.without[g] == pytest.approx(kid(x[rest], y, places(int(rest.sum()))).full, rel=1e-9)


def test_kid_is_unbiased():
    values = [kid(draw(60, 2 * i), draw(50, 2 * i + 1), places(60)).full for i in range(60)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 60**0.5
    assert min(values) < 0


def test_cmmd_written_out():
    x, y, groups = draw(90, 0, 0.5), draw(70, 1), places(90)
    a, b = (z.double() / z.double().norm(dim=1, keepdim=True) for z in (x, y))

    def mean(u, v):
        return torch.exp(-((u[:, None] - v[None]) ** 2).sum(-1) / (2 * 10**2)).mean()

    wanted = 1000 * (mean(a, a) + mean(b, b) - 2 * mean(a, b)).item()
    found = cmmd(x, y, groups)
    assert found.full == pytest.approx(wanted, rel=1e-9)
    rest = groups != 3
    assert found.without[3] == pytest.approx(cmmd(x[rest], y, places(int(rest.sum()))).full, rel=1e-9)
    assert abs(cmmd(x, x, groups).full) < 1e-9


def written_out(fake, real, k):
    """All four by their definitions, a loop a sample."""

    def dist(a, b):
        return (a[:, None].double() - b[None].double()).norm(dim=-1)

    radius_real = dist(real, real).sort(1).values[:, k]
    radius_fake = dist(fake, fake).sort(1).values[:, k]
    d = dist(real, fake)
    return {
        "precision": (d <= radius_real[:, None]).any(0).double().mean().item(),
        "recall": (d <= radius_fake[None]).any(1).double().mean().item(),
        "density": (d <= radius_real[:, None]).sum().item() / (k * len(fake)),
        "coverage": (d <= radius_real[:, None]).any(1).double().mean().item(),
    }


@pytest.mark.parametrize("k", [3, 5])
def test_prdc_is_the_definition_also_without_each_group(monkeypatch, k):
    monkeypatch.setattr("t2i.evaluation.prdc.BLOCK", 33)
    fake, real, groups = draw(120, 0, 0.6, 4), draw(100, 1, 0.0, 4), places(120)
    found, wanted = prdc(fake, real, groups, k), written_out(fake, real, k)
    assert 0.3 < wanted["recall"] < 1
    assert {name: r.full for name, r in found.items()} == pytest.approx(wanted)
    for g in range(20):
        left = written_out(fake[groups != g], real, k)
        assert {name: r.without[g] for name, r in found.items()} == pytest.approx(left)


def test_precision_and_recall_are_torch_fidelitys():
    theirs = pytest.importorskip("torch_fidelity.metric_prc")
    fake, real = draw(150, 0, 0.5, 4).double(), draw(140, 1, 0.0, 4).double()
    precision, recall = theirs.calculate_precision_recall_full(fake, real, 3)
    found = prdc(fake, real, places(150), 3)
    assert (found["precision"].full, found["recall"].full) == pytest.approx((precision, recall), abs=1e-6)


def test_constant_pictures_are_inside():
    """With a strict comparison equal sets of one point would have no precision at all."""
    same = torch.ones(20, 3)
    assert prdc(same, same, places(20))["precision"].full == 1


def test_too_few_are_named():
    with pytest.raises(ValueError, match="too few for the 5-th nearest"):
        prdc(draw(6, 0), draw(30, 1), places(6))
    with pytest.raises(ValueError, match="at least 2 samples"):
        kid(draw(2, 0), draw(30, 1), places(2))
    with pytest.raises(ValueError, match="8 dimensions"):
        kid(draw(9, 0), draw(30, 1, d=3), places(9))
