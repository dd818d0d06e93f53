"""Solvers against the closed form for Gaussian data, and their edges."""

import math
from itertools import pairwise

import diffusers
import pytest
import torch

from t2i.diffusion import ddim, ddpm, dpm
from t2i.diffusion.prediction import KINDS, Prediction, to_prediction
from t2i.diffusion.schedule import SPACINGS, Level, levels, make_schedule
from t2i.diffusion.solvers import SOLVERS, find_solver

from .gaussian import Gaussian, moments


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("sampler", "n", "tolerance"),
    [(ddim.sample, 50, 0.05), (ddim.sample, 1000, 0.004), (dpm.sample_2m, 50, 0.02), (dpm.sample_2m, 1000, 0.001)],
)
def test_deterministic_solvers_reach_the_data_s_mean_and_spread(sampler, n, tolerance, kind):
    data = Gaussian(mu=0.6, s=0.7, kind=kind)
    listed = levels(make_schedule("scaled_linear"), n)
    path = moments(sampler, data, listed, 0)
    assert len(path) == n
    for level, (mean, std) in zip(listed[1:], path, strict=True):
        assert mean == pytest.approx(level.alpha * data.mu)
        assert std == pytest.approx(data.std(level), rel=tolerance)


def smooth_levels(n: int) -> list[Level]:
    """n + 1 levels, uniform in lambda between two that are neither pure noise nor clean."""
    lambdas = [-2 + 3 * i / n for i in range(n + 1)]
    snr = [math.exp(2 * value) for value in lambdas]
    return [Level(n - i, math.sqrt(r / (1 + r)), math.sqrt(1 / (1 + r))) for i, r in enumerate(snr)]


@pytest.mark.parametrize(("sampler", "order"), [(ddim.sample, 1), (dpm.sample_2m, 2)])
def test_order_of_convergence(sampler, order):
    data, start = Gaussian(mu=0.6, s=0.5), torch.tensor([[1.7]]).double()
    errors = []
    for n in (40, 80, 160):
        listed = smooth_levels(n)
        *_, x = sampler(data.predict, start, listed)
        errors.append(abs((x - data.ode(start, listed[0], listed[-1])).item()))
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_keeps_the_marginals_of_a_point_at_every_eta(eta):
    """The family of section 4 has the same q(x_t | x_0) whatever its sigma: exact if x_0 is one point."""
    data = Gaussian(mu=0.8, s=0.0)
    listed = levels(make_schedule("linear", 1000, 1e-4, 0.02), 20)
    for level, (mean, std) in zip(listed[1:], moments(ddim.sample, data, listed, 20, eta=eta), strict=True):
        assert mean == pytest.approx(level.alpha * data.mu)
        assert std == pytest.approx(data.std(level), abs=1e-9)


def test_ddim_at_eta_1_is_ddpm():
    data, g = Gaussian(mu=0.8, s=0.6), torch.Generator().manual_seed(0)
    listed = levels(make_schedule("scaled_linear"), 30)
    start, *z = torch.randn(31, 4, 2, generator=g).double()
    pairs = zip(
        ddim.sample(data.predict, start, listed, z, eta=1.0), ddpm.sample(data.predict, start, listed, z), strict=True
    )
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs)


def test_two_steps_of_dpm_are_of_first_order():
    """With one inner level, the first and the last step are all there is: DDIM."""
    data, start = Gaussian(mu=0.8, s=0.6), torch.tensor([[0.3]]).double()
    listed = levels(make_schedule("scaled_linear"), 2)
    torch.testing.assert_close(
        list(dpm.sample_2m(data.predict, start, listed)), list(ddim.sample(data.predict, start, listed))
    )


ALL_N = {50: list(range(1, 51)), 1000: [1, 2, 3, 7, 20, 50, 250, 999, 1000]}


