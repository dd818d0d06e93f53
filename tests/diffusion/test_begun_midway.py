"""Solvers that begin in the middle of their list, as from a picture: on the flow, also where stock leaves it."""

from typing import Any

import diffusers
import pytest
import torch

from t2i.diffusion.names import SOLVER_NAMES
from t2i.diffusion.prediction import target
from t2i.diffusion.schedule import Schedule, levels, make_schedule
from t2i.diffusion.solvers import SOLVERS
from t2i.generator.scheduler_config import FOLDER_RULES

from .gaussian import Gaussian, moments
from .test_against_diffusers import SD, in_float64

N, SKIPPED = 40, 16


def walk_of(schedule: Schedule, name: str):
    return levels(schedule, N, "leading", 0, 0, FOLDER_RULES[name].grid, FOLDER_RULES[name].sigmas)[SKIPPED:]


@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "lcm"])
def test_the_marginals_are_kept_from_the_level_on_which_it_begins(name):
    data, solver = Gaussian(0.6, 0.7), SOLVERS[name]
    walk = walk_of(make_schedule("scaled_linear"), name)
    path = moments(solver.sample, data, walk, solver.draws(len(walk) - 1, 0.0))
    for level, (mean, std) in zip(walk[1:], path, strict=True):
        assert mean == pytest.approx(level.alpha * data.mu, abs=1e-9)
        assert std == pytest.approx(data.std(level), rel=0.1)


@pytest.mark.parametrize("name", ["lms", "plms"])
def test_where_stock_loses_the_thread(name):
    """Stock's LMS takes weights of the fourth order for its first derivative, its PLMS lags one step behind."""
    schedule, data = make_schedule("scaled_linear"), Gaussian(0.6, 0.7)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    walk = walk_of(schedule, name)
    *_, ours = SOLVERS[name].sample(data.predict, x, walk, [])
    error = (ours - data.ode(x, walk[0], walk[-1])).abs().max()
    more: dict[str, Any] = {"skip_prk_steps": True, "set_alpha_to_one": True} if name == "plms" else {}
    stock = getattr(diffusers, SOLVER_NAMES[name].diffusers or "")(**SD, timestep_spacing="leading", **more)
    in_float64(stock, schedule)
    stock.set_timesteps(N)
    if name == "lms":
        stock.set_begin_index(SKIPPED)
    first = schedule.level(stock.timesteps[SKIPPED].item() + 1)
    y = x / first.alpha if FOLDER_RULES[name].scaled else x
    for k in stock.timesteps[SKIPPED:]:
        z, level = stock.scale_model_input(y, k), schedule.level(k.item() + 1)
        output = target(data.x0(z, level), data.eps(z, level), level.alpha, level.sigma, data.kind)
        y = stock.step(output, k, y).prev_sample.double()
    assert (y - data.ode(x, first, walk[-1])).abs().max() > 3 * error
