import math

import pytest
import torch

from t2i.diffusion import ddpm
from t2i.diffusion.prediction import Prediction
from t2i.diffusion.schedule import levels, make_schedule

from .gaussian import Gaussian, moments


def test_training_loss_by_hand():
    schedule = make_schedule("linear", 4, 0.1, 0.4)  # beta = .1 .2 .3 .4
    alpha_bar = 0.9 * 0.8 * 0.7
    x0, eps = torch.tensor([[1.0, -2.0], [0.5, 3.0]]), torch.tensor([[0.3, 0.1], [-1.0, 2.0]])
    t = torch.tensor([3, 1])
    seen = []

    def network(x_t, t):
        seen.append((x_t, t))
        return 0.5 * x_t

    for kind in ("epsilon", "v_prediction", "sample"):
        losses = ddpm.training_loss(network, schedule, x0, t, eps, kind)
        for i, a in enumerate((alpha_bar, 0.9)):
            x_t = [
                math.sqrt(a) * x + math.sqrt(1 - a) * e for x, e in zip(x0[i].tolist(), eps[i].tolist(), strict=True)
            ]
            assert seen[-1][0][i].tolist() == pytest.approx(x_t)
            wanted = {
                "epsilon": eps[i].tolist(),
                "sample": x0[i].tolist(),
                "v_prediction": [
                    math.sqrt(a) * e - math.sqrt(1 - a) * x
                    for x, e in zip(x0[i].tolist(), eps[i].tolist(), strict=True)
                ],
            }[kind]
            loss = sum((w - 0.5 * x) ** 2 for w, x in zip(wanted, x_t, strict=True)) / 2
            assert losses[i].item() == pytest.approx(loss, rel=1e-5)
        assert torch.equal(seen[-1][1], t)  # the paper's index goes to the network: 1..T


def test_training_loss_falls_to_the_network():
    w = torch.zeros((), requires_grad=True)
    x0, eps = torch.randn(3, 2, 2, 2), torch.randn(3, 2, 2, 2)
    losses = ddpm.training_loss(
        lambda x, t: w * x, make_schedule("linear", 9), x0, torch.tensor([1, 5, 9]), eps, "sample"
    )
    assert losses.shape == (3,)
    losses.sum().backward()
    assert w.grad is not None
    assert w.grad != 0


def test_q_sample_is_the_composition_of_single_steps():
    schedule = make_schedule("linear", 20, 0.01, 0.3)
    mean, variance = 1.0, 0.0
    for t in range(1, 21):
        beta = schedule.beta(t).item()
        mean, variance = math.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
        level = schedule.level(t)
        one = torch.ones(1, 1)
        assert ddpm.q_sample(one, level.alpha, level.sigma, 0 * one).item() == pytest.approx(mean)
        assert ddpm.q_sample(0 * one, level.alpha, level.sigma, one).item() ** 2 == pytest.approx(variance)


def test_posterior_is_bayes():
    """q(x_s | x_t, x_0) is proportional to q(x_t | x_s) q(x_s | x_0): precisions add."""
    schedule = make_schedule("scaled_linear")
    x0, x = torch.tensor([[0.7]]).double(), torch.tensor([[-1.3]]).double()
    for t, s in ((1000, 999), (600, 599), (2, 1), (1000, 20), (400, 100)):
        t, s = schedule.level(t), schedule.level(s)
        a = t.alpha / s.alpha
        precision = a**2 / (1 - a**2) + 1 / s.sigma**2
        mean = (a / (1 - a**2) * -1.3 + s.alpha / s.sigma**2 * 0.7) / precision
        got_mean, got_variance = ddpm.posterior(x0, x, t, s)
        assert got_variance == pytest.approx(1 / precision)
        assert got_mean.item() == pytest.approx(mean)


def test_posterior_ends_in_x0_and_forgets_pure_noise():
    schedule = make_schedule("scaled_linear", rescale_betas_zero_snr=True)
    x0, x = torch.tensor([[0.7]]).double(), torch.tensor([[-1.3]]).double()
    mean, variance = ddpm.posterior(x0, x, schedule.level(1), schedule.level(0))
    assert (mean.item(), variance) == (pytest.approx(0.7), 0)
    s = schedule.level(999)
    mean, variance = ddpm.posterior(x0, x, schedule.level(1000), s)
    assert mean.item() == pytest.approx(s.alpha * 0.7)
    assert variance == pytest.approx(s.sigma**2)


