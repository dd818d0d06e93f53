import numpy as np
import pytest
import torch
from PIL import Image

from t2i.data.transforms import prepare, to_pixels
from t2i.errors import RunFailed


def test_every_byte_survives_the_round_trip():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(np.stack([levels, levels.T, 255 - levels], -1))
    x = prepare(image, 16)
    assert x.shape == (3, 16, 16) and x.min() == -1 and x.max() == 1
    assert x[0, 0, 1].item() == pytest.approx(1 / 127.5 - 1)
    assert np.array_equal(np.array(to_pixels(x[None])[0]), np.array(image))


def test_short_side_is_fitted_and_the_centre_kept():
    image = Image.new("RGB", (300, 100), "blue")
    image.paste("red", (100, 0, 200, 100))
    x = prepare(image, 50)
    assert x.shape == (3, 50, 50)
    inner = x[:, :, 2:-2]
    assert torch.equal(inner, torch.tensor([1.0, -1, -1]).view(3, 1, 1).expand_as(inner))
    upright = prepare(image.rotate(90, expand=True), 50)
    assert torch.equal(upright, x.rot90(1, (1, 2)))


def test_size_is_width_then_height():
    assert prepare(Image.new("RGB", (64, 64)), (24, 16)).shape == (3, 16, 24)
    wide = Image.new("RGB", (90, 30), "white")
    assert torch.equal(prepare(wide, (60, 20)), torch.ones(3, 20, 60))


def test_reduction_is_antialiased():
    """A one-pixel checkerboard is gray from afar; a resize without antialias picks black or white."""
    board = np.indices((128, 128)).sum(0) % 2 * 255
    image = Image.fromarray(np.repeat(board[..., None], 3, -1).astype(np.uint8))
    assert prepare(image, 16).abs().max() < 0.05


@pytest.mark.parametrize("size", [(1, 1), (1, 1000), (997, 3), (7, 5)])
def test_odd_sizes(size):
    assert torch.equal(prepare(Image.new("RGB", size, "white"), (31, 17)), torch.ones(3, 17, 31))


def test_values_outside_are_clamped_and_rounded():
    x = torch.tensor([-3.0, 3.0, 0.0039]).view(1, 1, 1, 3).expand(1, 3, 1, 3)
    assert np.array(to_pixels(x)[0])[0, :, 0].tolist() == [0, 255, 128]


def test_non_finite_pixels_fail_the_run():
    x = torch.zeros(2, 3, 4, 4)
    x[1, 2, 3, 3] = float("nan")
    with pytest.raises(RunFailed, match="non-finite"):
        to_pixels(x)
