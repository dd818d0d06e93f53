"""Variations, prompts between prompts, guidance's options, the VAE's half precision and tiles, previews."""

import pytest
import torch

from t2i.errors import RunFailed
from t2i.pipeline import Pipeline
from t2i.pipeline.encode import encode
from t2i.pipeline.noise import slerp
from t2i.pipeline.preview import fit_latent_rgb
from t2i.pipeline.request import Request
from t2i.text.prompts import encode_prompts

from .tiny import apart, make_pipeline

ASKED = {"num_inference_steps": 3, "output_type": "latent"}


def noise(seed, shape=(1, 4, 8, 8)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_slerp_goes_along_the_arc():
    a, b = torch.tensor([[2.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 2.0], [1.0, 0.0]])
    half = slerp(a, b, 0.5)
    torch.testing.assert_close(half, torch.tensor([[2**0.5, 2**0.5], [1.0, 0.0]]))
    for share, end in ((0.0, a), (1.0, b)):
        torch.testing.assert_close(slerp(a, b, share), end)
    torch.testing.assert_close(slerp(torch.zeros(1, 3), torch.ones(1, 3), 0.25), torch.full((1, 3), 0.25))


def test_a_prompt_between_two_has_the_tokens_of_both(ours):
    """The mask is that of the longer prompt on either side, so that no real token of it is masked."""
    short, long = "a", "two green triangles on grey"
    for prompt, aim in ((short, long), (long, short)):
        request = Request(prompt=[prompt], towards=[(aim, 0.5)], clip_skip=1)
        texts = encode(ours.text_encoder, [prompt], None, request)
        expected = ours.text_encoder([long]).conditioning.mask
        assert texts.states.mask[texts.rows].equal(expected) and expected.sum() > 3


def test_variations_turn_the_noise_of_one_seed(ours):
    found = ours("a red circle", seeds=5, num_images_per_prompt=2, variation_seeds=8, variation_strength=0.2, **ASKED)
    assert found.seeds == [5, 5]
    start = torch.cat([slerp(noise(5), noise(8), 0.2), slerp(noise(5), noise(9), 0.2)])
    expected = ours("a red circle", num_images_per_prompt=2, latents=start, seeds=0, **ASKED).images
    assert apart(found.images, expected) <= 1e-5
    assert abs(start.std().item() - 1) < 0.1


def test_full_variation_is_the_other_seeds_start(ours):
    found = ours("a red circle", seeds=5, variation_seeds=8, variation_strength=1.0, **ASKED).images
    assert apart(found, ours("a red circle", seeds=8, **ASKED).images) <= 1e-5


def test_a_prompt_on_its_way_to_another(ours):
    a, b = (ours.text_encoder([text]).conditioning.tokens for text in ("a red circle", "a blue square"))
    between = slerp(a[0], b[0], 0.25)[None]
    found = ours(["a red circle", "x"], seeds=[1, 1], towards=[("a blue square", 0.25), None], **ASKED).images
    assert apart(found[:1], ours(prompt_embeds=between, seeds=1, **ASKED).images) <= 1e-5
    assert apart(found[1:], ours("x", seeds=1, **ASKED).images) <= 1e-5


def test_guidance_only_in_its_interval(ours):
    sizes = []
    hook = ours.generator.unet.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    inside = ours("x", seeds=0, num_inference_steps=4, output_type="latent", guidance_interval=(0.3, 0.8)).images
    whole = ours("x", seeds=0, num_inference_steps=4, output_type="latent").images
    hook.remove()
    assert apart(inside, whole) > 1e-4
    assert sizes == [1, 2, 2, 1, 2, 2, 2, 2]


@pytest.mark.parametrize("option", [{"clip_skip": 2}, {"prompt_syntax": "a1111"}, {"long_prompts": True}])
def test_prompts_are_read_as_asked(ours, option):
    text = "a (red:1.5) circle and a blue square and a green triangle and a large red square"
    encoder = ours.text_encoder.with_clip_skip(option.get("clip_skip", 1))
    states = encode_prompts(
        encoder, [text, "y"], syntax=option.get("prompt_syntax", "plain"), chunks=option.get("long_prompts", False)
    ).conditioning.tokens
    expected = ours(prompt_embeds=states[:1], negative_prompt_embeds=states[1:], seeds=0, **ASKED).images
    found = ours(text, "y", seeds=0, batch_size=1, **option, **ASKED)
    assert apart(found.images, expected) <= 1e-6
    assert apart(ours(text, "y", seeds=0, **ASKED).images, expected) > 1e-5
    assert (found.truncated == [""]) == ("long_prompts" in option)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variation_strength": 0.5}, "variation_seeds: needed"),
        ({"variation_seeds": 1}, "variation_strength: needed, above 0"),
        ({"variation_seeds": 1, "variation_strength": 2.0}, r"variation_strength = 2.0: not in 0\.\.1"),
        ({"variation_seeds": [1, 2], "variation_strength": 0.5}, "variation_seeds: 2 given, 1 needed: one an image"),
        ({"towards": [("y", 1.5)]}, "the fraction 1.5 of the way to 'y'"),
        ({"towards": [None, None]}, "towards: 2 given; one"),
        ({"guidance_rescale": 2.0}, "guidance_rescale = 2.0"),
        ({"spacing": "even"}, "'even'"),
        ({"sigmas": "even"}, "'even'"),
        ({"clip_skip": 9}, "clip skip = 9"),
        ({"clip_skip": 0}, "clip skip = 0"),
        ({"prompt_syntax": "b"}, "prompt_syntax = 'b': unknown"),
    ],
)
def test_faults_are_named(ours, options, message):
    with pytest.raises(ValueError, match=message):
        ours("x", **options, num_inference_steps=2)


