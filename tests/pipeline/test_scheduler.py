"""`pipe.scheduler = X.from_config(pipe.scheduler.config)`, as users of diffusers write it, and other attributes."""

import warnings

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline

from t2i.errors import ConfigError

from .tiny import apart, make_pipeline

PROMPT = "a red circle"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("scheduler") / "model"
    make_pipeline().save_pretrained(place)
    return place


@pytest.fixture
def reference(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize(
    ("name", "keys", "solver"),
    [
        ("DPMSolverMultistepScheduler", {}, "dpm++2m"),
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True, "timestep_spacing": "linspace"}, "dpm++2m"),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "dpm++2m-sde"),
        ("EulerDiscreteScheduler", {}, "euler"),
        ("EulerDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1}, "euler"),
        ("HeunDiscreteScheduler", {}, "heun"),
        ("UniPCMultistepScheduler", {}, "unipc"),
        ("DDIMScheduler", {"timestep_spacing": "leading", "steps_offset": 1}, "ddim"),
    ],
)
def test_a_scheduler_of_diffusers_selects_solver_and_timesteps(reference, name, keys, solver):
    kind, pipe = getattr(diffusers, name), make_pipeline()
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **keys)
    reference.scheduler = kind.from_config(reference.scheduler.config, **keys)
    assert pipe.defaults.solver == solver and pipe.scheduler.config["_class_name"] == name
    if solver == "dpm++2m-sde":  # diffusers draws its noise in another order
        return
    options = {"num_inference_steps": 10, "guidance_scale": 4.0, "output_type": "latent"}
    ours = pipe(PROMPT, seeds=[7], **options).images
    assert apart(ours, reference(PROMPT, generator=torch.Generator().manual_seed(7), **options).images) <= 1e-4


def test_a_scheduler_is_saved_with_the_pipeline(tmp_path):
    pipe = make_pipeline()
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="leading")
    image = pipe(PROMPT, seeds=[1], output_type="pt").images
    pipe.save_pretrained(tmp_path / "model")
    assert type(pipe).from_pretrained(tmp_path / "model")(PROMPT, seeds=[1], output_type="pt").images.equal(image)


@pytest.mark.parametrize(
    ("scheduler", "problem"),
    [
        (diffusers.KDPM2DiscreteScheduler(), r"KDPM2DiscreteScheduler.*not one of DDIMScheduler.*solver=NAME"),
        (diffusers.DDIMScheduler(clip_sample=True), r"`clip_sample` = True is not supported.*solver=NAME"),
        ("euler", "'str': not one of"),
        (None, "'NoneType': not one of"),
    ],
)
def test_a_scheduler_that_no_solver_has_is_refused(scheduler, problem):
    pipe = make_pipeline()
    with pytest.raises(ConfigError, match=problem):
        pipe.scheduler = scheduler
    assert pipe.defaults.solver == "ddim"


def test_an_unknown_attribute_is_refused_with_the_nearest_one():
    pipe = make_pipeline()
    with pytest.raises(AttributeError, match="no 'schedular' that could be set; did you mean 'scheduler'"):
        pipe.schedular = pipe.scheduler
    with pytest.raises(AttributeError, match=r"no 'watermark'.*: ?|what can be set is text_encoder"):
        pipe.watermark = None


def test_interrupt_ends_the_steps_as_in_diffusers(reference):
    def stop(pipe, step, timestep, values):
        seen.append(step)
        pipe._interrupt = step == 2
        return values

    options = {"num_inference_steps": 10, "guidance_scale": 4.0, "output_type": "latent", "callback_on_step_end": stop}
    pipe, seen = make_pipeline(), []
    ours = pipe(PROMPT, seeds=[7], **options).images
    assert seen == [0, 1, 2]
    theirs = reference(PROMPT, generator=torch.Generator().manual_seed(7), **options).images
    assert apart(ours, theirs) <= 1e-4
    del options["callback_on_step_end"]
    assert apart(pipe(PROMPT, seeds=[7], **options).images, ours) > 1e-2  # the next call is not interrupted


CLASSES = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "lms": "LMSDiscreteScheduler",
    "plms": "PNDMScheduler",
    "dpm++2m": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}
STEPS = (4, 5, 6, 7, 8, 10, 12, 15, 20, 25, 30, 35, 40, 50)


@pytest.mark.slow
def test_differences_to_diffusers_by_solver_and_steps(reference, capsys):
    """Prints the largest difference of the images in levels of 255; only DDIM and PLMS need a divisor of 1000."""
    table = {}
    for solver, name in CLASSES.items():
        kind, pipe = getattr(diffusers, name), make_pipeline()
        keys = {"skip_prk_steps": True} if solver == "plms" else {}
        pipe.scheduler = kind.from_config(pipe.scheduler.config, **keys)
        reference.scheduler = kind.from_config(reference.scheduler.config, **keys)
        for steps in STEPS:
            options = {"num_inference_steps": steps, "guidance_scale": 4.0, "output_type": "np"}
            theirs = reference(PROMPT, generator=torch.Generator().manual_seed(7), **options).images
            table[solver, steps] = 255 * float(abs(pipe(PROMPT, seeds=[7], **options).images - theirs).max())
    with capsys.disabled():
        print("\nsteps   " + "".join(f"{steps:6}" for steps in STEPS))
        for solver in CLASSES:
            print(f"{solver:8}" + "".join(f"{table[solver, steps]:6.2f}" for steps in STEPS))
    for (solver, steps), difference in table.items():
        assert difference <= 2 or (solver in ("ddim", "plms") and 1000 % steps), (solver, steps)
