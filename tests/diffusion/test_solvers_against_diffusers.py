"""Every solver that stock diffusers has, step by step on the same noise, on the toy network."""

import itertools
from typing import Any

import diffusers
import pytest
import torch

from t2i.diffusion.names import SOLVER_NAMES
from t2i.diffusion.prediction import target
from t2i.diffusion.schedule import Schedule, levels
from t2i.diffusion.solvers import SOLVERS
from t2i.generator.scheduler_config import FOLDER_RULES

from .gaussian import Gaussian
from .test_against_diffusers import SD, in_float64, network, predict_as, schedule_of, start

N = 20
SHARED = ["euler", "euler-a", "heun", "lms", "plms", "dpm++2m", "dpm++2m-sde", "unipc", "lcm"]
MORE = {"plms": {"skip_prk_steps": True}, "dpm++2m-sde": {"algorithm_type": "sde-dpmsolver++"}}
LINEAR = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
ZERO_SNR = SD | {"rescale_betas_zero_snr": True}
KINDS = ("epsilon", "v_prediction", "sample")
REFUSED_BY_STOCK = {("euler-a", "sample"), ("plms", "sample")}


def stock_of(name, config, kind, spacing, offset=0, sigmas=None, **options) -> Any:
    given = {} if sigmas is None else {f"use_{sigmas}_sigmas": True}
    stock_class = getattr(diffusers, SOLVER_NAMES[name].diffusers or "")
    return stock_class(
        **config,
        **given,
        **MORE.get(name, {}),
        **options,
        prediction_type=kind,
        timestep_spacing=spacing,
        steps_offset=offset,
    )


def stock_walk(name, stock, schedule, n, seed=1):
    """x after each of stock's steps, in our scale; stock steps in float32."""
    if not schedule.zero_terminal_snr:  # stock has put another value there
        in_float64(stock, schedule)
    stock.set_timesteps(n)
    if hasattr(stock, "set_begin_index"):  # else it looks for its first t, and finds the second where t is twice there
        stock.set_begin_index(0)
    g = torch.Generator().manual_seed(seed)
    draws = {"generator": g} if SOLVERS[name].draws(n, 0) else {}
    scaled = FOLDER_RULES[name].scaled
    x = start() * stock.init_noise_sigma
    found = []
    for i, k in enumerate(stock.timesteps):
        x = stock.step(network(stock.scale_model_input(x, k).double(), float(k)), k, x, **draws).prev_sample.double()
        found.append(x / (1 + stock.sigmas[i + 1].item() ** 2) ** 0.5 if scaled else x)
    if name == "heun":  # two evaluations a step
        found = [*found[1:-1:2], found[-1]]
    return found[1:] if name == "plms" and n > 1 else found  # the first step, again


def our_walk(name, schedule, kind, n, spacing, offset=0, sigmas=None, seed=1, end=0):
    solver = SOLVERS[name]
    if schedule.zero_terminal_snr:  # as stock has it
        schedule = Schedule(torch.cat([schedule.alpha_bar[:-1], torch.tensor([2.0**-24]).double()]))
    walk = levels(schedule, n, spacing, offset, end, FOLDER_RULES[name].grid, sigmas)
    x = start() * (walk[0].sigma if FOLDER_RULES[name].scaled and spacing != "leading" else 1)
    g = torch.Generator().manual_seed(seed)
    draws = [torch.randn(x.shape, generator=g, dtype=torch.float64) for _ in range(solver.draws(len(walk) - 1, 0.0))]
    if name == "dpm++2m-sde":  # stock draws these in float32
        g = torch.Generator().manual_seed(seed)
        draws = [torch.randn(x.shape, generator=g).double() for _ in draws]
    return list(solver.sample(predict_as(kind), x, walk, draws))


def apart(ours, theirs):
    assert len(ours) == len(theirs)
    size = max(x.abs().max() for x in theirs)
    return max(((a - b).abs().max() / size).item() for a, b in zip(ours, theirs, strict=True))


def stock_is_wrong(name, config, spacing, sigmas, kind="epsilon"):
    """Where the closed form decides, and not stock; `test_where_stock_is_wrong` shows it."""
    from_noise = config is COSINE and spacing != "leading"  # alpha < 1/256 at T
    whole = config is COSINE and sigmas == "karras" and name.startswith("dpm")  # there t is rounded down
    return (from_noise and name in ("heun", "plms")) or whole or (name == "plms" and kind == "v_prediction")


def can(name, config, spacing, sigmas, kind):
    knows = FOLDER_RULES[name].takes_sigmas or sigmas is None
    lists = spacing == "leading" or not FOLDER_RULES[name].fixed_timesteps
    gap = name != "plms" or spacing != "linspace"  # there stock leaves its own list
    return knows and lists and gap and (name, kind) not in REFUSED_BY_STOCK


