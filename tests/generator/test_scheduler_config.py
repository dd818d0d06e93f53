import json

import diffusers
import pytest
import torch

from t2i.diffusion.names import SOLVER_NAMES
from t2i.generator.scheduler_config import CLASS_DEFAULTS, SchedulerConfig

# What Stable Diffusion 1.5's folder holds.
SD15 = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}


def read(values):
    return SchedulerConfig.parse(values, "scheduler/scheduler_config.json")


@pytest.mark.parametrize("name", CLASS_DEFAULTS)
def test_defaults_are_those_of_the_class(name):
    stock = {k: v for k, v in dict(getattr(diffusers, name)().config).items() if not k.startswith("_")}
    assert CLASS_DEFAULTS[name] == stock


@pytest.mark.parametrize("name", CLASS_DEFAULTS)
@pytest.mark.parametrize("keys", [{}, {k: v for k, v in SD15.items() if k not in ("_class_name", "set_alpha_to_one")}])
def test_an_absent_key_means_what_it_means_to_the_class(name, keys, tmp_path):
    given = {"clip_sample": False, "skip_prk_steps": True} | keys | {"_class_name": name}
    stock = getattr(diffusers, name).from_config(given)
    ours = read(given)
    for key in ("timestep_spacing", "steps_offset", "prediction_type", "beta_schedule", "beta_start", "beta_end"):
        assert getattr(ours, key) == stock.config[key]
    torch.testing.assert_close(ours.schedule().alpha_bar[1:].float(), stock.alphas_cumprod, rtol=1e-4, atol=1e-7)
    assert ours.end == (0 if stock.config.get("set_alpha_to_one", True) else 1)
    assert SOLVER_NAMES[ours.solver].diffusers == name


def test_a_written_folder_is_a_whole_ddim_scheduler(tmp_path):
    config = read(SD15 | {"prediction_type": "v_prediction", "_class_name": "DPMSolverMultistepScheduler"})
    config.save(tmp_path / "scheduler")
    values = json.loads((tmp_path / "scheduler/scheduler_config.json").read_text())
    assert values.pop("_class_name") == "DDIMScheduler"
    assert values.keys() == CLASS_DEFAULTS["DDIMScheduler"].keys()
    stock = diffusers.DDIMScheduler.from_pretrained(tmp_path / "scheduler")
    assert {k: stock.config[k] for k in values} == values
    again = SchedulerConfig.load(tmp_path / "scheduler")
    assert again == config.model_copy(update={"solver": "ddim", "absent": ()})
    torch.testing.assert_close(again.schedule().alpha_bar[1:].float(), stock.alphas_cumprod, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_zero_terminal_snr_is_read(schedule):
    keys = {"beta_schedule": schedule, "rescale_betas_zero_snr": True, "clip_sample": False}
    bar = read(keys | {"prediction_type": "v_prediction"}).schedule().alpha_bar
    assert bar[-1] == 0
    torch.testing.assert_close(bar[1:].float(), diffusers.DDIMScheduler(**keys).alphas_cumprod, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({}, "`clip_sample` = True"),
        ({"_class_name": "DDPMScheduler"}, "`clip_sample` = True"),
        ({"clip_sample": True}, "`clip_sample`"),
        ({"clip_sample": False, "thresholding": True}, "`thresholding`"),
        ({"clip_sample": False, "trained_betas": [0.1, 0.2]}, "`trained_betas`"),
        ({"clip_sample": False, "beta_schedule": "sigmoid"}, "`beta_schedule`"),
        ({"clip_sample": False, "prediction_type": "flow_prediction"}, "`prediction_type`"),
        ({"clip_sample": False, "timestep_spacing": "karras"}, "`timestep_spacing`"),
        ({"clip_sample": False, "beta_strat": 0.1}, "`beta_start`"),
        ({"_class_name": "DEISMultistepScheduler"}, "DPMSolverMultistepScheduler"),
        ({"_class_name": "PNDMScheduler"}, "`skip_prk_steps` = False"),
        ({"_class_name": "EulerDiscreteScheduler", "final_sigmas_type": "sigma_min"}, "`final_sigmas_type`"),
        ({"_class_name": "EulerDiscreteScheduler", "sigma_max": 80.0}, "`sigma_max`"),
        ({"_class_name": "UniPCMultistepScheduler", "solver_type": "bh1"}, "`solver_type`"),
        ({"_class_name": "LMSDiscreteScheduler", "use_beta_sigmas": True}, "`use_beta_sigmas`"),
        ({"_class_name": "LCMScheduler", "original_inference_steps": 100}, "`original_inference_steps`"),
        ({"clip_sample": False, "use_karras_sigmas": True, "use_exponential_sigmas": True}, "both true"),
        ({"_class_name": "DDPMScheduler", "clip_sample": False, "variance_type": "learned"}, "`variance_type`"),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_lu_lambdas": True}, "`use_lu_lambdas`"),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"}, "`algorithm_type`"),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}, "`solver_order`"),
    ],
)
def test_what_is_not_run_is_refused_by_name(values, named):
    with pytest.raises(ValueError, match=f"^scheduler/scheduler_config.json: .*{named}"):
        read(values)


def test_it_is_refused_from_python_too():
    with pytest.raises(ValueError, match="`clip_sample`"):
        SchedulerConfig(clip_sample=True)


def test_what_a_file_says_beside_the_schedule(tmp_path):
    sde = read(
        {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}
    )
    assert (sde.solver, sde.sigmas, sde.absent) == ("dpm++2m-sde", "karras", ("timestep_spacing", "set_alpha_to_one"))
    assert read(SD15).absent == ("timestep_spacing",)
    sde.save(tmp_path / "scheduler")  # the curve stays, for the solvers that take one
    assert SchedulerConfig.load(tmp_path / "scheduler").sigmas == "karras"


def test_trained_betas_are_read():
    betas = [0.001 * (i + 1) for i in range(20)]
    keys = {"clip_sample": False, "num_train_timesteps": 20, "trained_betas": betas}
    bar = read(keys).schedule().alpha_bar
    torch.testing.assert_close(bar[1:].float(), diffusers.DDIMScheduler(**keys).alphas_cumprod)
