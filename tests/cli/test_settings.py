"""The table of settings and the command line agree; a request is resolved once; few frames lead to the network."""

import inspect
import sys
from pathlib import Path

import pytest
import torch
from pipeline.tiny import make_pipeline

import t2i as package
from t2i.cli.generate import generate
from t2i.cli.grid import AXES, grid
from t2i.errors import ConfigError
from t2i.generator import latent_diffusion
from t2i.generator.unet import UNet
from t2i.pipeline import Request
from t2i.pipeline.settings import BY_PARAMETER, SETTINGS

FRAMES = 9  # generate, run, Pipeline.run, LatentDiffusion.sample, a solver, predict, guidance, network, UNet.forward
ROOT = Path(inspect.getfile(package)).parent


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "tiny-model"
    make_pipeline().save_pretrained(path)
    return path


def options(verb):
    """The Typer options of a verb by the name of its parameter."""
    return {
        name: parameter.annotation.__metadata__[0] for name, parameter in inspect.signature(verb).parameters.items()
    }


@pytest.mark.parametrize("verb", [generate, grid])
def test_the_options_of_a_verb_are_those_of_the_table(verb):
    given = options(verb)
    for setting in SETTINGS.values():
        if setting.flags and (verb is generate or setting.axis):
            argument = setting.flag[2:].replace("-", "_")
            if verb is grid and argument not in given:
                continue  # an axis that has no option
            option = given[argument]
            assert (option.default, *option.param_decls) == setting.flags  # Typer's first argument, in Annotated
            assert option.rich_help_panel == setting.panel
            assert option.help == setting.help or verb is grid
    assert all(option.rich_help_panel for name, option in options(generate).items() if name != "prompts")


def test_every_parameter_of_a_request_is_in_the_table_or_of_the_caller():
    own = {"generator", "num_images_per_prompt", "height", "width", "latents", "batch_size"}
    fields = set(inspect.signature(Request).parameters)
    assert fields - set(BY_PARAMETER) == own | {"prompt_embeds", "negative_prompt_embeds"}
    assert set(BY_PARAMETER) < fields and set(AXES) < set(SETTINGS)


def test_nine_frames_from_the_verb_to_the_network_and_one_list_of_levels(t2i, model, monkeypatch):
    frames, lists = [], []
    forward, levels = UNet.forward, latent_diffusion.levels

    def counted(self, *arguments):
        frame, found = sys._getframe(1), ["UNet.forward"]
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(ROOT) and path.name not in ("__main__.py",):
                found.append(frame.f_code.co_qualname if sys.version_info >= (3, 11) else frame.f_code.co_name)
            frame = frame.f_back
        frames.append(found)
        return forward(self, *arguments)

    def listed(*arguments):
        lists.append(arguments)
        return levels(*arguments)

    monkeypatch.setattr(UNet, "forward", counted)
    monkeypatch.setattr(latent_diffusion, "levels", listed)
    for solver in ("ddim", "euler-a", "dpm++2m"):
        code, _, err = t2i("generate", "a red circle", "-m", model, "--steps", 2, "--solver", solver)
        assert code == 0, err
    assert len(frames) == 6 and all(found[-1] == "generate" for found in frames)
    assert max(map(len, frames)) <= FRAMES, max(frames, key=len)
    assert len(lists) == 3


def test_errors_are_named_by_the_flag(t2i, model):
    for arguments, message in (
        (["--steps", 0], "t2i: --steps = 0: not in 1..1000"),
        (["--cfg", -1], "t2i: --cfg = -1.0: must be"),
        (["--eta", 2], "t2i: --eta = 2.0: not in 0..1"),
        (["--batch-size", 0], "t2i: --batch-size = 0: must be at least 1"),
        (["-c", 0], "t2i: --count = 0: must be at least 1"),
        (["--seed", -1], "t2i: --seed: -1, of image 0"),
        (["--mask", model / "t2i.json"], "t2i: --mask"),
    ):
        code, _, err = t2i("generate", "x", "-m", model, *arguments)
        assert code == 2 and err.splitlines()[-1].startswith(message)


def test_a_longer_key_keeps_the_problem():
    error = ConfigError("num_inference_steps", "not in 1..10", 0).under("sample.steps")
    assert str(error) == "sample.steps = 0: not in 1..10"


def test_the_hook_after_a_step_changes_the_latents():
    pipeline = make_pipeline()
    asked = {"seeds": 1, "num_inference_steps": 3, "output_type": "latent"}
    seen = []

    def zero(pipe, step, timestep, tensors):
        seen.append((step, timestep))
        return {"latents": torch.zeros_like(tensors["latents"])}

    assert not pipeline("a red circle", callback_on_step_end=zero, **asked).images.any()
    assert seen == [(0, 999), (1, 666), (2, 332)]
