import json
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    UNet2DConditionModel,
)

from t2i.conditioning import Conditioning
from t2i.diffusion.schedule import make_schedule
from t2i.diffusion.solvers import SOLVERS
from t2i.generator.base import Generator
from t2i.generator.latent_diffusion import LatentDiffusion
from t2i.generator.scheduler_config import SchedulerConfig

from .test_unet import apart
from .tiny import conditioning, latents, small_unet

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def stock_loop(unet, scheduler, x, cond, null, steps, guidance, **options):
    """The denoising loop of the stock pipeline."""
    scheduler.set_timesteps(steps)
    tokens = torch.cat([null.tokens.expand(len(x), -1, -1), cond.tokens])
    for t in scheduler.timesteps:
        with torch.no_grad():
            without, with_text = unet(torch.cat([x, x]), t, tokens).sample.chunk(2)
        x = scheduler.step(without + guidance * (with_text - without), t, x, **options).prev_sample
    return x


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unet")
    ours = small_unet()
    ours.save(folder)
    return ours, UNet2DConditionModel.from_pretrained(folder)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("set_alpha_to_one", [False, True])
def test_ddim_is_the_stock_loop(pair, prediction, set_alpha_to_one):
    ours, stock = pair
    keys = SD | {"prediction_type": prediction, "steps_offset": 1, "set_alpha_to_one": set_alpha_to_one}
    generator = LatentDiffusion.from_config(ours, SchedulerConfig(**keys))
    x, cond, null = latents(2, 4, 8, 8), conditioning(2), conditioning(1, seed=9)
    expected = stock_loop(stock, DDIMScheduler(**keys, clip_sample=False), x, cond, null, 10, 3.0)
    assert apart(generator.sample(x, cond, null, solver="ddim", steps=10, guidance=3.0), expected) <= 1e-4


def test_ddim_on_a_schedule_that_ends_in_pure_noise_is_the_stock_loop(pair):
    ours, stock = pair
    keys = SD | {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
    x, cond, null = latents(2, 4, 8, 8), conditioning(2), conditioning(1, seed=9)
    expected = stock_loop(stock, DDIMScheduler(**keys, clip_sample=False), x, cond, null, 10, 3.0)
    generator = LatentDiffusion.from_config(ours, SchedulerConfig(**keys))
    assert apart(generator.sample(x, cond, null, steps=10, guidance=3.0), expected) <= 1e-4


def test_dpm_trailing_is_the_stock_loop(pair):
    ours, stock = pair
    keys = SD | {"timestep_spacing": "trailing"}
    x, cond, null = latents(2, 4, 8, 8), conditioning(2), conditioning(1, seed=9)
    expected = stock_loop(stock, DPMSolverMultistepScheduler(**keys), x, cond, null, 10, 3.0)
    generator = LatentDiffusion.from_config(ours, SchedulerConfig(**keys))
    assert apart(generator.sample(x, cond, null, solver="dpm++2m", steps=10, guidance=3.0), expected) <= 1e-4


def small_generator(unet=None, prediction="epsilon", **options):
    return LatentDiffusion(unet or small_unet(), make_schedule("scaled_linear"), prediction, **options)


def test_the_network_counts_from_zero_and_guidance_one_makes_one_pass():
    generator, times = small_generator(), []
    generator.unet.register_forward_pre_hook(lambda _, args: times.append(args[1].tolist()))
    x, cond, null = latents(2, 4, 4, 4), conditioning(2), conditioning(1, seed=9)
    generator.sample(x, cond, null, steps=2, guidance=1.0)
    assert times == [[999] * 2, [499] * 2]
    generator.sample(x, cond, null, steps=2, guidance=2.0)
    assert times[2:] == [[999] * 4, [499] * 4]
    generator.loss(generator.unet, x, cond, {"t": torch.tensor([1, 1000]), "eps": x})
    assert times[4:] == [[0, 999]]


def test_guidance_one_ignores_the_null_and_two_does_not():
    generator = small_generator()
    x, cond = latents(2, 4, 4, 4), conditioning(2)
    a, b = conditioning(1, seed=8), conditioning(1, seed=9)

    def sample(null: Conditioning, guidance: float) -> torch.Tensor:
        return generator.sample(x, cond, null, steps=3, guidance=guidance)

    assert torch.equal(sample(a, 1.0), sample(b, 1.0))
    assert apart(sample(a, 2.0), sample(b, 2.0)) > 1e-4


@pytest.mark.parametrize(
    ("prediction", "stock_target"),
    [
        ("epsilon", lambda scheduler, x0, eps, t: eps),
        ("v_prediction", lambda scheduler, x0, eps, t: scheduler.get_velocity(x0, eps, t)),
        ("sample", lambda scheduler, x0, eps, t: x0),
    ],
)
def test_loss_is_the_stock_training_step(pair, prediction, stock_target):
    ours, stock = pair
    scheduler = DDPMScheduler(**SD)
    x0, eps, t, cond = latents(3, 4, 4, 4), latents(3, 4, 4, 4, seed=5), torch.tensor([1, 400, 1000]), conditioning(3)
    loss = small_generator(ours, prediction).loss(ours, x0, cond, {"t": t, "eps": eps})
    with torch.no_grad():
        output = stock(scheduler.add_noise(x0, eps, t - 1), t - 1, cond.tokens).sample
    expected = (output - stock_target(scheduler, x0, eps, t - 1)).square().mean((1, 2, 3))
    assert loss.shape == (3,) and loss.requires_grad
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-4, atol=1e-6)


