"""What a picture depends on, and what comes back."""

import numpy as np
import pytest
import torch

from t2i.errors import RunFailed
from t2i.pipeline import Pipeline

from .tiny import apart, make_pipeline

PROMPTS = ["a red circle", "a blue square", "two green triangles", "a large red square"] * 2


@pytest.mark.parametrize(("solver", "eta"), [("ddim", 0.5), ("ddpm", 0.0)])
def test_a_picture_alone_is_the_picture_in_a_batch_of_eight(ours, solver, eta):
    asked = {"solver": solver, "eta": eta, "num_inference_steps": 5}
    order, seeds = [5, 2, 7, 0, 1, 6, 3, 4], [11, 2**40, 13, 14, 0, 16, 17, 18]
    latents = ours([PROMPTS[i] for i in order], seeds=[seeds[i] for i in order], output_type="latent", **asked).images
    pictures = ours([PROMPTS[i] for i in order], seeds=[seeds[i] for i in order], output_type="np", **asked).images
    for i in (0, 6):
        alone = {"seeds": [seeds[i]]} | asked
        k = order.index(i)
        assert apart(latents[k : k + 1], ours(PROMPTS[i], output_type="latent", **alone).images) <= 1e-5
        assert np.abs(pictures[k] - ours(PROMPTS[i], output_type="np", **alone).images[0]).max() <= 2 / 255


def test_batches_change_no_picture_and_copies_count_seeds_prompt_by_prompt(ours):
    asked = {"num_inference_steps": 3, "num_images_per_prompt": 3, "output_type": "latent"}
    whole = ours(PROMPTS[:3], ["", "a red square", "x"], seeds=5, **asked)
    cut = ours(PROMPTS[:3], ["", "a red square", "x"], seeds=5, batch_size=2, **asked)
    assert whole.seeds == cut.seeds == list(range(5, 14))
    assert apart(cut.images, whole.images) <= 1e-5
    fifth = ours(PROMPTS[1], "a red square", seeds=9, output_type="latent", num_inference_steps=3).images
    assert apart(whole.images[4:5], fifth) <= 1e-5


def test_equal_prompts_are_encoded_once(ours):
    encoded = []
    hook = ours.text_encoder.register_forward_pre_hook(lambda _, args: encoded.extend(args[0]))
    ours(PROMPTS, "a red circle", num_inference_steps=1, batch_size=2)
    hook.remove()
    assert encoded == PROMPTS[:4]


def test_output_types_agree(ours):
    np_, pt, pil = (
        ours(PROMPTS[:2], seeds=0, num_inference_steps=2, output_type=kind).images for kind in ("np", "pt", "pil")
    )
    assert np_.shape == (2, 16, 16, 3) and np_.dtype == np.float32 and 0 <= np_.min() < np_.max() <= 1
    assert np.array_equal(np_, pt.permute(0, 2, 3, 1).numpy())
    assert np.abs(np.stack([np.array(p) for p in pil]) / 255 - np_).max() <= 0.51 / 255
    pt.requires_grad_().mul(2).sum().backward()  # not a tensor of inference mode


def test_without_a_seed_one_is_drawn_and_reported(ours):
    asked = {"num_inference_steps": 1, "output_type": "latent"}
    first, second = (ours(PROMPTS[:2], **asked) for _ in range(2))
    assert first.seeds != second.seeds and first.seeds[1] == first.seeds[0] + 1
    assert torch.equal(ours(PROMPTS[:2], seeds=first.seeds, **asked).images, first.images)


def test_what_does_not_fit_is_reported(ours):
    long = "a red circle and a blue square and a green triangle and a large red square"
    found = ours([long, "a red circle"], long, num_inference_steps=1)
    assert long.endswith(found.truncated[0]) and found.truncated[0] and found.truncated[1] == ""
    assert found.negative_truncated == [found.truncated[0]] * 2


def test_guidance_one_says_that_the_negative_prompt_is_ignored(ours):
    asked = {"num_inference_steps": 2, "guidance_scale": 1, "seeds": 0, "output_type": "latent"}
    with pytest.warns(UserWarning, match="negative prompt is ignored"):
        found = ours("a red circle", "a blue square", **asked).images
    assert torch.equal(found, ours("a red circle", **asked).images)


def test_the_defaults_are_the_models(ours):
    settings = {"num_inference_steps": 5, "guidance_scale": 4, "solver": "ddim", "height": 16, "width": 16}
    given = ours("a red circle", **settings, seeds=0, output_type="latent").images
    assert torch.equal(ours("a red circle", seeds=0, output_type="latent").images, given)


@pytest.mark.parametrize("stage", ["text encoder", "U-Net", "VAE"])
def test_non_finite_values_are_a_failed_run_that_names_the_stage(stage):
    pipeline = make_pipeline()
    weight = {
        "text encoder": pipeline.text_encoder.tower.final_layer_norm.weight,
        "U-Net": pipeline.generator.unet.conv_out.weight,
        "VAE": pipeline.autoencoder.decoder.conv_out.weight,
    }[stage]
    with torch.no_grad():
        weight.view(-1)[0] = float("nan")
    with pytest.raises(RunFailed, match=f"the {stage} put out non-finite"):
        pipeline("a red circle", num_inference_steps=1)


def test_half_precision_keeps_a_vae_that_overflows_in_float32(folder):
    fp32 = Pipeline.from_pretrained(folder)
    expected = fp32("a red circle", seeds=0, output_type="pt").images
    with torch.no_grad():  # the decoder's last map is 1e5 times as large, which half precision cannot hold
        fp32.autoencoder.decoder.conv_in.weight.mul_(1e6)
        fp32.autoencoder.decoder.conv_in.bias.mul_(1e6)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert fp32.to(dtype=torch.float16).decode(latents).isfinite().all()
    assert fp32.generator.unet.conv_in.weight.dtype == torch.float16
    bf16 = Pipeline.from_pretrained(folder).to("cpu", torch.bfloat16)
    assert bf16.autoencoder.decoder.conv_in.weight.dtype == torch.bfloat16
    assert (bf16("a red circle", seeds=0, output_type="pt").images - expected).abs().max() < 0.1
