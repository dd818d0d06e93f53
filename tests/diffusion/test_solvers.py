"""Solvers against the closed form for Gaussian data, and their edges."""

import inspect
import math
from itertools import pairwise

import diffusers
import pytest
import torch

from t2i.diffusion import ddim, ddpm, dpm, euler, heun, lcm, multistep, unipc
from t2i.diffusion.names import SOLVER_NAMES, parse_solver
from t2i.diffusion.prediction import KINDS, Prediction, to_prediction
from t2i.diffusion.schedule import SPACINGS, Level, levels, make_schedule
from t2i.diffusion.solvers import SOLVERS, find_solver
from t2i.generator.scheduler_config import FOLDER_RULES

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


@pytest.mark.parametrize(
    ("sampler", "order"),
    [
        (ddim.sample, 1),
        (euler.sample, 1),
        (heun.sample, 2),
        (heun.sample_edm, 2),
        (multistep.sample_plms, 2),
        (multistep.sample_lms, 2),
        (dpm.sample_2m, 2),
        (unipc.sample, 2),
    ],
)
def test_order_of_convergence(sampler, order):
    data, start = Gaussian(mu=0.6, s=0.5), torch.tensor([[1.7]]).double()
    errors = []
    for n in (40, 80, 160):
        listed = smooth_levels(n)
        *_, x = sampler(data.predict, start, listed)
        errors.append(abs((x - data.ode(start, listed[0], listed[-1])).item()))
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) >= order - 0.15


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


@pytest.mark.parametrize(("name", "tolerance"), [("euler-a", 0.02), ("dpm++2m-sde", 0.002), ("dpm++2s", 0.002)])
def test_stochastic_solvers_keep_the_mean_and_reach_the_spread(name, tolerance):
    data, solver = Gaussian(mu=0.8, s=0.6), SOLVERS[name]
    listed = levels(make_schedule("scaled_linear"), 200, "linspace", grid=FOLDER_RULES[name].grid, sigmas="karras")
    path = moments(solver.sample, data, listed, solver.draws(200, 0.0))
    for level, (mean, std) in zip(listed[1:], path, strict=True):
        assert mean == pytest.approx(level.alpha * data.mu, rel=2e-3)
        assert std == pytest.approx(data.std(level), rel=tolerance) or level.t <= 1


@pytest.mark.parametrize("name", ["euler-a", "dpm++2m-sde", "dpm++2s", "lcm"])
def test_stochastic_solvers_are_exact_for_a_point(name):
    data, solver = Gaussian(mu=0.8, s=0.0), SOLVERS[name]
    listed = levels(make_schedule("scaled_linear"), 7, grid=FOLDER_RULES[name].grid)
    for level, (mean, std) in zip(listed[1:], moments(solver.sample, data, listed, solver.draws(7, 0.0)), strict=True):
        assert mean == pytest.approx(level.alpha * data.mu, rel=1e-4)
        assert std == pytest.approx(data.std(level), abs=1e-4)


def test_churn_keeps_the_marginals():
    """Algorithm 2 of EDM: raised by noise and brought down again, x stays on q(x_t)."""
    data, schedule = Gaussian(mu=0.8, s=0.6), make_schedule("scaled_linear")
    listed = levels(schedule, 400, grid="table", sigmas="karras")
    path = moments(heun.sample_edm, data, listed, 400, eta=1.0, at=schedule.at_ratio)
    plain = moments(heun.sample_edm, data, listed, 0)
    assert path[200][1] != plain[200][1]
    for level, (mean, std) in zip(listed[1:], path, strict=True):
        assert mean == pytest.approx(level.alpha * data.mu, rel=2e-2)
        assert std == pytest.approx(data.std(level), rel=2e-2)


