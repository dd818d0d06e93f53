"""Step by step against stock diffusers, whose timestep k = 0..T-1 is our t = k + 1."""

from typing import Any

import diffusers
import pytest
import torch

from t2i.diffusion import ddim, ddpm, dpm
from t2i.diffusion.prediction import target, to_prediction
from t2i.diffusion.schedule import Schedule, levels, make_schedule

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def network(x, k):
    """Nonlinear in x and t, and of the size of a real network's output."""
    return torch.cos(2 * x + k / 200)


def predict_as(kind):
    return lambda x, level: to_prediction(network(x, level.t - 1), x, level, kind)


def start():
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def in_float64(stock, schedule):
    """Stock keeps its table in float32; with ours in its place, only the algorithms are compared."""
    stock.alphas_cumprod = schedule.alpha_bar[1:]
    if hasattr(stock, "final_alpha_cumprod"):
        stock.final_alpha_cumprod = schedule.alpha_bar[0 if stock.config.set_alpha_to_one else 1]
    return stock


def walk(stock, n, **options):
    """x after each of stock's steps."""
    stock.set_timesteps(n)
    x = start()
    for k in stock.timesteps:
        x = stock.step(network(x, k.item()), k, x, **options).prev_sample
        yield x


SCHEDULES = [
    SD,
    SD | {"rescale_betas_zero_snr": True},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"beta_schedule": "linear"},
]


def schedule_of(config):
    return make_schedule(
        config["beta_schedule"],
        1000,
        config.get("beta_start", 1e-4),
        config.get("beta_end", 0.02),
        config.get("rescale_betas_zero_snr", False),
    )


KIND_AND_SCHEDULE = [
    (kind, config)
    for kind in ("epsilon", "v_prediction", "sample")
    for config in SCHEDULES
    if kind != "epsilon" or "rescale_betas_zero_snr" not in config
]


@pytest.mark.parametrize(("kind", "config"), KIND_AND_SCHEDULE)
@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
@pytest.mark.parametrize(
    ("spacing", "offset", "n"),
    [
        ("leading", 0, 7),
        ("leading", 1, 30),
        ("linspace", 0, 7),
        ("trailing", 0, 7),
        ("trailing", 1, 30),
        ("leading", 0, 1000),
    ],
)
def test_ddpm(kind, config, variance, spacing, offset, n):
    schedule = schedule_of(config)
    stock: Any = diffusers.DDPMScheduler(
        **config,
        prediction_type=kind,
        clip_sample=False,
        timestep_spacing=spacing,
        steps_offset=offset,
        variance_type="fixed_large" if variance == "beta" else "fixed_small",
    )
    in_float64(stock, schedule)
    g = torch.Generator().manual_seed(1)
    z = [torch.randn(2, 3, 4, generator=g, dtype=torch.float64) for _ in range(n - 1)]
    theirs = list(walk(stock, n, generator=torch.Generator().manual_seed(1)))
    ours = list(ddpm.sample(predict_as(kind), start(), levels(schedule, n, spacing, offset), z, variance))
    assert len(ours) == len(theirs)
    # Unless it ends in k = 0, stock adds noise in its last step: of variance 1e-20, or, with fixed_large, beta.
    last = n - 1 if variance == "beta" and stock.timesteps[-1] > 0 else n
    for a, b in zip(ours[:last], theirs[:last], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("kind", "config"), KIND_AND_SCHEDULE)
@pytest.mark.parametrize("to_one", [True, False])
@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize(
    ("spacing", "offset", "n"),
    [
        ("leading", 0, 3),
        ("leading", 1, 7),
        ("leading", 1, 30),
        ("leading", 0, 250),
        ("trailing", 0, 8),
        ("trailing", 1, 50),
    ],
)
def test_ddim(kind, config, eta, to_one, spacing, offset, n):
    schedule = schedule_of(config)
    stock = diffusers.DDIMScheduler(
        **config,
        prediction_type=kind,
        clip_sample=False,
        set_alpha_to_one=to_one,
        timestep_spacing=spacing,
        steps_offset=offset,
    )
    in_float64(stock, schedule)
    g = torch.Generator().manual_seed(1)
    z = [torch.randn(2, 3, 4, generator=g, dtype=torch.float64) for _ in range(n)] if eta else []
    theirs = list(walk(stock, n, eta=eta, generator=torch.Generator().manual_seed(1)))
    ours = list(ddim.sample(predict_as(kind), start(), levels(schedule, n, spacing, offset, int(not to_one)), z, eta))
    if len(ours) < n:  # stock's last step goes from k = 0 to k = 0
        assert (spacing, offset, to_one) == ("leading", 0, False)
        ours.append(ours[-1])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("kind", "config"), KIND_AND_SCHEDULE)
@pytest.mark.parametrize("n", [1, 2, 3, 7, 20, 50])
def test_dpm_made_from_a_trailing_ddim(kind, config, n):
    """`from_config` of our exported scheduler keeps the list; stock computes with float32 levels."""
    parent = diffusers.DDIMScheduler(**config, prediction_type=kind, clip_sample=False, timestep_spacing="trailing")
    stock = diffusers.DPMSolverMultistepScheduler.from_config(parent.config)
    theirs = list(walk(stock, n))
    schedule = schedule_of(config)
    if schedule.zero_terminal_snr:  # stock's 2M replaces this 0 by 2^-24
        schedule = Schedule(torch.cat([schedule.alpha_bar[:-1], torch.tensor([2.0**-24]).double()]))
    ours = list(dpm.sample_2m(predict_as(kind), start(), levels(schedule, n)))
    # where alpha is 5e-5 or 2e-4, float32 leaves eps -> x_0 three digits
    tolerance = 2e-4 if config["beta_schedule"] != "squaredcos_cap_v2" else 5e-3
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b.double(), rtol=tolerance, atol=tolerance)


def test_untouched_stock_in_float32():
    """No table of ours in stock: Stable Diffusion's settings as they are."""
    stock: Any = diffusers.DDIMScheduler(**SD, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    schedule = schedule_of(SD)
    stock.set_timesteps(50)
    x = start().float()
    ours = ddim.sample(predict_as("epsilon"), x, levels(schedule, 50, "leading", 1, 1))
    for k, y in zip(stock.timesteps, ours, strict=True):
        x = stock.step(network(x, k.item()), k, x).prev_sample
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


def test_q_sample_and_velocity():
    stock: Any = diffusers.DDPMScheduler(**SD)
    schedule = schedule_of(SD)
    x0, eps = start(), start().flip(0)
    k = torch.tensor([0, 700])
    alpha, sigma = schedule.at(k + 1, x0)
    torch.testing.assert_close(ddpm.q_sample(x0, alpha, sigma, eps), stock.add_noise(x0, eps, k), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        target(x0, eps, alpha, sigma, "v_prediction"), stock.get_velocity(x0, eps, k), rtol=1e-5, atol=1e-5
    )
