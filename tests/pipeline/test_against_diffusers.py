"""The same folder, prompts and seeds in stock diffusers."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from .tiny import apart

PROMPTS = ["a red circle", "a blue square on grey"]
STEPS = 5  # stock's DDIM takes T // n as its stride, so that it follows its own list only where n divides T = 1000
STOCK = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler, "dpm++2m": DPMSolverMultistepScheduler}


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def stock_images(stock, solver="ddim", **options):
    stock.scheduler = STOCK[solver].from_config(stock.scheduler.config)
    options = {"num_inference_steps": STEPS, "guidance_scale": 4.0, "output_type": "latent"} | options
    return stock(PROMPTS, **options).images


@pytest.mark.parametrize(("solver", "eta"), [("ddim", 0.0), ("ddim", 0.5), ("ddpm", 0.0), ("dpm++2m", 0.0)])
def test_latents_and_pictures(ours, stock, solver, eta):
    asked = {"num_inference_steps": STEPS, "guidance_scale": 4, "solver": solver, "eta": eta, "seeds": [3, 9]}
    latents = ours(PROMPTS, output_type="latent", **asked).images
    expected = stock_images(stock, solver, eta=eta, generator=generators(3, 9))
    assert apart(latents, expected) <= 1e-4
    assert apart(latents[:1], latents[1:]) > 0.1
    pictures = ours(PROMPTS, output_type="np", **asked).images
    expected = stock_images(stock, solver, eta=eta, generator=generators(3, 9), output_type="np")
    assert pictures.shape == expected.shape == (2, 16, 16, 3)
    assert np.abs(pictures - expected).max() <= 2 / 255


def test_one_generator_draws_the_whole_batch_at_every_batch_size(ours, stock):
    expected = stock_images(stock, eta=0.5, generator=torch.Generator().manual_seed(5), num_images_per_prompt=2)
    asked = {"num_inference_steps": STEPS, "eta": 0.5, "num_images_per_prompt": 2, "output_type": "latent"}
    for batch_size in (8, 3):
        drawn = ours(PROMPTS, generator=torch.Generator().manual_seed(5), batch_size=batch_size, **asked)
        assert apart(drawn.images, expected) <= 1e-4
        assert drawn.seeds is None


@pytest.mark.parametrize("negative", ["a green triangle", ["a red square", ""]])
def test_negative_prompts(ours, stock, negative):
    expected = stock_images(
        stock, negative_prompt=[negative] * 2 if isinstance(negative, str) else negative, generator=generators(0, 1)
    )
    asked = {"num_inference_steps": STEPS, "seeds": 0, "output_type": "latent"}
    assert apart(ours(PROMPTS, negative, **asked).images, expected) <= 1e-4
    assert apart(ours(PROMPTS, **asked).images, expected) > 1e-3


def test_guidance_one_and_copies_in_prompt_order(ours, stock):
    expected = stock_images(stock, guidance_scale=1.0, generator=generators(7, 8, 9, 10), num_images_per_prompt=2)
    asked = {"num_inference_steps": STEPS, "guidance_scale": 1, "num_images_per_prompt": 2, "output_type": "latent"}
    found = ours(PROMPTS, seeds=7, **asked)
    assert apart(found.images, expected) <= 1e-4
    assert found.seeds == [7, 8, 9, 10]


def test_given_latents_and_a_size_that_only_the_latent_factor_divides(ours, stock):
    start = torch.randn(2, 4, 7, 9, generator=torch.Generator().manual_seed(1))
    size = {"height": 14, "width": 18}
    expected = stock_images(_any_size(stock), latents=start, **size)
    assert apart(ours(PROMPTS, num_inference_steps=STEPS, latents=start, output_type="latent").images, expected) <= 1e-4
    pictures = ours(PROMPTS, num_inference_steps=2, **size).images
    assert [picture.size for picture in pictures] == [(18, 14)] * 2


def _any_size(stock):
    """Stock asks for multiples of 8 whatever the latents' factor is; the network does not."""
    stock.check_inputs = lambda *args, **options: None
    return stock


def test_prompt_embeds_are_the_text_encoders_states(ours, stock):
    states = ours.text_encoder([*PROMPTS, "a green triangle"]).conditioning.tokens
    asked = {"num_inference_steps": STEPS, "seeds": 0, "output_type": "latent"}
    expected = ours(PROMPTS, "a green triangle", **asked).images
    found = ours(prompt_embeds=states[:2], negative_prompt_embeds=states[2:], **asked).images
    assert apart(found, expected) <= 1e-5
    stock_states, _ = stock.encode_prompt(PROMPTS, "cpu", 1, False)
    assert apart(states[:2], stock_states) <= 1e-5


def test_the_callback_sees_and_may_change_what_stocks_does(ours, stock):
    seen = {"ours": [], "stock": []}

    def watch(name):
        def callback(pipeline, index, timestep, tensors):
            seen[name].append((index, int(timestep)))
            return {"latents": tensors["latents"] + 0.1 * index}

        return callback

    expected = stock_images(stock, generator=generators(0, 1), callback_on_step_end=watch("stock"))
    asked = {"num_inference_steps": STEPS, "seeds": 0, "output_type": "latent"}
    found = ours(PROMPTS, callback_on_step_end=watch("ours"), **asked).images
    assert apart(found, expected) <= 1e-4
    assert apart(ours(PROMPTS, **asked).images, expected) > 1e-3
    assert seen["ours"] == seen["stock"] and len(seen["ours"]) == STEPS
