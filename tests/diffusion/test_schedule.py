import math
from itertools import pairwise

import diffusers
import numpy as np
import pytest
import torch

from t2i.diffusion.schedule import SCHEDULES, SPACINGS, Schedule, levels, make_schedule


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_tables_are_those_of_diffusers(kind, rescale):
    stock = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule=kind, rescale_betas_zero_snr=rescale
    )
    ours = make_schedule(kind, 1000, 0.00085, 0.012, rescale)
    assert ours.alpha_bar.dtype == torch.float64
    assert ours.alpha_bar[0] == 1
    assert ours.T == 1000
    # stock multiplies 1000 float32 factors
    torch.testing.assert_close(ours.alpha_bar[1:].float(), stock.alphas_cumprod, rtol=2e-4, atol=1e-9)
    t = torch.arange(1, 1001)
    torch.testing.assert_close(ours.beta(t).float(), stock.betas, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(ours.alpha(t) ** 2 + ours.sigma(t) ** 2, torch.ones(1000).double())
    assert ours.zero_terminal_snr is rescale
    assert (ours.alpha_bar[-1] == 0) == rescale


def test_first_and_last_beta_are_the_ones_asked_for():
    for kind in ("linear", "scaled_linear"):
        schedule = make_schedule(kind, 1000, 1e-4, 0.02)
        torch.testing.assert_close(schedule.beta(torch.tensor([1, 1000])), torch.tensor([1e-4, 0.02]).double())
    assert make_schedule("scaled_linear", 3, 0.01, 0.09).beta(2).item() == pytest.approx(0.04)
    assert make_schedule("linear", 3, 0.01, 0.09).beta(2).item() == pytest.approx(0.05)


def test_cosine_is_nichol_and_dhariwal_s_and_has_two_names():
    cosine = make_schedule("cosine", 1000)
    f = [math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in (0, 250, 500, 999)]
    for t, value in zip((250, 500, 999), f[1:], strict=True):
        assert cosine.alpha_bar[t].item() == pytest.approx(value / f[0], rel=1e-9)
    assert cosine.beta(1000).item() == pytest.approx(0.999)
    torch.testing.assert_close(make_schedule("squaredcos_cap_v2", 1000).alpha_bar, cosine.alpha_bar, rtol=0, atol=0)


def test_rescaling_keeps_the_first_level():
    plain, rescaled = make_schedule("scaled_linear"), make_schedule("scaled_linear", rescale_betas_zero_snr=True)
    assert rescaled.alpha_bar[1].item() == pytest.approx(plain.alpha_bar[1].item(), rel=1e-12)
    assert rescaled.level(1000) == (1000.0, 0.0, 1.0)


def test_at_gathers_each_sample_s_level_in_the_shape_and_dtype_of_x():
    schedule = make_schedule("linear", 10, 0.1, 0.2)
    alpha, sigma = schedule.at(torch.tensor([1, 10]), torch.zeros(2, 3, 4, 4))
    assert alpha.shape == sigma.shape == (2, 1, 1, 1)
    assert alpha.dtype == sigma.dtype == torch.float32
    assert alpha[0].item() == pytest.approx(math.sqrt(0.9))
    assert sigma[0].item() == pytest.approx(math.sqrt(0.1))
    assert alpha[1].item() == pytest.approx(schedule.level(10).alpha)


def test_fractional_levels_are_diffusers_interpolation():
    stock = diffusers.EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    stock.set_timesteps(7)  # linspace over 0..999: every inner timestep is fractional
    schedule = make_schedule("scaled_linear")
    for k, sigma in zip(stock.timesteps.tolist(), stock.sigmas.tolist(), strict=False):
        level = schedule.level(k + 1)
        assert level.sigma / level.alpha == pytest.approx(sigma, rel=1e-4)
        assert level.alpha**2 + level.sigma**2 == pytest.approx(1)
    assert schedule.level(0) == (0.0, 1.0, 0.0)
    first = schedule.level(1)
    assert schedule.level(0.5).sigma / schedule.level(0.5).alpha == pytest.approx(first.sigma / first.alpha / 2)


def test_a_level_outside_the_schedule_is_an_error():
    for t in (-0.5, 10.5):
        with pytest.raises(ValueError, match="T = 10"):
            make_schedule("linear", 10).level(t)


@pytest.mark.parametrize("T", [50, 1000])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_timesteps_are_those_of_diffusers(spacing, offset, T):
    schedule = make_schedule("scaled_linear", T)
    stock = diffusers.DDIMScheduler(num_train_timesteps=T, timestep_spacing=spacing, steps_offset=offset)
    compared = 0
    for n in range(1, T + 1) if T == 50 else [1, 2, 3, 7, 20, 48, 50, 121, 250, 333, 999, 1000]:
        ours = [level.t for level in levels(schedule, n, spacing, offset)]
        stock.set_timesteps(n)
        theirs = [k + 1 for k in stock.timesteps.tolist()]
        if len(theirs) == n and max(theirs) <= T:  # np.arange sometimes yields one too many; leading may pass T
            assert ours == [*theirs, 0]
            compared += 1
    assert compared >= (48 if T == 50 else 10)


@pytest.mark.parametrize("T", [1, 50, 1000])
@pytest.mark.parametrize("end", [0, 1])
@pytest.mark.parametrize("offset", [0, 1, 5000])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_list_falls_strictly_from_within_the_schedule_to_its_end(spacing, offset, end, T):
    schedule = make_schedule("linear", T)
    for n in range(1, T + 1) if T <= 50 else [1, 2, 3, 7, 20, 29, 61, 250, 501, 999, 1000]:
        if end == 1 and n == 1 and (T == 1 or spacing == "linspace" or (spacing == "leading" and offset == 0)):
            with pytest.raises(ValueError, match="take more steps"):  # from t = 1 to t = 1
                levels(schedule, n, spacing, offset, end)
            continue
        ts = [level.t for level in levels(schedule, n, spacing, offset, end)]
        assert all(a > b for a, b in pairwise(ts))
        assert ts[0] <= T
        assert ts[-1] == end
        assert len(ts) == n + 1 or (end == 1 and len(ts) == n)


def test_levels_are_python_floats_from_the_table():
    schedule = make_schedule("scaled_linear")
    listed = levels(schedule, 4)
    assert [level.t for level in listed] == [1000, 750, 500, 250, 0]
    assert all(type(value) is float for level in listed for value in level)
    np.testing.assert_allclose(
        [level.alpha for level in listed[:-1]], schedule.alpha(torch.tensor([1000, 750, 500, 250]))
    )
    assert listed[-1] == (0.0, 1.0, 0.0)


def test_stable_diffusion_s_list():
    ts = [level.t for level in levels(make_schedule("scaled_linear"), 50, "leading", offset=1, end=1)]
    assert ts[:3] == [982, 962, 942]
    assert ts[-3:] == [22, 2, 1]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s: levels(s, 0), ["num_inference_steps = 0", "10"]),
        (lambda s: levels(s, 11), ["num_inference_steps = 11", "10"]),
        (lambda s: levels(s, 5, "karras"), ["'karras'", *SPACINGS]),
        (lambda s: levels(s, 5, offset=-1), ["steps_offset = -1"]),
        (lambda s: levels(s, 5, end=2), ["end = 2"]),
        (lambda s: make_schedule("sigmoid"), ["'sigmoid'", *SCHEDULES]),
        (lambda s: make_schedule("linear", 0), ["num_train_timesteps = 0"]),
        (lambda s: make_schedule("linear", 1, rescale_betas_zero_snr=True), ["at least 2"]),
        (lambda s: make_schedule("linear", 10, 0.5, 0.1), ["beta_start = 0.5"]),
        (lambda s: make_schedule("linear", 10, 0.5, 1.0), ["beta_end = 1.0"]),
        (lambda s: make_schedule("linear", 1000, 0.9, 0.99), ["beta_start = 0.9", "float64"]),
    ],
)
def test_mistakes_are_named(call, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call(make_schedule("linear", 10))
    assert all(word in str(error.value) for word in words)


def test_a_table_that_is_no_schedule_is_refused():
    for table in ([0.9, 0.5], [1.0, 0.5, 0.5], [1.0, -0.1]):
        with pytest.raises(AssertionError):
            Schedule(torch.tensor(table, dtype=torch.float64))


@pytest.mark.parametrize(("kind", "rescale"), [("cosine", False), ("cosine", True), ("scaled_linear", True)])
def test_edm_begins_at_its_largest_sigma(kind, rescale):
    schedule = make_schedule(kind, rescale_betas_zero_snr=rescale)
    listed = levels(schedule, 10, grid="table", sigmas="karras")
    assert listed[0].ratio == pytest.approx(80)
    assert levels(make_schedule("scaled_linear"), 10, grid="table", sigmas="karras")[0].t == 1000  # is below 80