def overflowing():
    """A VAE whose decoder's first map half precision cannot hold, and whose config does not say so."""
    pipeline = make_pipeline(vae={"force_upcast": False})
    with torch.no_grad():
        pipeline.autoencoder.decoder.conv_in.weight.mul_(2e5)
    return pipeline


@pytest.mark.parametrize("retry", [torch.float32, torch.bfloat16])
def test_a_vae_that_overflows_in_half_precision_is_run_again(retry):
    pipeline = overflowing()
    expected = pipeline.decode(noise(0))
    pipeline.autoencoder.to(torch.float16)
    pipeline.vae_runner.retry = retry
    with pytest.warns(UserWarning, match=f"overflows in float16: it runs in {str(retry)[6:]}"):
        found = pipeline.decode(noise(0))
    assert apart(found, expected) < 0.1
    assert next(pipeline.autoencoder.parameters()).dtype == retry


def test_a_vae_that_is_still_not_finite_is_a_failed_run():
    pipeline = overflowing()
    with torch.no_grad():
        pipeline.autoencoder.decoder.conv_out.bias.fill_(float("nan"))
    pipeline.autoencoder.to(torch.float16)
    with pytest.warns(UserWarning, match="overflows"), pytest.raises(RunFailed, match="the VAE put out non-finite"):
        pipeline.decode(noise(0))


def test_tiles_and_slices(folder):
    pipeline = Pipeline.from_pretrained(folder)
    latents = noise(0, (2, 4, 16, 12))
    whole = pipeline.decode(latents)
    pipeline.enable_vae_slicing()
    assert apart(pipeline.decode(latents), whole) <= 1e-5
    pipeline.enable_vae_tiling(32)
    assert apart(pipeline.decode(latents), whole) <= 1e-5  # one tile
    pipeline.enable_vae_tiling(16)
    assert pipeline.decode(latents).shape == whole.shape and apart(pipeline.decode(latents), whole) > 1e-4
    with pytest.raises(ValueError, match="a tile of 15 pixels"):
        pipeline.enable_vae_tiling(15)


def test_previews_are_what_a_linear_decoder_makes():
    factors, bias = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)) * 0.05, torch.tensor([0.1, -0.2, 0.0])
    latents = noise(0, (2, 4, 6, 5))
    colours = torch.einsum("bchw,cr->brhw", latents, factors) + bias[:, None, None]
    found = fit_latent_rgb(latents, colours.clamp(-1, 1).repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert colours.abs().max() <= 1
    torch.testing.assert_close(found.factors, factors, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.bias, bias, atol=1e-4, rtol=1e-4)
    assert [picture.size for picture in found(latents)] == [(5, 6)] * 2


def test_the_models_own_map_is_used_and_kept(folder, tmp_path):
    pipeline = Pipeline.from_pretrained(folder)
    pipeline.fit_preview()
    pipeline.save_pretrained(tmp_path / "again")
    again = Pipeline.from_pretrained(tmp_path / "again")
    assert again.defaults == pipeline.defaults and again.defaults.latent_rgb_factors is not None
    latents = noise(1)
    assert list(again.preview(latents)[0].getdata()) == list(pipeline.preview(latents)[0].getdata())
