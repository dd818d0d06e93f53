"""Folders that stock diffusers wrote, loaded again by both: the same numbers, and back again.

Stock's solvers are `Cls.from_config(pipe.scheduler.config)` of the pipeline that was loaded.
"""

import itertools
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline
from PIL import Image
from safetensors.torch import load_file

from t2i.conditioning import Conditioning
from t2i.diffusion.names import SOLVER_NAMES
from t2i.diffusion.solvers import SOLVERS
from t2i.pipeline import Pipeline

from .stock import load_stock, write_stock
from .tiny import apart

KINDS = ("sd1", "sd2", "sd2-v", "t5")
SHARED = [name for name, names in SOLVER_NAMES.items() if names.diffusers is not None]
MORE = {"dpm++2m-sde": {"algorithm_type": "sde-dpmsolver++"}, "plms": {"skip_prk_steps": True}}
PROMPTS = ["a red circle", "a blue square on grey"]
NEGATIVE = "two green triangles"
STEPS, SCALE = 20, 4.0
# PLMS of stock combines outputs of v at different levels, which are no v of any level: the closed form decides there.
WRONG = {("sd2-v", "plms")}


class Pair(NamedTuple):
    folder: Path
    ours: Pipeline
    stock: Any


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    made: dict[tuple[str, int], Pair] = {}

    def pair(kind, in_channels=4):
        if (kind, in_channels) not in made:
            folder = write_stock(kind, tmp_path_factory.mktemp(kind) / "model", in_channels)
            pipeline_class = StableDiffusionInpaintPipeline if in_channels != 4 else diffusers.StableDiffusionPipeline
            made[kind, in_channels] = Pair(folder, Pipeline.from_pretrained(folder), load_stock(folder, pipeline_class))
        return made[kind, in_channels]

    return pair


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def stock_run(stock, solver, prompts, seeds, pipeline_class=None, **options) -> torch.Tensor:
    """Stock's latents with another solver on its loaded folder."""
    scheduler = getattr(diffusers, SOLVER_NAMES[solver].diffusers or "")
    parts = stock.components | {"scheduler": scheduler.from_config(stock.scheduler.config, **MORE.get(solver, {}))}
    pipeline = (pipeline_class or type(stock))(**parts, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    asked = {"num_inference_steps": STEPS, "guidance_scale": SCALE, "negative_prompt": [NEGATIVE] * len(prompts)}
    return pipeline(prompts, generator=generators(*seeds), output_type="latent", **asked | options).images


def our_run(ours, solver, prompts, seeds, **options):
    options = {"num_inference_steps": STEPS, "guidance_scale": SCALE} | options
    return ours(prompts, NEGATIVE, solver=solver, seeds=list(seeds), output_type="latent", **options).images


def picture(seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((64, 64), Image.Resampling.BILINEAR)


def mask():
    white = np.zeros((64, 64), np.uint8)
    white[8:40, 24:] = 255
    return Image.fromarray(white)


@torch.no_grad()
def differences(ours, stock):
    """max|d| / max|ref| of the text states, of the U-Net, and of the VAE both ways."""
    draw = torch.Generator().manual_seed(0)
    x, pixels = torch.randn(2, 4, 8, 8, generator=draw), torch.rand(2, 3, 64, 64, generator=draw) * 2 - 1
    tokens = ours.text_encoder([*PROMPTS, NEGATIVE]).conditioning.tokens
    states, null = stock.encode_prompt(PROMPTS, "cpu", 1, True, [NEGATIVE] * 2)
    cond = Conditioning(tokens[:2], torch.ones(tokens[:2].shape[:2], dtype=torch.bool))
    t = torch.tensor([7, 930])
    moments, stock_moments = ours.autoencoder.encode(pixels), stock.vae.encode(pixels).latent_dist
    assert apart(states[:1], states[1:]) > 0.1
    return {
        "text": max(apart(tokens[:2], states), apart(tokens[2:], null[:1])),
        "unet": apart(ours.generator.unet(x, t, cond), stock.unet(x, t, states).sample),
        "decode": apart(ours.autoencoder.decode(x), stock.vae.decode(x).sample),
        "mean": apart(moments.mean, stock_moments.mean),
        "sample": apart(moments.sample(x), stock_moments.mean + stock_moments.std * x),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_networks_agree(pairs, kind):
    pair = pairs(kind)
    found = differences(pair.ours, pair.stock)
    assert max(found.values()) <= 1e-5, found


def check_text_to_image(pair, solver):
    expected = stock_run(pair.stock, solver, PROMPTS, [3, 9])
    assert apart(our_run(pair.ours, solver, PROMPTS, [3, 9]), expected) <= 1e-4
    assert apart(expected[:1], expected[1:]) > 0.1


FAST = [*itertools.product(["sd1"], SHARED), ("sd2", "dpm++2m"), ("sd2-v", "ddim"), ("sd2-v", "euler"), ("t5", "unipc")]


@pytest.mark.parametrize(("kind", "solver"), FAST)
def test_another_solver_on_the_folder_is_stocks(pairs, kind, solver):
    check_text_to_image(pairs(kind), solver)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "solver"), [p for p in itertools.product(KINDS, SHARED) if p not in FAST and p not in WRONG]
)
def test_every_solver_on_every_folder_is_stocks(pairs, kind, solver):
    check_text_to_image(pairs(kind), solver)


def test_words_and_guidance_move_the_latents(pairs):
    """So that the tests above could fail: what is compared depends on all that is passed."""
    ours = pairs("sd1").ours
    base = our_run(ours, "ddim", PROMPTS[:1], [3])
    for other in (
        our_run(ours, "ddim", PROMPTS[1:], [3]),
        our_run(ours, "ddim", PROMPTS[:1], [3], guidance_scale=1.0),
        our_run(ours, "ddim", PROMPTS[:1], [3], spacing="trailing"),
        our_run(ours, "plms", PROMPTS[:1], [3]),
    ):
        assert apart(other, base) > 1e-3


# Where stock does not do what it means to, see `test_where_stock_loses_the_thread`: its multistep solvers that begin
# in the middle of their list take the first of their differences for the fourth (LMS) or are a step behind (PLMS).
# And where a step has two evaluations (Heun's, PLMS's first), its blending also overwrites what is between them, see
# `test_stock_blending_after_whole_steps_alone`.
BEHIND = ("lms", "plms")
BETWEEN = ("heun", "plms")


def begins(solver, way, strength):
    """Whether stock's picture is one that the solver's formulas give."""
    return not ((strength < 1 and solver in BEHIND) or (way == "blending" and solver in BETWEEN))


def check_from_a_picture(pairs, kind, way, solver, strength):
    pair = pairs(kind, 9 if way == "concatenation" else 4)
    options: dict[str, Any] = {"image": picture(), "strength": strength}
    if way == "image":
        expected = stock_run(pair.stock, solver, PROMPTS, [3, 9], StableDiffusionImg2ImgPipeline, **options)
        found = our_run(pair.ours, solver, PROMPTS, [3, 9], **options)
    else:  # one picture: stock gives all pictures of a batch the first one's sample
        more = {"mask_image": mask()}
        expected = stock_run(pair.stock, solver, PROMPTS[:1], [3], StableDiffusionInpaintPipeline, **options, **more)
        found = our_run(pair.ours, solver, PROMPTS[:1], [3], mask_image=mask(), **options)
    assert apart(found, expected) <= 1e-4
    return expected


FROM_PICTURES = [
    ("sd1", "image", "euler-a", 0.6),
    ("sd1", "image", "unipc", 0.8),
    ("sd2-v", "image", "heun", 0.3),
    ("t5", "image", "dpm++2m", 0.6),
    ("sd1", "blending", "euler", 0.6),
    ("sd1", "blending", "dpm++2m-sde", 1.0),
    ("sd2-v", "blending", "lms", 1.0),
    ("sd1", "concatenation", "euler-a", 0.6),
    ("sd1", "concatenation", "plms", 1.0),
]
WAYS = [
    case
    for case in itertools.product(
        ("sd1", "sd2", "sd2-v", "t5"), ("image", "blending", "concatenation"), SHARED, (0.35, 1.0)
    )
    if case not in FROM_PICTURES and (case[0], case[2]) not in WRONG and begins(case[2], case[1], case[3])
]


@pytest.mark.parametrize(("kind", "way", "solver", "strength"), FROM_PICTURES)
def test_pictures_from_pictures_are_stocks(pairs, kind, way, solver, strength):
    check_from_a_picture(pairs, kind, way, solver, strength)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "way", "solver", "strength"), WAYS)