def test_loss_runs_the_network_it_is_handed():
    generator, other = small_generator(), small_unet(seed=3)
    x0, cond, t = latents(2, 4, 4, 4), conditioning(2), torch.tensor([10, 700])
    generator.loss(other, x0, cond, {"t": t, "eps": latents(2, 4, 4, 4, seed=5)}).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in other.parameters())
    assert all(p.grad is None for p in generator.unet.parameters())


def test_sampling_sees_weights_that_training_changed():
    generator = small_generator()
    x, cond, null = latents(1, 4, 4, 4), conditioning(1), conditioning(1, seed=9)
    before = generator.sample(x, cond, null, steps=2)
    optimiser = torch.optim.SGD(generator.unet.parameters(), lr=0.1)
    generator.loss(generator.unet, x, cond, {"t": torch.tensor([500]), "eps": x}).sum().backward()
    optimiser.step()
    reference = small_generator()
    reference.unet.load_state_dict(generator.unet.state_dict())
    after = generator.sample(x, cond, null, steps=2)
    assert not torch.equal(after, before)
    assert torch.equal(after, reference.sample(x, cond, null, steps=2))


@pytest.mark.parametrize(
    ("solver", "eta", "draws"), [("ddim", 0.0, 0), ("ddim", 1.0, 4), ("ddpm", 0.0, 3), ("dpm++2m", 0.0, 0)]
)
def test_noise_is_counted_and_the_callback_sees_every_step(solver, eta, draws):
    generator, seen = small_generator(), []
    x, cond, null = latents(1, 4, 4, 4), conditioning(1), conditioning(1, seed=9)
    assert generator.draws(solver, 4, eta) == draws
    noise = [latents(1, 4, 4, 4, seed=20 + i) for i in range(draws)]
    out = generator.sample(
        x, cond, null, solver=solver, steps=4, eta=eta, noise=noise, callback=lambda i, x: seen.append((i, x))
    )
    assert [i for i, _ in seen] == [1, 2, 3, 4] and torch.equal(seen[-1][1], out)
    assert not out.requires_grad and out.isfinite().all()
    with pytest.raises(ValueError, match="noise"):
        generator.sample(x, cond, null, solver=solver, steps=4, eta=eta, noise=[*noise, x])


def test_a_network_in_bfloat16_samples_latents_in_float32():
    unet = small_unet().bfloat16()
    out = small_generator(unet).sample(latents(1, 4, 4, 4), conditioning(1), conditioning(1, seed=9), steps=3)
    exact = small_generator().sample(latents(1, 4, 4, 4), conditioning(1), conditioning(1, seed=9), steps=3)
    assert out.dtype == torch.float32 and 0 < apart(out, exact) < 0.2


def test_a_last_step_that_goes_nowhere_is_not_taken():
    generator = small_generator(spacing="leading", end=1)
    assert len(generator.levels(10)) == 10 and generator.draws("ddim", 10, 1.0) == 9


def test_it_is_a_generator():
    generator: Generator = small_generator()
    with pytest.raises(ValueError, match="prediction_type"):
        small_generator(prediction="noise")
    assert generator.sample(
        latents(1, 4, 4, 4),
        conditioning(1),
        conditioning(1),
        solver="ddim",
        steps=1,
        guidance=1.0,
        eta=0.0,
        noise=(),
        callback=None,
    ).shape == (1, 4, 4, 4)


