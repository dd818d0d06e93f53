"""Image-to-image and inpainting: stock's pictures from the same seeds, and what is refused."""

import warnings

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
)
from PIL import Image

from t2i.pipeline import Pipeline

from .tiny import apart, make_pipeline

STOCK = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler, "dpm++2m": DPMSolverMultistepScheduler}
ASKED = {"num_inference_steps": 5, "guidance_scale": 4.0, "output_type": "latent"}
PROMPTS = ["a red circle", "a blue square on grey"]


def noise_picture(size=(16, 16), seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def half_mask(size=(16, 16)):
    mask = np.zeros((size[1], size[0]), np.uint8)
    mask[:, size[0] // 2 :] = 255
    return Image.fromarray(mask)


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    pipeline.check_inputs = lambda *args, **options: None  # it asks for multiples of 8 whatever the factor is
    return pipeline


def stock_run(pipeline, solver, prompt, **options):
    pipeline.scheduler = STOCK[solver].from_config(pipeline.scheduler.config)
    return pipeline(prompt, **ASKED | options).images


@pytest.fixture(scope="module")
def stock_img2img(stock):
    return quiet(StableDiffusionImg2ImgPipeline(**stock.components, requires_safety_checker=False))


@pytest.fixture(scope="module")
def stock_inpaint(stock):
    return quiet(StableDiffusionInpaintPipeline(**stock.components, requires_safety_checker=False))


@pytest.fixture(scope="module")
def nine(tmp_path_factory):
    """A U-Net that reads the mask and the kept latents: (ours, stock), both from one folder."""
    path = tmp_path_factory.mktemp("nine") / "model"
    make_pipeline(unet={"in_channels": 9}).save_pretrained(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stock = StableDiffusionInpaintPipeline.from_pretrained(path)
    return Pipeline.from_pretrained(path), quiet(stock)


@pytest.mark.parametrize(
    ("solver", "eta", "strength"), [("ddim", 0.0, 0.8), ("ddim", 0.5, 0.5), ("ddpm", 0.0, 1.0), ("dpm++2m", 0.0, 0.7)]
)
def test_image_to_image_is_stocks(ours, stock_img2img, solver, eta, strength):
    picture = noise_picture()
    options = {"image": picture, "strength": strength, "eta": eta}
    expected = stock_run(stock_img2img, solver, PROMPTS, generator=generators(3, 9), **options)
    found = ours(PROMPTS, seeds=[3, 9], solver=solver, **options, **ASKED).images
    assert apart(found, expected) <= 1e-4
    assert apart(ours(PROMPTS, seeds=[3, 9], solver=solver, eta=eta, **ASKED).images, expected) > 0.01


def test_one_generator_draws_the_pictures_sample_once(ours, stock_img2img):
    options = {"image": noise_picture(), "strength": 0.6}
    expected = stock_run(stock_img2img, "ddim", PROMPTS, generator=generators(5)[0], **options)
    assert apart(ours(PROMPTS, generator=generators(5)[0], **options, **ASKED).images, expected) <= 1e-4


@pytest.mark.parametrize(("solver", "eta", "strength"), [("ddim", 0.5, 1.0), ("ddpm", 0.0, 0.6), ("dpm++2m", 0.0, 0.8)])
def test_inpainting_by_blending_is_stocks(ours, stock_inpaint, solver, eta, strength):
    options = {"image": noise_picture(), "strength": strength, "eta": eta}
    for seed, prompt in enumerate(PROMPTS):  # stock gives all pictures of a batch the first one's sample
        expected = stock_run(
            stock_inpaint, solver, prompt, mask_image=half_mask(), generator=generators(seed)[0], **options
        )
        found = ours(prompt, mask_image=half_mask(), seeds=seed, solver=solver, **options, **ASKED).images
        assert apart(found, expected) <= 1e-4


@pytest.mark.parametrize(("eta", "strength"), [(0.5, 1.0), (0.5, 0.6)])
def test_inpainting_by_concatenation_is_stocks(nine, eta, strength):
    ours, stock = nine
    options = {"image": noise_picture(), "strength": strength, "eta": eta}
    expected = stock_run(stock, "ddim", PROMPTS[0], mask_image=half_mask(), generator=generators(4)[0], **options)
    found = ours(PROMPTS, mask_image=half_mask(), seeds=[4, 4], **options, **ASKED).images
    assert apart(found[:1], expected) <= 1e-4
    whole = Image.new("L", (16, 16), 255)
    other = ours(PROMPTS, mask_image=whole, seeds=[4, 4], **options, **ASKED).images
    assert apart(other[:1], expected) > 1e-3


def test_what_the_mask_keeps_is_the_picture(ours):
    asked = {"image": noise_picture(), "mask_image": half_mask(), "seeds": 1} | ASKED
    found = ours(PROMPTS[0], **asked).images
    kept = ours("x", **asked | {"num_inference_steps": 2}).images
    assert apart(found[..., :4], kept[..., :4]) <= 1e-5  # the same sample of the picture's posterior
    assert apart(found[..., 4:], kept[..., 4:]) > 0.01


def test_a_picture_begun_from_does_not_depend_on_its_batch(ours):
    asked = {"image": noise_picture(), "strength": 0.6, "solver": "ddpm"} | ASKED
    whole = ours(PROMPTS * 2, seeds=[1, 2, 3, 4], **asked).images
    assert apart(ours(PROMPTS[1], seeds=4, **asked).images, whole[3:]) <= 1e-5
    cut = ours(PROMPTS * 2, seeds=[1, 2, 3, 4], batch_size=3, **asked).images
    assert apart(cut, whole) <= 1e-5


def test_another_size_is_cropped_and_said(ours):
    with pytest.warns(UserWarning, match="the image of 40x20 is cropped in the middle and resized to 16x16"):
        found = ours("x", image=noise_picture((40, 20)), seeds=0, **ASKED).images
    assert found.shape == (1, 4, 8, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 0.5}, "image: needed where strength is given"),
        ({"mask_image": half_mask()}, "image: needed where mask_image is given"),
        ({"image": noise_picture(), "strength": 0.0}, "strength = 0.0: not in 0..1"),
        ({"image": noise_picture(), "strength": 1.1}, "strength = 1.1: not in 0..1"),
        ({"image": noise_picture(), "strength": 0.1}, "leaves none of 5 steps"),
        ({"image": noise_picture(), "mask_image": half_mask((8, 16))}, "mask_image: is 8x16, but the image 16x16"),
        ({"image": noise_picture(), "mask_image": Image.new("L", (16, 16))}, "mask_image: has nothing white"),
        ({"image": torch.zeros(3, 8, 8)}, r"image: has shape \(3, 8, 8\)"),
        ({"image": torch.full((3, 16, 16), 2.0)}, r"outside of \[-1, 1\]"),
        ({"image": "cat.png"}, "image: str, not"),
    ],
)
def test_faults_are_named(ours, options, message):
    with pytest.raises(ValueError, match=message):
        ours("x", **options, num_inference_steps=5)


def test_a_unet_for_inpainting_needs_picture_and_mask(nine):
    with pytest.raises(ValueError, match="image: needed beside a mask, as this U-Net was trained for inpainting"):
        nine[0]("x")
    with pytest.raises(ValueError, match="mask_image: needed, as this U-Net was trained for inpainting"):
        nine[0]("x", image=noise_picture())