def test_every_way_by_every_solver_is_stocks(pairs, kind, way, solver, strength):
    check_from_a_picture(pairs, kind, way, solver, strength)


@pytest.mark.parametrize("solver", BETWEEN)
def test_stock_blending_after_whole_steps_alone(pairs, monkeypatch, solver):
    """That what is between a step's evaluations is all that differs: with it put back, stock's latents are ours."""
    found, kind = [], getattr(diffusers, SOLVER_NAMES[solver].diffusers or "")
    step = kind.step

    def watched(*args, **options):
        found.append(step(*args, **options)[0])
        return (found[-1],)

    def put_back(pipeline, i, t, latents):
        between = i % 2 == 0 and i < 2 * STEPS - 2 if solver == "heun" else i == 0
        return {"latents": found[-1]} if between else {}

    pair, options = pairs("sd1"), {"image": picture(), "strength": 1.0}
    more: dict[str, Any] = {"mask_image": mask(), "callback_on_step_end": put_back}
    monkeypatch.setattr(kind, "step", watched)
    expected = stock_run(pair.stock, solver, PROMPTS[:1], [3], StableDiffusionInpaintPipeline, **options, **more)
    assert apart(our_run(pair.ours, solver, PROMPTS[:1], [3], mask_image=mask(), **options), expected) <= 1e-4
    assert len(found) == SOLVERS[solver].evaluations(STEPS)


