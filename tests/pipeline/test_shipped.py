"""The shipped checkpoint: what stock diffusers makes of it, and pictures that do not depend on their company."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel

from t2i.conditioning import Conditioning
from t2i.pipeline import Pipeline
from t2i.text.towers import ImageTower

from .tiny import apart

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
GLYPHS = CHECKPOINTS / "glyphs"
PROMPTS = ["red anvil icon on a yellow background", "frog, noto emoji"]


@pytest.fixture(scope="module")
def shipped():
    return Pipeline.from_pretrained(GLYPHS)


@pytest.fixture(scope="module")
def stock_shipped():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = StableDiffusionPipeline.from_pretrained(GLYPHS, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_everything_shipped_fits():
    assert sum(f.stat().st_size for f in CHECKPOINTS.rglob("*") if f.is_file()) <= 40 * 2**20
    assert sum(f.stat().st_size for f in GLYPHS.rglob("*") if f.is_file()) <= 24 * 2**20
    assert sum(f.stat().st_size for f in (CHECKPOINTS / "features").iterdir()) <= 2 * 2**20
    assert not [f for f in CHECKPOINTS.rglob("*") if f.suffix in (".bin", ".pt", ".ckpt", ".pkl")]


def test_the_image_tower_loads():
    tower = ImageTower.load(CHECKPOINTS / "features")
    assert torch.isfinite(tower(torch.zeros(1, 3, 64, 64))).all()


@pytest.mark.parametrize(("part", "cls"), [("unet", UNet2DConditionModel), ("vae", AutoencoderKL)])
def test_stock_finds_every_key(part, cls):
    _, found = cls.from_pretrained(GLYPHS / part, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert not found["mismatched_keys"]


@torch.no_grad()
def test_networks_agree(shipped, stock_shipped):
    draw = torch.Generator().manual_seed(0)
    config = shipped.generator.unet.config
    x = torch.randn(2, config.in_channels, config.sample_size, config.sample_size, generator=draw)
    tokens = shipped.text_encoder(PROMPTS).conditioning.tokens
    stock_tokens = stock_shipped.encode_prompt(PROMPTS, "cpu", 1, False)[0]
    assert apart(tokens, stock_tokens) <= 1e-5
    cond = Conditioning(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))
    t = torch.tensor([20, 980])
    assert apart(shipped.generator.unet(x, t, cond), stock_shipped.unet(x, t, tokens).sample) <= 1e-5
    pixels = shipped.autoencoder.decode(x)
    assert apart(pixels, stock_shipped.vae.decode(x).sample) <= 1e-5
    moments = stock_shipped.vae.encode(pixels).latent_dist
    assert apart(shipped.autoencoder.encode(pixels).mean, moments.mean) <= 1e-5


def test_ddim_makes_stocks_pictures(shipped, stock_shipped):
    seeds = [11, 12]
    for kind, limit in (("latent", 1e-3), ("np", 2 / 255)):
        ours = shipped(PROMPTS, seeds=seeds, output_type=kind).images
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        options = {"num_inference_steps": 25, "guidance_scale": 4.0, "generator": generators, "output_type": kind}
        stock = stock_shipped(PROMPTS, **options).images
        assert (apart(ours, stock) if kind == "latent" else np.abs(ours - stock).max()) <= limit


def test_a_picture_does_not_depend_on_its_company(shipped):
    prompts = [*PROMPTS, "strawberry, firefox emoji", "white dragon icon on a blue background"] * 2
    seeds = list(range(8))
    together = shipped(prompts, seeds=seeds, output_type="np").images
    alone = np.concatenate(
        [shipped([p], seeds=[s], output_type="np").images for p, s in zip(prompts, seeds, strict=True)]
    )
    backwards = shipped(prompts[::-1], seeds=seeds[::-1], output_type="np").images[::-1]
    assert np.abs(together - alone).max() <= 2 / 255
    assert np.abs(together - backwards).max() <= 2 / 255
    assert np.abs(together[0] - together[4]).max() > 10 / 255  # the same prompt, another seed