OLD = ("ddpm", "ddim", "dpm++2m")
ALL_N = {50: list(range(1, 51)), 1000: [1, 2, 3, 7, 20, 50, 250, 999, 1000]}
SOME_N = {50: [1, 2, 3, 7, 50], 1000: [3, 20]}
# Heun corrects by half of sigma / alpha times a difference of slopes, below 256
BOUND = {"heun": 300, "edm-heun": 300}


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
    plain = [(name, {}) for name in OLD]
    more = [("ddpm", {"variance": "beta"}), ("ddpm", {"variance": "zero"}), ("ddim", {"eta": 1.0})]
    for n in ALL_N[T]:
        listed = levels(schedule, n)
        for name, option in plain + (more if n <= 20 else []):
            noise = [torch.ones_like(x)] * SOLVERS[name].draws(n, option.get("eta", 0.0))
            steps = torch.stack(list(SOLVERS[name].sample(predict, x, listed, noise, **option)))
            assert len(steps) == n
            assert steps.isfinite().all(), (name, option, n)
            assert steps.abs().max() < 100, (name, option, n)
    for n in SOME_N[T]:
        for name, solver in SOLVERS.items():
            if name in OLD:
                continue
            listed = levels(schedule, n, grid=FOLDER_RULES[name].grid, sigmas=FOLDER_RULES[name].sigmas)
            noise = [torch.ones_like(x)] * solver.draws(n, 0.0)
            steps = torch.stack(list(solver.sample(predict, x, listed, noise)))
            assert len(steps) == n
            assert steps.isfinite().all(), (name, n)
            assert steps.abs().max() < BOUND.get(name, 100), (name, n)


@pytest.mark.parametrize("sigmas", [None, "karras", "exponential"])
@pytest.mark.parametrize("kind", ["scaled_linear", "linear", "cosine"])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_finite_on_every_spacing_and_curve(spacing, kind, sigmas):
    x = torch.tensor([[1.0, -2.0]])
    for T, n in [(100, 1), (100, 2), (100, 3), (100, 7), (100, 50), (100, 100), (1000, 20)]:
        schedule = make_schedule(kind, T)
        for name, solver in SOLVERS.items():
            if name == "lcm" and (n > 50 or sigmas):
                continue
            rules = FOLDER_RULES[name]
            listed = levels(schedule, n, spacing, 1, 0, rules.grid, sigmas or rules.sigmas)
            assert len(listed) == n + 1
            assert all(a.ratio > b.ratio for a, b in pairwise(listed))
            start = x * listed[0].sigma if rules.scaled and spacing != "leading" else x
            steps = torch.stack(
                list(
                    solver.sample(
                        Gaussian(0.5, 0.5).predict, start, listed, [torch.ones_like(x)] * solver.draws(n, 0.0)
                    )
                )
            )
            assert steps.isfinite().all(), (name, n)
            assert steps.abs().max() < BOUND.get(name, 100), (name, T, n)