def test_algorithm_2_by_hand():
    """Ho et al.'s line 4, for every t, with each of the three variances."""
    schedule = make_schedule("linear", 5, 0.1, 0.3)
    g = torch.Generator().manual_seed(0)
    start, *z = torch.randn(5, 1, 3, generator=g).double()

    def eps_theta(x, t):
        return torch.sin(3 * x + t)

    def predict(x, level):
        eps = eps_theta(x, level.t)
        return Prediction((x - level.sigma * eps) / level.alpha, eps)

    for variance in ddpm.VARIANCES:
        x = start
        steps = ddpm.sample(predict, start, levels(schedule, 5), z, variance)
        for t, got in zip((5, 4, 3, 2, 1), steps, strict=True):
            beta, alpha_bar = schedule.beta(t), schedule.alpha_bar
            tilde = (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]) * beta
            sigma = {"beta": beta, "beta_tilde": tilde, "zero": torch.tensor(0.0)}[variance].sqrt()
            x = (x - beta / (1 - alpha_bar[t]).sqrt() * eps_theta(x, t)) / (1 - beta).sqrt()
            x = x + sigma * z[5 - t] if t > 1 else x
            torch.testing.assert_close(got, x)


@pytest.mark.parametrize("n", [5, 7, 50, 1000])
def test_beta_is_exact_for_unit_variance_and_beta_tilde_for_a_point(n):
    """The two extreme choices of section 3.2; they hold for strided lists as well."""
    listed = levels(make_schedule("scaled_linear"), n)
    for s, variance in ((1.0, "beta"), (0.0, "beta_tilde")):
        data = Gaussian(mu=0.8, s=s)
        path = moments(ddpm.sample, data, listed, n - 1, variance=variance)
        for level, (mean, std) in zip(listed[1:-1], path, strict=False):
            assert mean == pytest.approx(level.alpha * data.mu, abs=1e-9)
            assert std == pytest.approx(data.std(level), rel=1e-9)
        # no z in the last step: what is left is the spread of E[x_0 | x_t]
        t = listed[-2]
        assert path[-1][0] == pytest.approx(data.mu)
        assert path[-1][1] == pytest.approx(t.alpha * s**2 / data.std(t), abs=1e-9)


def test_beta_tilde_and_beta_close_in_on_other_spreads_and_the_mean_alone_loses_them():
    data, schedule = Gaussian(mu=-1.0, s=0.5), make_schedule("scaled_linear")
    ratio = {}  # of the sampler's std to the true one, before the last step, which adds no noise
    for n in (50, 1000):
        listed = levels(schedule, n)
        for variance in ddpm.VARIANCES:
            path = moments(ddpm.sample, data, listed, n - 1, variance=variance)
            assert path[-1][0] == pytest.approx(-1.0)
            ratio[variance, n] = path[-2][1] / data.std(listed[-2])
    assert ratio["zero", 1000] < 0.1
    assert ratio["beta_tilde", 50] < ratio["beta_tilde", 1000] < 1 < ratio["beta", 1000] < ratio["beta", 50]
    assert ratio["beta_tilde", 1000] == pytest.approx(1, abs=0.01)
    assert ratio["beta", 1000] == pytest.approx(1, abs=0.002)


def test_mistakes_are_named():
    listed = levels(make_schedule("linear", 10), 3)
    with pytest.raises(ValueError, match=r"'large'.*beta, beta_tilde, zero"):
        next(ddpm.sample(Gaussian(0, 1).predict, torch.zeros(1, 1), listed, [torch.zeros(1, 1)] * 2, "large"))
    with pytest.raises(ValueError, match="zip"):  # one tensor of noise too few
        list(ddpm.sample(Gaussian(0, 1).predict, torch.zeros(1, 1), listed, [torch.zeros(1, 1)]))
