"""Tiles: what they are blended to, and that one tile is the whole."""

from fractions import Fraction
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from t2i.autoencoder.kl import AutoencoderKL, AutoencoderKLConfig
from t2i.autoencoder.metrics import psnr
from t2i.autoencoder.tiles import check_tile, tiled, tiled_decode, tiled_encode

GLYPHS = Path(__file__).parents[2] / "checkpoints" / "glyphs"


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    config = AutoencoderKLConfig(block_out_channels=(16, 16, 24), norm_num_groups=8, mid_block_add_attention=False)
    return AutoencoderKL(config).eval()


@torch.no_grad()
def test_one_tile_is_exactly_the_whole(vae):
    x = torch.randn(2, 3, 24, 32)
    z = vae.encode(x)
    assert torch.equal(tiled_encode(vae, x, 32).mean, z.mean) and torch.equal(tiled_encode(vae, x, 32).logvar, z.logvar)
    assert torch.equal(tiled_decode(vae, z.mean, 32), vae.decode(z.mean))


@torch.no_grad()
def test_a_smooth_image_by_tiles_is_nearly_the_whole():
    """Of a trained VAE: one with random weights takes its group norms' statistics from noise."""
    vae = AutoencoderKL.load(GLYPHS / "vae")
    down, across = torch.meshgrid(torch.linspace(-1, 1, 96), torch.linspace(-1, 1, 128), indexing="ij")
    x = 0.8 - 0.1 * torch.stack([down, across, down * across])[None]
    z, by_tiles = vae.encode(x).mean, tiled_encode(vae, x, 64).mean
    assert (by_tiles - z).square().mean() < 0.05 * z.var()
    y = vae.decode(z)
    assert 28 < psnr(tiled_decode(vae, z, 64), y).item() < 100


@pytest.mark.parametrize(("height", "width", "tile"), [(16, 41, 16), (37, 16, 20), (50, 33, 12)])
@pytest.mark.parametrize("scale", [Fraction(4), Fraction(1, 2)])
def test_what_sees_no_edges_is_blended_without_a_trace(height, width, tile, scale):
    height, width, tile = (2 * side for side in (height, width, tile))
    x = torch.randn(2, 3, height, width)

    def f(part):
        assert max(part.shape[2:]) <= tile
        return F.interpolate(part, scale_factor=float(scale), mode="nearest")

    whole = F.interpolate(x, scale_factor=float(scale), mode="nearest")
    torch.testing.assert_close(tiled(f, x, tile, scale, 2), whole)


def test_seams_have_no_step():
    """Tiles that disagree by a constant: the blend goes from one to the other in small steps."""
    count = iter(range(10))
    out = tiled(lambda part: torch.full_like(part, float(next(count))), torch.zeros(1, 1, 16, 28), 16, Fraction(1))
    row = out[0, 0, 5]
    assert row[0] == 0 and row[-1] == 1
    assert (row.diff() >= 0).all() and row.diff().max() < 0.4


@pytest.mark.parametrize("tile", [0, 12, 18])
def test_tiles_that_latents_do_not_fill_are_refused(vae, tile):
    with pytest.raises(ValueError, match=f"a tile of {tile} pixels"):
        check_tile(vae, tile)