@pytest.mark.parametrize("T", [50, 1000])
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("schedule_kind", ["linear", "scaled_linear", "cosine"])
def test_finite_for_every_number_of_steps(schedule_kind, rescale, T):
    schedule = make_schedule(schedule_kind, T, rescale_betas_zero_snr=rescale)
    everyone = [Gaussian(mu=0.5, s=0.5, kind=kind) for kind in KINDS if not (rescale and kind == "epsilon")]

    def predict(x, level):
        """A row for every prediction kind."""
        rows = [data.predict(row, level) for data, row in zip(everyone, x.split(1), strict=True)]
        return Prediction(torch.cat([row.x0 for row in rows]), torch.cat([row.eps for row in rows]))

    x = torch.tensor([[1.0, -2.0]]).repeat(len(everyone), 1)  # float32, as in use
    plain = [("ddpm", {}), ("ddim", {}), ("dpm++2m", {})]
    more = [("ddpm", {"variance": "beta"}), ("ddpm", {"variance": "zero"}), ("ddim", {"eta": 1.0})]
    for n in ALL_N[T]:
        listed = levels(schedule, n)
        for name, option in plain + (more if n <= 20 else []):
            noise = [torch.ones_like(x)] * SOLVERS[name].draws(n, option.get("eta", 0.0))
            steps = torch.stack(list(SOLVERS[name].sample(predict, x, listed, noise, **option)))
            assert len(steps) == n
            assert steps.isfinite().all(), (name, option, n)
            assert steps.abs().max() < 100, (name, option, n)


@pytest.mark.parametrize(("offset", "end"), [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_finite_on_every_kind_of_list(spacing, offset, end):
    schedule, x = make_schedule("scaled_linear", 50), torch.tensor([[1.0]])
    for n in range(2, 51):
        listed = levels(schedule, n, spacing, offset, end)
        for solver in SOLVERS.values():
            noise = [torch.ones(1, 1)] * solver.draws(len(listed) - 1, 0.0)
            *_, last = solver.sample(Gaussian(0.5, 0.5).predict, x, listed, noise)
            assert last.isfinite().all()


def test_zero_terminal_snr_starts_from_the_predicted_picture():
    """At alpha_bar = 0 every solver's first step lands on alpha_s x_0 + (some noise of size sigma_s)."""
    schedule = make_schedule("scaled_linear", rescale_betas_zero_snr=True)
    data = Gaussian(mu=0.5, s=0.3, kind="v_prediction")
    listed = levels(schedule, 10)
    for solver in SOLVERS.values():
        mean, std = moments(solver.sample, data, listed, solver.draws(10, 0.0))[0]
        assert mean == pytest.approx(listed[1].alpha * 0.5)
        assert std == pytest.approx(listed[1].sigma)


def test_solvers_ask_for_x0_and_eps_once_a_level_and_yield_as_they_go():
    asked = []

    def predict(x, level):
        asked.append(level)
        return to_prediction(torch.zeros_like(x), x, level, "epsilon")

    listed = levels(make_schedule("scaled_linear"), 6)
    for name, solver in SOLVERS.items():
        asked.clear()
        steps = solver.sample(predict, torch.ones(1, 2), listed, [torch.zeros(1, 2)] * solver.draws(6, 0.0))
        for i, _ in enumerate(steps, start=1):
            assert asked == listed[:i], name
        assert len(asked) == 6


def test_the_table():
    assert list(SOLVERS) == ["ddpm", "ddim", "dpm++2m"]
    assert all(hasattr(diffusers, solver.diffusers) for solver in SOLVERS.values())
    assert [find_solver("ddpm").draws(n, 0.0) for n in (1, 20)] == [0, 19]
    assert [find_solver("ddim", eta).draws(20, eta) for eta in (0.0, 0.5)] == [0, 20]
    assert find_solver("dpm++2m").draws(20, 0.0) == 0


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"'dpmpp2m' is unknown: did you mean 'dpm\+\+2m'.*ddpm, ddim"):
        find_solver("dpmpp2m")
    with pytest.raises(ValueError, match=r"eta = 0.5 means nothing to solver 'dpm\+\+2m'"):
        find_solver("dpm++2m", 0.5)
    listed = levels(make_schedule("linear", 10), 3)
    for eta in (-0.1, 1.1):
        with pytest.raises(ValueError, match="eta"):
            next(ddim.sample(Gaussian(0, 1).predict, torch.zeros(1, 1), listed, [torch.zeros(1, 1)] * 3, eta))
