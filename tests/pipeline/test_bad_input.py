"""Every fault of a caller's is a ValueError that names it, before anything is computed."""

import pytest
import torch
from pipeline.tiny import make_pipeline

RNG = torch.Generator()


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ("x", {"height": 15}, "height = 15: not a multiple of 2, the latents' factor; 16 is near"),
        ("x", {"width": 4098}, r"width = 4098: not in 1\.\.4096"),
        ("x", {"width": 0}, "width = 0"),
        ("x", {"num_inference_steps": 0}, r"num_inference_steps = 0: not in 1\.\.1000"),
        ("x", {"num_inference_steps": 1001}, r"num_inference_steps = 1001: not in 1\.\.1000"),
        ([], {}, "prompt: empty"),
        (None, {}, "prompt or prompt_embeds"),
        (["a", 3], {}, r"prompt\[1\] = 3: int, not a string"),
        ("x", {"solver": "dmp++2m"}, "did you mean 'dpm\\+\\+2m'"),
        ("x", {"solver": "ddpm", "eta": 0.5}, "eta = 0.5: solver 'ddpm' has no use for it"),
        ("x", {"eta": 1.5}, "eta = 1.5"),
        ("x", {"guidance_scale": float("nan")}, "guidance_scale = nan"),
        ("x", {"guidance_scale": -1.0}, "guidance_scale = -1"),
        (["a", "b"], {"negative_prompt": ["a"]}, "negative_prompt: 1 given, 2 needed: one a prompt"),
        (["a"], {"negative_prompt": [None]}, r"negative_prompt\[0\] = None"),
        (["a", "b"], {"seeds": [1]}, "seeds: 1 given, 2 needed: one an image"),
        ("a", {"seeds": -1}, "seeds: -1, of image 0"),
        (["a", "b"], {"seeds": 2**63 - 1}, "of image 1"),
        ("a", {"seeds": 1, "generator": RNG}, "seeds: given beside generator"),
        (["a", "b"], {"generator": [RNG]}, "generator: 1 given, 2 needed: one an image"),
        ("a", {"num_images_per_prompt": 0}, "num_images_per_prompt = 0"),
        ("a", {"batch_size": 0}, "batch_size = 0"),
        (["a"] * 101, {"num_images_per_prompt": 100}, "10100 images"),
        ("a", {"latents": torch.zeros(1, 3, 8, 8)}, r"latents: has shape \(1, 3, 8, 8\); \(1, 4, 8, 8\)"),
        ("a", {"latents": torch.full((1, 4, 8, 8), torch.nan)}, "latents: holds non-finite"),
        ("a", {"output_type": "jpeg"}, "output_type = 'jpeg'"),
        ("a", {"prompt_embeds": torch.zeros(1, 12, 32)}, "prompt or prompt_embeds"),
        (None, {"prompt_embeds": torch.zeros(1, 12, 31)}, r"\(prompts, tokens, 32\)"),
        (None, {"prompt_embeds": torch.zeros(1, 11, 32)}, "equally many"),
        (
            "a",
            {"negative_prompt": "b", "negative_prompt_embeds": torch.zeros(1, 12, 32)},
            "give one of the two",
        ),
        (["a"] * 3, {"negative_prompt_embeds": torch.zeros(2, 12, 32)}, "has 2 rows"),
    ],
)
def test_faults_of_a_request(ours, prompts, options, message):
    with pytest.raises(ValueError, match=message):
        ours(prompts, **options)


def test_a_device_that_is_not_there(ours):
    name = "cuda:99" if torch.cuda.is_available() else "cuda"
    with pytest.raises(ValueError, match=f"device = '{name}': cannot be used here"):
        ours.to(name)
    with pytest.raises(ValueError, match="device = 'gpu': cannot be used here"):
        ours.to("gpu")


def test_a_callback_that_returns_what_cannot_be_changed(ours):
    with pytest.raises(ValueError, match="prompt_embeds"):
        ours("a", num_inference_steps=1, callback_on_step_end=lambda *_: {"prompt_embeds": torch.zeros(1)})


@pytest.mark.parametrize("channels", [5, 7, 8])
def test_unets_that_read_more_than_latents_are_named(channels):
    kinds = {5: "depth-to-image", 7: "upscaler", 8: "InstructPix2Pix"}
    with pytest.raises(ValueError, match=f"`in_channels` = {channels}: .*{kinds[channels]}"):
        make_pipeline(unet={"in_channels": channels})


@pytest.mark.parametrize("text", ["fox \ud83d", "a\udcff fox"])
@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
def test_text_that_is_no_unicode_is_refused_by_name(text, name):
    with pytest.raises(ValueError, match=f"{name}: character . of .* is no Unicode text"):
        make_pipeline()(**({"prompt": "a"} | {name: text}))


def test_text_without_end_is_refused_before_it_is_read():
    with pytest.raises(ValueError, match="prompt: 3,000,000 characters of text; 100,000 are allowed"):
        make_pipeline()("x" * 3_000_000)
