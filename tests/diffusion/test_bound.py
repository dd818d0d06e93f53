"""The bound: equal to -log p for Gaussian data with the optimal variance, and its known gaps with the others."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from t2i.diffusion import bound, ddpm
from t2i.diffusion.prediction import KINDS
from t2i.diffusion.schedule import Schedule, make_schedule

from .gaussian import Gaussian


def linear(T: int) -> Schedule:
    """The paper's schedule, as 2102.09672 carries it over to other T."""
    return make_schedule("linear", T, 0.1 / T, 20 / T)


def gap(schedule: Schedule, data: Gaussian, variance: str) -> float:
    """bound - E[-log p(x_0)] with the perfect network, every t and expectations exact.

    x_0 = mu ± s and eps = ± 1, in all four combinations, have the Gaussians' second moments; no term has more.
    """
    x0 = data.mu + data.s * torch.tensor([[1.0, 1, -1, -1]]).double()
    eps = torch.tensor([[1.0, -1, 1, -1]]).double()
    draws = bound.Draws.plan(schedule, 1, schedule.T, 0.0)

    def loss(x0, t, eps):
        level = schedule.level(int(t))

        def network(x, t):
            return ddpm.target(data.x0(x, level), data.eps(x, level), level.alpha, level.sigma, data.kind)

        return ddpm.training_loss(network, schedule, x0, t, eps, data.kind)

    errors = bound.errors_at({"": loss}, schedule, data.kind, x0, draws.t, lambda column: eps)[""]
    sigma2 = bound.variances(schedule, variance, torch.cat([torch.zeros(1).double(), errors[0]]))
    first = bound.reconstruction(errors[0, :1], sigma2[1].item())
    rest = bound.denoising_matching(schedule, errors[:, 1:], draws.t[:, 1:], sigma2)
    total = bound.prior_matching(schedule, x0) + first + (draws.weight[draws.t[:, 1:]] * rest).sum()
    return total.item() - 0.5 * math.log(2 * math.pi * math.e * data.s**2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("s", [0.25, 1.0, 2.0])
def test_the_optimal_variance_makes_it_equal(kind, s):
    assert abs(gap(linear(1000), Gaussian(0.0, s, kind), "optimal")) < 1e-6


def test_a_mean_costs_what_is_left_of_it_in_pure_noise():
    schedule, data = linear(1000), Gaussian(1.5, 0.5)
    last = schedule.level(1000)
    mean, std = torch.tensor([last.alpha * data.mu, data.std(last)]).double()
    end = kl_divergence(Normal(mean, std), Normal(0 * std, std / std)).item()
    assert gap(schedule, data, "optimal") == pytest.approx(end, abs=1e-9)


@pytest.mark.parametrize(("T", "known"), [(50, 2.23), (200, 0.94), (1000, 0.58), (4000, 0.49)])
def test_beta_tilde_has_its_known_gap_where_beta_is_exact(T, known):
    assert gap(linear(T), Gaussian(0.0, 1.0), "beta_tilde") == pytest.approx(known, abs=0.005)
    if T <= 1000:
        assert abs(gap(linear(T), Gaussian(0.0, 1.0), "beta")) < 1e-9


def test_the_gaps_of_narrow_data():
    assert gap(linear(1000), Gaussian(0.0, 0.25), "beta") == pytest.approx(0.0052, abs=5e-5)
    assert gap(linear(1000), Gaussian(0.0, 0.25), "beta_tilde") == pytest.approx(0.553, abs=5e-4)


def test_without_variance_there_is_no_bound():
    with pytest.raises(ValueError, match=r"'zero'.*infinite.*study sigma"):
        bound.variances(linear(50), "zero")
    with pytest.raises(ValueError, match="'fixed' is unknown: choose one of optimal, beta, beta_tilde"):
        bound.variances(linear(50), "fixed")
    with pytest.raises(ValueError, match="error is 0"):
        bound.variances(linear(50), "optimal", torch.zeros(51).double())


def test_each_term_is_the_kl_of_the_algorithm_s_own_gaussians():
    schedule = make_schedule("squaredcos_cap_v2", 20)
    x0, guess, x = torch.randn(3, 1, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for variance in ("beta", "beta_tilde"):
        sigma2 = bound.variances(schedule, variance)
        for t in range(2, 21):
            now, before = schedule.level(t), schedule.level(t - 1)
            (mean, beta_tilde), (own, _) = (ddpm.posterior(x_0, x, now, before) for x_0 in (x0, guess))
            q, p = Normal(mean, math.sqrt(beta_tilde)), Normal(own, sigma2[t].sqrt())
            error = (x0 - guess).square().mean(1)
            found = bound.denoising_matching(schedule, error, torch.tensor([t]), sigma2)
            torch.testing.assert_close(found, kl_divergence(q, p).mean(1), rtol=1e-9, atol=1e-12)
    error = (x0 - guess).square().mean(1)
    likelihood = Normal(guess, sigma2[1].sqrt()).log_prob(x0).mean(1)
    torch.testing.assert_close(bound.reconstruction(error, sigma2[1].item()), -likelihood)
    last = schedule.level(20)
    prior = kl_divergence(Normal(last.alpha * x0, last.sigma), Normal(0.0, 1.0)).mean(1)
    torch.testing.assert_close(bound.prior_matching(schedule, x0), prior)


def test_zero_terminal_snr_leaves_no_prior_term():
    schedule = make_schedule("scaled_linear", 50, rescale_betas_zero_snr=True)
    x0 = torch.full((1, 4), 3.0).double()
    assert bound.prior_matching(schedule, x0).item() == 0
    error = torch.full((51,), 0.5).double()
    for variance in bound.VARIANCES:
        sigma2 = bound.variances(schedule, variance, error)
        t = torch.arange(2, 51)
        assert bound.denoising_matching(schedule, error[t], t, sigma2).isfinite().all()
    assert bound.draw_probability(schedule).sum().item() == pytest.approx(1)


@pytest.mark.parametrize(("mean", "std"), [(0.1, 0.02), (-1.0, 0.5), (0.3, 1e-3), (2.5, 0.4)])
def test_the_bins_of_a_pixel_share_all_the_mass(mean, std):
    greys = (torch.arange(256).double() / 127.5 - 1)[:, None]
    nats = bound.reconstruction_of_bins(greys, torch.full_like(greys, mean), std**2)
    assert nats.isfinite().all()
    assert (-nats).exp().sum().item() == pytest.approx(1, abs=1e-9)


def test_narrow_bins_are_a_density_and_other_images_are_refused():
    grey = torch.tensor([[0.2]]).double().mul(127.5).add(127.5).round() / 127.5 - 1
    mean = grey + 0.5
    nats = bound.reconstruction_of_bins(grey, mean, 0.3**2)
    density = bound.reconstruction((grey - mean).square().mean(1), 0.3**2)
    assert (nats - density).item() == pytest.approx(-math.log(2 / 255), abs=1e-4)
    with pytest.raises(ValueError, match="not have 256 grey levels"):
        bound.reconstruction_of_bins(grey + 0.002, mean, 0.1)
    with pytest.raises(ValueError, match="not have 256 grey levels"):
        bound.reconstruction_of_bins(grey + 2, mean, 0.1)


def test_drawn_t_estimate_the_sum_without_bias():
    schedule = make_schedule("squaredcos_cap_v2", 100)
    values = torch.arange(101).double() ** -1.5
    wanted = values[2:].sum().item()
    found = []
    for start in torch.linspace(0, 1, 2001)[:-1].tolist():
        draws = bound.Draws.plan(schedule, 1, 7, start)
        t = draws.t[:, 1:]
        assert draws.t[0, 0] == 1 and t.min() >= 2 and t.max() <= 100 and bool((t.diff() >= 0).all())
        found.append((draws.weight[t] * values[t]).sum().item())
    assert sum(found) / len(found) == pytest.approx(wanted, rel=2e-3)


def test_images_share_the_t_evenly_between_them():
    """The bound of standard normal data, whose L_{t-1} half of the draws follow, needs few of them."""
    schedule = linear(1000)
    exact = 0.5 * (1 - schedule.alpha_bar[1:]).log().diff()
    draws = bound.Draws.plan(schedule, 32, 32, 0.3)
    t = draws.t[:, 1:]
    found = (draws.weight[t] * exact[t - 2]).sum(1).mean().item()
    assert found == pytest.approx(exact.sum().item(), rel=2e-3)
    assert t.unique().numel() > 500


def test_draws_that_cannot_be():
    with pytest.raises(ValueError, match="draws = 0"):
        bound.Draws.plan(linear(50), 2, 0, 0.0)
    with pytest.raises(ValueError, match="num_train_timesteps = 1"):
        bound.Draws.plan(make_schedule("linear", 1), 2, 4, 0.0)