@pytest.mark.parametrize(("offset", "end"), [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_finite_on_every_kind_of_list(spacing, offset, end):
    schedule, x = make_schedule("scaled_linear", 50), torch.tensor([[1.0]])
    for n in range(2, 51):
        listed = levels(schedule, n, spacing, offset, end)
        for solver in (SOLVERS[name] for name in (OLD if n % 7 else SOLVERS)):
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


def test_solvers_ask_as_often_as_the_table_says_and_yield_as_they_go():
    asked = []

    def predict(x, level):
        asked.append(level)
        return to_prediction(torch.zeros_like(x), x, level, "epsilon")

    listed = levels(make_schedule("scaled_linear"), 6)
    for name, solver in SOLVERS.items():
        asked.clear()
        steps = solver.sample(predict, torch.ones(1, 2), listed, [torch.zeros(1, 2)] * solver.draws(6, 0.0))
        for i, _ in enumerate(steps, start=1):
            if solver.evaluations(6) == 6:
                assert asked == listed[:i], name
            assert set(asked) <= set(listed[: i + 1]), name
        assert len(asked) == solver.evaluations(6), name


def test_the_table():
    assert list(SOLVERS) == [
        *("ddpm", "ddim", "euler", "euler-a", "heun", "edm-heun", "lms", "plms"),
        *("dpm++2m", "dpm++2m-sde", "dpm++2s", "unipc", "lcm"),
    ]
    assert list(SOLVERS) == list(SOLVER_NAMES) == list(FOLDER_RULES)
    for name, rules in FOLDER_RULES.items():
        if (stock := SOLVER_NAMES[name].diffusers) is not None:
            keys = inspect.signature(getattr(diffusers, stock)).parameters
            assert rules.spacing == keys["timestep_spacing"].default
            assert rules.takes_sigmas == ("use_karras_sigmas" in keys)
            if "set_alpha_to_one" in keys and rules.grid != "lcm":
                assert rules.end == int(not keys["set_alpha_to_one"].default)
            else:
                assert rules.end is None
    assert [find_solver("ddpm").draws(n, 0.0) for n in (1, 20)] == [0, 19]
    assert [find_solver("ddim", eta).draws(20, eta) for eta in (0.0, 0.5)] == [0, 20]
    for name, draws in (
        ("dpm++2m", 0),
        ("euler", 0),
        ("euler-a", 20),
        ("dpm++2m-sde", 20),
        ("dpm++2s", 19),
        ("lcm", 19),
    ):
        assert find_solver(name).draws(20, 0.0) == draws


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("DPM++ 2M Karras", ("dpm++2m", "karras")),
        ("dpm++ 2m  sde exponential", ("dpm++2m-sde", "exponential")),
        ("Euler a", ("euler-a", None)),
        ("DPM++ 2S a Karras", ("dpm++2s", "karras")),
        ("PLMS", ("plms", None)),
        ("euler", ("euler", None)),
        ("EulerAncestralDiscreteScheduler", ("euler-a", None)),
        ("DPMSolverMultistepScheduler", ("dpm++2m", None)),
        ("pndmscheduler", ("plms", None)),
        ("dpmpp_2m_k", ("dpm++2m", "karras")),
        ("k_dpmpp_2_a", ("dpm++2s", None)),
        ("uni_pc", ("unipc", None)),
    ],
)
def test_other_programs_names(name, found):
    assert parse_solver(name) == found


def test_every_solver_is_found_by_each_of_its_names():
    for key, names in SOLVER_NAMES.items():
        for name in (key, names.label.upper(), *names.others):
            assert parse_solver(name) == (key, None)
    every = [name for names in SOLVER_NAMES.values() for name in (names.label, *names.others)]
    assert len(every) == len(set(every))


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"'Euler b': unknown; did you mean 'euler-a'.*heun \(Heun\)"):
        parse_solver("Euler b")
    with pytest.raises(ValueError, match=r"'qqq': unknown; choose one of ddpm"):
        parse_solver("qqq")
    with pytest.raises(ValueError, match="timesteps of its own"):
        parse_solver("LCM Karras")


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"'dpmpp2m': unknown; did you mean 'dpm\+\+2m'.*ddpm, ddim"):
        find_solver("dpmpp2m")
    with pytest.raises(ValueError, match=r"eta = 0.5: solver 'dpm\+\+2m' has no use for it"):
        find_solver("dpm++2m", 0.5)
    listed = levels(make_schedule("linear", 10), 3)
    for eta in (-0.1, 1.1):
        with pytest.raises(ValueError, match="eta"):
            next(ddim.sample(Gaussian(0, 1).predict, torch.zeros(1, 1), listed, [torch.zeros(1, 1)] * 3, eta))


def test_lcm_mixes_x_and_its_prediction_by_the_published_scalings():
    """Luo et al. 2023, section 4.1: visible at small t only, where c_skip is not 0."""
    schedule = make_schedule("scaled_linear", 1000, 0.00085, 0.012, False, None)
    t = Level(
        1.05, *(f(torch.tensor(float(schedule.alpha_bar[1]))).item() for f in (torch.sqrt, lambda a: (1 - a).sqrt()))
    )
    x = torch.randn(2, 3)
    [out] = lcm.sample(lambda x, level: Prediction(torch.full_like(x, 0.3), x), x, [t, Level(0.0, 1.0, 0.0)], [])
    scaled = 10 * 0.05
    expected = 0.25 / (scaled**2 + 0.25) * x + scaled / (scaled**2 + 0.25) ** 0.5 * 0.3
    torch.testing.assert_close(out, expected)