SHARED = {**SD, "trained_betas": None, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
FILES = {
    "SD 1": SHARED | {"_class_name": "PNDMScheduler", "skip_prk_steps": True},
    "SD 2": SHARED | {"_class_name": "DDIMScheduler", "skip_prk_steps": True, "prediction_type": "v_prediction"},
    "SDXL": SHARED
    | {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", "use_karras_sigmas": False},
    "Karras": {"_class_name": "DPMSolverMultistepScheduler", **SD, "use_karras_sigmas": True, "clip_sample": False},
}
STOCK_CLASSES = {name: solver.diffusers for name, solver in SOLVERS.items() if solver.diffusers is not None}


@pytest.mark.parametrize("name", STOCK_CLASSES)
@pytest.mark.parametrize("file", FILES)
def test_another_solver_on_a_folder_walks_what_from_config_walks(file, name, tmp_path):
    """Keys of the file carry over, absent keys are those of the class that is asked for."""
    values = FILES[file]
    (tmp_path / "scheduler_config.json").write_text(json.dumps(values))
    loaded: Any = getattr(diffusers, values["_class_name"]).from_pretrained(tmp_path)
    more = {"dpm++2m-sde": {"algorithm_type": "sde-dpmsolver++"}, "plms": {"skip_prk_steps": True}}.get(name, {})
    stock = getattr(diffusers, STOCK_CLASSES[name]).from_config(loaded.config, **more)
    stock.set_timesteps(20)
    generator = LatentDiffusion.from_config(small_unet(), SchedulerConfig.load(tmp_path))
    *walk, last = generator.levels(20, name)
    ks = list(dict.fromkeys(stock.timesteps.tolist())) if name in ("heun", "plms") else stock.timesteps.tolist()
    ks = ks[:-1] if ks[-1] + 1 == last.t else ks  # a step that goes nowhere
    assert [level.t - 1 for level in walk] == pytest.approx(ks, abs=1e-2)
    if hasattr(stock, "sigmas"):
        sigmas = list(dict.fromkeys(stock.sigmas.tolist()))
        assert [level.ratio for level in (*walk, last)] == pytest.approx(sigmas, rel=1e-3)
    assert last.t == (0 if stock.config.get("set_alpha_to_one", True) or name == "lcm" else 1) or name not in (
        "ddim",
        "plms",
    )
    x = latents(1, 4, 4, 4)
    scale = float(stock.init_noise_sigma)
    expected = x * scale * (walk[0].alpha if SOLVERS[name].scaled else 1)
    torch.testing.assert_close(generator.first(x, name, walk[0]), expected, rtol=1e-4, atol=1e-5)


def test_start_skips_the_first_steps():
    generator = small_generator()
    x, cond, null = latents(1, 4, 4, 4), conditioning(1), conditioning(1, seed=9)
    seen: list[torch.Tensor] = []
    generator.sample(x, cond, null, solver="euler", steps=4, callback=lambda i, x: seen.append(x))
    rest = generator.sample(seen[1], cond, null, solver="euler", steps=4, start=2)
    assert torch.equal(rest, seen[3])
    assert generator.draws("euler-a", 4, start=1) == 3 and generator.draws("ddpm", 4, start=1) == 2
    with pytest.raises(ValueError, match=r"start = 4 is not in 0\.\.3"):
        generator.sample(x, cond, null, solver="euler", steps=4, start=4)


def test_spacing_and_curve_are_asked_for():
    generator = small_generator()
    assert generator.levels(5, "euler", "leading")[0].t == 801 and generator.levels(5, "euler")[0].t == 1000
    karras = generator.levels(5, "euler", "linspace", "karras")
    assert karras != generator.levels(5, "euler", "linspace") and len(karras) == 6
    for solver, asked, named in [
        ("lcm", {"spacing": "leading"}, "spacing"),
        ("edm-heun", {"spacing": "leading"}, "spacing"),
        ("lcm", {"sigmas": "karras"}, "sigmas"),
        ("euler", {"sigmas": "quadratic"}, "sigmas"),
        ("euler", {"spacing": "karras"}, "timestep_spacing"),
    ]:
        with pytest.raises(ValueError, match=named):
            generator.levels(5, solver, **asked)
    with pytest.raises(ValueError, match="at most 50"):
        generator.levels(51, "lcm")
    x, cond, null = latents(1, 4, 4, 4), conditioning(1), conditioning(1, seed=9)
    noise = [latents(1, 4, 4, 4, seed=20 + i) for i in range(4)]
    plain = generator.sample(x, cond, null, solver="edm-heun", steps=4)
    churned = generator.sample(x, cond, null, solver="edm-heun", steps=4, eta=1.0, noise=noise)
    assert churned.isfinite().all() and not torch.equal(plain, churned)