def tensors(folder):
    """The weights; a text tower's with and without the prefix that older and newer files have."""
    [file] = folder.glob("*.safetensors")
    return {key.removeprefix("text_model."): tensor for key, tensor in load_file(file).items()}


@pytest.mark.parametrize(("kind", "in_channels"), [("sd1", 4), ("sd1", 9), ("sd2-v", 4), ("t5", 4)])
def test_saved_by_us_stock_loads_it(pairs, tmp_path, kind, in_channels):
    """Every weight bit by bit under stock's names; and the pictures of the new folder in stock are ours."""
    pair = pairs(kind, in_channels)
    pair.ours.save_pretrained(tmp_path / "again")
    for part in ("unet", "vae", "text_encoder"):
        before, after = (tensors(place / part) for place in (pair.folder, tmp_path / "again"))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
    stock, ours = load_stock(tmp_path / "again", type(pair.stock)), Pipeline.from_pretrained(tmp_path / "again")
    assert type(stock.text_encoder) is type(pair.stock.text_encoder)
    assert stock.tokenizer(PROMPTS).input_ids == pair.stock.tokenizer(PROMPTS).input_ids
    kept = ("beta_start", "beta_end", "beta_schedule", "prediction_type", "steps_offset", "set_alpha_to_one")
    assert all(stock.scheduler.config[key] == pair.stock.scheduler.config[key] for key in kept)
    if in_channels == 9:
        options = {"image": picture(), "strength": 1.0}
        expected = stock_run(stock, "ddim", PROMPTS[:1], [3], mask_image=mask(), **options)
        assert apart(our_run(pair.ours, "ddim", PROMPTS[:1], [3], mask_image=mask(), **options), expected) <= 1e-4
        return
    expected = stock_run(stock, "ddim", PROMPTS, [3, 9])
    assert apart(our_run(pair.ours, "ddim", PROMPTS, [3, 9]), expected) <= 1e-4
    assert apart(our_run(ours, "dpm++2m", PROMPTS, [3, 9]), stock_run(stock, "dpm++2m", PROMPTS, [3, 9])) <= 1e-4
