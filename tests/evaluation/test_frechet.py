"""The Fréchet distance against closed forms, the nuclear norm, scipy and torch-fidelity; moments that merge."""

import warnings

import numpy as np
import pytest
import scipy.linalg
import torch

from t2i.evaluation.frechet import Moments, Reference, frechet, merged

torch.manual_seed(0)


def sample(n, d, seed, shift=0.0, spread=1.0):
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=torch.Generator().manual_seed(99 + seed)).double() / d**0.5
    return spread * torch.randn(n, d, generator=draw).double() @ mix + shift


def between(a, b):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return frechet(Moments.of(a), Reference.of(Moments.of(b))).value


def oracle(a, b):
    """The nuclear norm of the product of the centred samples themselves."""
    x, y = (z - z.mean(0) for z in (a, b))
    x, y = x / (len(x) - 1) ** 0.5, y / (len(y) - 1) ** 0.5
    cross = torch.linalg.svdvals(x @ y.T).sum()
    return ((a.mean(0) - b.mean(0)).square().sum() + x.square().sum() + y.square().sum() - 2 * cross).item()


def exactly(n, d, std, mean, seed):
    """A sample whose covariance is std^2 on the diagonal, to rounding."""
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).double()
    x = x - x.mean(0)
    white = torch.linalg.qr(x).Q * (n - 1) ** 0.5
    return white * std + mean


@pytest.mark.parametrize("n", [200, 2000])
def test_gaussians_with_one_frame_have_a_closed_form(n):
    d = 40
    s1, s2 = torch.linspace(0.1, 3, d).double(), torch.linspace(2, 0.01, d).double()
    m1, m2 = torch.zeros(d).double(), torch.linspace(-1, 1, d).double()
    found = frechet(Moments.of(exactly(n, d, s1, m1, 1)), Reference.of(Moments.of(exactly(n, d, s2, m2, 2))))
    wanted = (m1 - m2).square().sum() + (s1 - s2).square().sum()
    assert found.value == pytest.approx(wanted.item(), rel=1e-10)
    assert found.mean == pytest.approx((m1 - m2).square().sum().item(), rel=1e-10)
    assert found.cross == pytest.approx((s1 * s2).sum().item(), rel=1e-10)


@pytest.mark.parametrize(("n", "m"), [(300, 400), (20, 400), (400, 20), (30, 20), (65, 64), (64, 64)])
def test_any_rank_agrees_with_the_nuclear_norm(n, m):
    a, b = sample(n, 64, 1), sample(m, 64, 2, shift=0.3)
    assert between(a, b) == pytest.approx(oracle(a, b), rel=1e-10)


def test_a_singular_covariance_of_many_samples_is_no_trouble():
    a, b = sample(500, 64, 1), sample(500, 64, 2)
    a[:, 40:], b[:, 10:20] = 0, 1
    b[:, 30] = b[:, 31]
    assert between(a, b) == pytest.approx(oracle(a, b), rel=1e-6)


def test_scipy_and_torch_fidelity_agree():
    fid = pytest.importorskip("torch_fidelity.metric_fid")
    a, b = sample(1500, 96, 1), sample(1200, 96, 2, shift=0.1)
    root = scipy.linalg.sqrtm(np.cov(a.numpy().T) @ np.cov(b.numpy().T))
    gap = (a.mean(0) - b.mean(0)).square().sum().item()
    wanted = gap + np.trace(np.cov(a.numpy().T)) + np.trace(np.cov(b.numpy().T)) - 2 * np.trace(root).real
    statistics = [fid.fid_features_to_statistics(x) for x in (a, b)]
    theirs = fid.fid_statistics_to_metric(*statistics, False)[fid.KEY_METRIC_FID]
    assert between(a, b) == pytest.approx(wanted, rel=1e-9)
    assert between(a, b) == pytest.approx(theirs, rel=1e-6)


def test_equal_samples_are_at_0():
    a = sample(500, 32, 1)
    assert abs(between(a, a)) < 1e-9
    assert abs(between(a[:20], a[:20])) < 1e-6


def test_fewer_samples_than_dimensions_are_warned_of():
    reference = Reference.of(Moments.of(sample(200, 64, 2)))
    with pytest.warns(UserWarning, match="64 samples for features of 64 dimensions"):
        frechet(Moments.of(sample(64, 64, 1)), reference)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet(Moments.of(sample(65, 64, 1)), reference)


@pytest.mark.parametrize("n", [40, 400])
def test_parts_merge_to_the_whole_and_come_out_again(n):
    x = sample(n, 64, 1, shift=1000.0)
    parts = [Moments.of(part) for part in x.split(n // 8)]
    whole, total = Moments.of(x), merged(parts)
    scale = whole.scatter.abs().max()
    assert total.n == n
    assert torch.allclose(total.mean, whole.mean, rtol=1e-13)
    assert ((total.scatter - whole.scatter).abs().max() / scale) < 1e-10
    rest, wanted = total.minus(parts[3]), merged(parts[:3] + parts[4:])
    assert rest.n == wanted.n
    assert torch.allclose(rest.mean, wanted.mean, rtol=1e-12)
    assert ((rest.scatter - wanted.scatter).abs().max() / scale) < 1e-10
    assert (total.rows is not None) == (n + 7 < 64)
    assert total.trace == pytest.approx(x.var(0).sum().item(), rel=1e-9)


def test_bad_input_is_named():
    x = sample(50, 8, 1)
    broken = x.clone()
    broken[17, 3] = torch.nan
    with pytest.raises(ValueError, match="features of sample 17 are not finite"):
        Moments.of(broken)
    with pytest.raises(ValueError, match="8 dimensions, those that they are compared with 4"):
        frechet(Moments.of(x), Reference.of(Moments.of(x[:, :4])))
    with pytest.raises(ValueError, match="at least 2 samples, not 1"):
        Reference.of(Moments.of(x[:1]))
    with pytest.raises(ValueError, match="at least 2 samples, not 1"):
        frechet(Moments.of(x[:1]), Reference.of(Moments.of(x)))