@pytest.mark.parametrize("sigmas", [None, "karras", "exponential"])
@pytest.mark.parametrize("config", [SD, LINEAR, COSINE], ids=["scaled_linear", "linear", "cosine"])
@pytest.mark.parametrize("name", SHARED)
def test_step_by_step(name, config, sigmas):
    schedule, compared = schedule_of(config), 0
    for (spacing, offset), kind in itertools.product([("leading", 1), ("linspace", 0), ("trailing", 0)], KINDS):
        if not can(name, config, spacing, sigmas, kind) or stock_is_wrong(name, config, spacing, sigmas, kind):
            continue
        options = {"set_alpha_to_one": True} if name == "plms" else {}
        stock = stock_of(name, config, kind, spacing, offset, sigmas, **options)
        theirs = stock_walk(name, stock, schedule, N)
        ours = our_walk(name, schedule, kind, N, spacing, offset, sigmas)
        # where alpha is 6e-3 or 5e-5, stock's float32 leaves few digits, how few depends on the processor
        assert apart(ours, theirs) <= (1e-4 if config is SD else 5e-4), (spacing, kind)
        compared += 1
    least = {"plms": 1 if config is COSINE else 2, "lcm": 3, "heun": 3}.get(name, 6)
    skipped = (sigmas is not None and not FOLDER_RULES[name].takes_sigmas) or stock_is_wrong(
        name, config, "leading", sigmas
    )
    assert compared >= (0 if skipped else least)


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
@pytest.mark.parametrize("name", ["euler", "euler-a", "dpm++2m", "dpm++2m-sde", "unipc"])
def test_zero_terminal_snr_where_stock_has_it(name, kind):
    if (name, kind) in REFUSED_BY_STOCK:
        return
    schedule = schedule_of(ZERO_SNR)
    for sigmas in (None, "karras") if FOLDER_RULES[name].takes_sigmas else (None,):
        theirs = stock_walk(name, stock_of(name, ZERO_SNR, kind, "trailing", sigmas=sigmas), schedule, N)
        ours = our_walk(name, schedule, kind, N, "trailing", sigmas=sigmas)
        # stock's 1000 products of float32
        assert apart(ours, theirs) <= 1e-3


def test_stable_diffusion_s_plms_ends_at_1():
    schedule = schedule_of(SD)
    theirs = stock_walk("plms", stock_of("plms", SD, "epsilon", "leading", 1), schedule, 50)
    assert apart(our_walk("plms", schedule, "epsilon", 50, "leading", 1, end=1), theirs) <= 1e-5


@pytest.mark.parametrize("name", ["euler", "heun", "lms", "plms", "dpm++2m", "unipc"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_steps(name, n):
    schedule = schedule_of(SD)
    stock = stock_of(name, SD, "epsilon", "leading", 1, **({"set_alpha_to_one": True} if name == "plms" else {}))
    theirs = stock_walk(name, stock, schedule, n)
    assert apart(our_walk(name, schedule, "epsilon", n, "leading", 1), theirs) <= 1e-5


def error(name, walk, data, x):
    """How far the last x is from the probability flow's."""
    *_, last = SOLVERS[name].sample(data.predict, x, walk, [])
    return (last - data.ode(x, walk[0], walk[-1])).abs().max().item()


def stock_error(name, stock, schedule, data, n, x):
    in_float64(stock, schedule)
    stock.set_timesteps(n)
    first = schedule.level(stock.timesteps[0].item() + 1)
    y = x / first.alpha if FOLDER_RULES[name].scaled else x
    for k in stock.timesteps:
        z, level = stock.scale_model_input(y, k), schedule.level(k.item() + 1)
        output = target(data.x0(z, level), data.eps(z, level), level.alpha, level.sigma, data.kind)
        y = stock.step(output, k, y).prev_sample.double()
    return (y - data.ode(x, first, schedule.level(0))).abs().max().item()


def test_where_stock_is_wrong():
    """Heun from pure noise; PLMS on combined v, and on a list that its steps leave: the closed form says so."""
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    for name, config, kind, spacing, n in [
        ("heun", COSINE, "v_prediction", "trailing", 20),
        ("plms", SD, "v_prediction", "leading", 50),
        ("plms", SD, "epsilon", "linspace", 20),
    ]:
        schedule, data = schedule_of(config), Gaussian(0.3, 0.5, kind)
        options = {"set_alpha_to_one": True} if name == "plms" else {}
        theirs = stock_error(name, stock_of(name, config, kind, spacing, **options), schedule, data, n, x)
        ours = error(name, levels(schedule, n, spacing, 0, 0, FOLDER_RULES[name].grid), data, x)
        assert theirs > 3 * ours, name
