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
from t2i.diffusion.names import SOLVER_NAMES
from t2i.diffusion.prediction import unchanged
from t2i.diffusion.schedule import make_schedule
from t2i.diffusion.solvers import SOLVERS
from t2i.generator.base import Generator
from t2i.generator.latent_diffusion import LatentDiffusion, require_diffusion
from t2i.generator.scheduler_config import FOLDER_RULES, SchedulerConfig

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
    assert apart(generator.sample(x, cond, null, generator.plan(10), 3.0), expected) <= 1e-4


def test_ddim_on_a_schedule_that_ends_in_pure_noise_is_the_stock_loop(pair):
    ours, stock = pair
    keys = SD | {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
    x, cond, null = latents(2, 4, 8, 8), conditioning(2), conditioning(1, seed=9)
    expected = stock_loop(stock, DDIMScheduler(**keys, clip_sample=False), x, cond, null, 10, 3.0)
    generator = LatentDiffusion.from_config(ours, SchedulerConfig(**keys))
    assert apart(generator.sample(x, cond, null, generator.plan(10), 3.0), expected) <= 1e-4


def test_dpm_trailing_is_the_stock_loop(pair):
    ours, stock = pair
    keys = SD | {"timestep_spacing": "trailing"}
    x, cond, null = latents(2, 4, 8, 8), conditioning(2), conditioning(1, seed=9)
    expected = stock_loop(stock, DPMSolverMultistepScheduler(**keys), x, cond, null, 10, 3.0)
    generator = LatentDiffusion.from_config(ours, SchedulerConfig(**keys))
    assert apart(generator.sample(x, cond, null, generator.plan(10, "dpm++2m"), 3.0), expected) <= 1e-4


def small_generator(unet=None, prediction="epsilon", **options):
    return LatentDiffusion(unet or small_unet(), make_schedule("scaled_linear"), prediction, **options)


def test_the_network_counts_from_zero_and_guidance_one_makes_one_pass():
    generator, times = small_generator(), []
    generator.unet.register_forward_pre_hook(lambda _, args: times.append(args[1].tolist()))
    x, cond, null = latents(2, 4, 4, 4), conditioning(2), conditioning(1, seed=9)
    generator.sample(x, cond, null, generator.plan(2), 1.0)
    assert times == [[999] * 2, [499] * 2]
    generator.sample(x, cond, null, generator.plan(2), 2.0)
    assert times[2:] == [[999] * 4, [499] * 4]
    generator.loss(generator.unet, x, cond, {"t": torch.tensor([1, 1000]), "eps": x})
    assert times[4:] == [[0, 999]]


def test_guidance_one_ignores_the_null_and_two_does_not():
    generator = small_generator()
    x, cond = latents(2, 4, 4, 4), conditioning(2)
    a, b = conditioning(1, seed=8), conditioning(1, seed=9)

    def sample(null: Conditioning, guidance: float) -> torch.Tensor:
        return generator.sample(x, cond, null, generator.plan(3), guidance)

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
    before = generator.sample(x, cond, null, generator.plan(2))
    optimiser = torch.optim.SGD(generator.unet.parameters(), lr=0.1)
    generator.loss(generator.unet, x, cond, {"t": torch.tensor([500]), "eps": x}).sum().backward()
    optimiser.step()
    reference = small_generator()
    reference.unet.load_state_dict(generator.unet.state_dict())
    after = generator.sample(x, cond, null, generator.plan(2))
    assert not torch.equal(after, before)
    assert torch.equal(after, reference.sample(x, cond, null, reference.plan(2)))


@pytest.mark.parametrize(
    ("solver", "eta", "draws"), [("ddim", 0.0, 0), ("ddim", 1.0, 4), ("ddpm", 0.0, 3), ("dpm++2m", 0.0, 0)]
)
def test_noise_is_counted_and_the_callback_sees_every_step(solver, eta, draws):
    generator, seen = small_generator(), []
    x, cond, null = latents(1, 4, 4, 4), conditioning(1), conditioning(1, seed=9)
    plan = generator.plan(4, solver, eta=eta)
    assert plan.noise_count == draws
    noise = [latents(1, 4, 4, 4, seed=20 + i) for i in range(draws)]

    def after_step(x, level):
        seen.append((x, level))
        return x

    out = generator.sample(x, cond, null, plan, noise=noise, after_step=after_step)
    assert [level for _, level in seen] == plan.levels[1:] and torch.equal(seen[-1][0], out)
    assert not out.requires_grad and out.isfinite().all()
    with pytest.raises(ValueError, match="noise"):
        generator.sample(x, cond, null, plan, noise=[*noise, x])


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_goes_on_from_what_the_hook_returns(solver):
    generator = small_generator()
    x, cond, null = latents(1, 4, 4, 4), conditioning(1), conditioning(1, seed=9)
    plan = generator.plan(4, solver)
    noise = [latents(1, 4, 4, 4, seed=20 + i) for i in range(plan.noise_count)]
    seen: list[torch.Tensor] = []
    generator.unet.register_forward_pre_hook(lambda _, args: seen.append(args[0]))

    def zero(x, level):
        return torch.zeros_like(x)

    out = generator.sample(x, cond, null, plan, 1.0, noise, zero)
    assert not out.any() and seen[0].any()
    assert sum(not one.any() for one in seen) >= 3  # the first call of every step but the first


def test_a_network_in_bfloat16_samples_latents_in_float32():
    unet = small_unet().bfloat16()
    ask = latents(1, 4, 4, 4), conditioning(1), conditioning(1, seed=9), small_generator().plan(3)
    out, exact = small_generator(unet).sample(*ask), small_generator().sample(*ask)
    assert out.dtype == torch.float32 and 0 < apart(out, exact) < 0.2


def test_a_last_step_that_goes_nowhere_is_not_taken():
    generator = small_generator(spacing="leading", end=1)
    plan = generator.plan(10, eta=1.0)
    assert len(plan.levels) == 10 and plan.noise_count == len(plan.timesteps) == 9


def test_it_is_a_generator():
    generator: Generator = small_generator()
    with pytest.raises(ValueError, match="prediction_type"):
        small_generator(prediction="noise")
    plan = generator.plan(1, "ddim", eta=0.0, spacing=None, sigmas=None)
    x, cond = latents(1, 4, 4, 4), conditioning(1)
    assert generator.sample(x, cond, cond, plan, 1.0, (), unchanged).shape == (1, 4, 4, 4)


SHARED = {**SD, "trained_betas": None, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
FILES = {
    "SD 1": SHARED | {"_class_name": "PNDMScheduler", "skip_prk_steps": True},
    "SD 2": SHARED | {"_class_name": "DDIMScheduler", "skip_prk_steps": True, "prediction_type": "v_prediction"},
    "SDXL": SHARED
    | {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", "use_karras_sigmas": False},
    "Karras": {"_class_name": "DPMSolverMultistepScheduler", **SD, "use_karras_sigmas": True, "clip_sample": False},
}
STOCK_CLASSES = {key: names.diffusers for key, names in SOLVER_NAMES.items() if names.diffusers is not None}


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
    plan = generator.plan(20, name)
    *walk, last = plan.levels
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
    scale = float(stock.init_noise_sigma) * (walk[0].alpha if FOLDER_RULES[name].scaled else 1)
    assert plan.noise_scale == pytest.approx(scale, rel=1e-4)


def test_start_skips_the_first_steps():
    generator = small_generator()
    x, cond, null = latents(1, 4, 4, 4), conditioning(1), conditioning(1, seed=9)
    seen: list[torch.Tensor] = []

    def after_step(x, level):
        seen.append(x)
        return x

    plan = generator.plan(4, "euler")
    generator.sample(x, cond, null, plan, after_step=after_step)
    assert torch.equal(generator.sample(seen[1], cond, null, plan.starting_at(2)), seen[3])
    counts = [generator.plan(4, solver).starting_at(1).noise_count for solver in ("euler-a", "ddpm")]
    assert counts == [3, 2]
    with pytest.raises(ValueError, match=r"start = 4: not in 0\.\.3"):
        plan.starting_at(4)


def test_spacing_and_curve_are_asked_for():
    generator = small_generator()

    def levels(steps, solver, **where):
        return generator.plan(steps, solver, **where).levels

    assert levels(5, "euler", spacing="leading")[0].t == 801 and levels(5, "euler")[0].t == 1000
    karras = levels(5, "euler", spacing="linspace", sigmas="karras")
    assert karras != levels(5, "euler", spacing="linspace") and len(karras) == 6
    for solver, asked, named in [
        ("lcm", {"spacing": "leading"}, "spacing"),
        ("edm-heun", {"spacing": "leading"}, "spacing"),
        ("lcm", {"sigmas": "karras"}, "sigmas"),
        ("euler", {"sigmas": "quadratic"}, "sigmas"),
        ("euler", {"spacing": "karras"}, "timestep_spacing"),
    ]:
        with pytest.raises(ValueError, match=named):
            levels(5, solver, **asked)
    with pytest.raises(ValueError, match="at most 50"):
        levels(51, "lcm")
    x, cond, null = latents(1, 4, 4, 4), conditioning(1), conditioning(1, seed=9)
    noise = [latents(1, 4, 4, 4, seed=20 + i) for i in range(4)]
    plain = generator.sample(x, cond, null, generator.plan(4, "edm-heun"))
    churned = generator.sample(x, cond, null, generator.plan(4, "edm-heun", eta=1.0), noise=noise)
    assert churned.isfinite().all() and not torch.equal(plain, churned)


def test_features_of_diffusion_refuse_other_generators():
    class Sibling(Generator):
        network = torch.nn.Identity()  # pyright: ignore[reportAssignmentType]

    generator = small_generator()
    assert require_diffusion(generator, "a LoRA") is generator
    with pytest.raises(ValueError, match="model: a LoRA needs latent diffusion, this model's generator is Sibling"):
        require_diffusion(Sibling(), "a LoRA")


def test_draws_are_functions_of_the_generator_and_can_be_placed():
    generator, code = small_generator(), latents(1, 4, 4, 4)[0]
    one, two = (generator.draw(code, torch.Generator().manual_seed(3)) for _ in range(2))
    assert one["t"].equal(two["t"]) and one["eps"].equal(two["eps"]) and one["eps"].shape == (1, *code.shape)
    placed = [generator.draw(code, torch.Generator(), at)["t"].item() for at in (0.0, 0.5, 0.999999)]
    T = generator.schedule.T
    assert placed == [1, T // 2 + 1, T]
