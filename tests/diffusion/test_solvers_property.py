"""Every solver on any list of levels, started from the true q(x_t) of the first: bounded, and right in the mean.

For Gaussian data a sampler with the perfect network is affine in its draws, so that its mean and spread are exact.
"""

import itertools
import math
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis import strategies as st

from t2i.diffusion.prediction import KINDS
from t2i.diffusion.schedule import SIGMAS, SPACINGS, levels, make_schedule
from t2i.diffusion.solvers import SOLVERS
from t2i.generator.scheduler_config import FOLDER_RULES

from .gaussian import Gaussian, moments

NAMES = list(SOLVERS)
STEPS = (1, 2, 3, 7, 20, 50, None)  # None: all T
SCHEDULES = ("linear", "scaled_linear", "cosine")
HEUNS = ("heun", "edm-heun", "plms")  # PLMS begins with a step of Heun's


class Case(NamedTuple):
    name: str
    n: int | None
    schedule: str
    kind: str
    spacing: str
    sigmas: str | None
    zero_snr: bool = False
    T: int = 100
    offset: int = 0
    end: int = 0
    eta: float = 0.0


def is_run(case: Case) -> bool:
    """Whether there is such a list of levels, and such a network."""
    grid = FOLDER_RULES[case.name].grid
    n = case.n or case.T
    if case.zero_snr and case.kind == "epsilon":
        return False
    if grid == "lcm" and (n > 50 or case.sigmas):
        return False
    alone = n == 1 and case.end == 1 and case.spacing != "trailing" and not (case.spacing == "leading" and case.offset)
    return not (alone and grid != "lcm")  # a step from t = 1 to t = 1, which is refused


def check(case: Case, mu: float, s: float) -> None:
    solver, data, n = SOLVERS[case.name], Gaussian(mu, s, case.kind), case.n or case.T
    schedule = make_schedule(case.schedule, case.T, rescale_betas_zero_snr=case.zero_snr)
    rules = FOLDER_RULES[case.name]
    end = case.end if rules.end is not None else 0
    sigmas = case.sigmas or rules.sigmas
    walk = levels(schedule, n, case.spacing, case.offset, end, rules.grid, sigmas)
    eta = case.eta if solver.takes_eta else 0.0
    options: dict[str, Any] = {"eta": eta} if solver.takes_eta else {}
    options |= {"at": schedule.at_ratio} if solver.takes_at else {}
    draws = solver.draws(len(walk) - 1, eta)
    path = moments(solver.sample, data, walk, draws, **options)
    assert len(path) == len(walk) - 1 <= n
    # The consistency map of LCM keeps a trace of x; Heun corrects by sigma / alpha, below 256, of a slope's change.
    slack = 2e-3 if case.name == "lcm" else 1e-9
    widest = 256 if case.name in HEUNS and n < 20 else 1.25
    for level, (mean, std) in zip(walk[1:], path, strict=True):
        assert math.isfinite(mean) and math.isfinite(std)
        assert abs(mean - level.alpha * mu) <= slack, level
        assert std <= widest * max(1, s), level
    if n >= 50 and s >= 0.1:  # first-order solvers lose spread, none of them all of it
        assert path[-1][1] >= (0.5 if n == 50 else 0.7) * data.std(walk[-1])
    single(case, data, walk, draws, options, widest)


def single(case: Case, data: Gaussian, walk: list, draws: int, options: dict[str, Any], widest: float) -> None:
    """In float32, as in use, on some draws: finite and near their mean."""
    g = torch.Generator().manual_seed(0)
    first, *z = torch.randn(draws + 1, 16, 1, generator=g).clamp(-3, 3)
    x = walk[0].alpha * data.mu + data.std(walk[0]) * first
    found = torch.stack(list(SOLVERS[case.name].sample(data.predict, x, walk, z, **options)))
    assert found.isfinite().all()
    assert found.abs().max() <= abs(data.mu) + 6 * widest * max(1, data.s), case


CASES = st.builds(
    Case,
    name=st.sampled_from(NAMES),
    n=st.sampled_from(STEPS),
    schedule=st.sampled_from(SCHEDULES),
    kind=st.sampled_from(KINDS),
    spacing=st.sampled_from(SPACINGS),
    sigmas=st.sampled_from([None, None, *SIGMAS]),
    zero_snr=st.booleans(),
    T=st.just(100),
    offset=st.sampled_from([0, 1]),
    end=st.sampled_from([0, 1]),
    eta=st.sampled_from([0.0, 0.5, 1.0]),
).filter(is_run)


@effort(max_examples=250, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(CASES, st.floats(-1, 1), st.floats(0, 2))
def test_bounded_and_right_in_the_mean(case, mu, s):
    check(case, mu, s)


@pytest.mark.parametrize("name", NAMES)
def test_few_steps_of_a_thousand(name):
    """At T = 1000 sigma / alpha reaches thousands before the list's second level."""
    for n, (schedule, spacing, sigmas, zero_snr) in itertools.product(
        (1, 3, 7), (("cosine", "trailing", "karras", False), ("scaled_linear", "linspace", None, True))
    ):
        case = Case(name, n, schedule, "v_prediction", spacing, sigmas, zero_snr, T=1000)
        if is_run(case):
            check(case, 0.8, 0.6)


@pytest.mark.slow
@pytest.mark.parametrize("n", STEPS)
@pytest.mark.parametrize("name", NAMES)
def test_the_whole_product(name, n):
    rest = itertools.product(SCHEDULES, KINDS, SPACINGS, (None, *SIGMAS), (False, True), (100, 1000))
    for case in filter(is_run, (Case(name, n, *combination) for combination in rest)):
        if case.n is not None or case.T == 100 or (case.spacing == "trailing" and case.sigmas is None):
            check(case, 0.5, 0.5)
