"""The autoencoder's task."""

import pytest
import torch

from t2i.autoencoder.kl import AutoencoderKL
from t2i.files import read_json

from . import tiny


def test_overfits_four_pictures(tmp_path):
    values = tiny.vae(tmp_path, pictures=4, steps=150, lr=5e-3, warmup_steps=10, validate_every=150)
    values["validation"] = values["data"]
    values["vae"] = tiny.VAE | {"block_out_channels": [16, 16]}
    tiny.run("vae", values)
    loss = tiny.curve(tmp_path)
    assert loss[-10:].mean() < loss[0] / 5 and loss[-10:].mean() < 0.12
    figures = tiny.rows(tmp_path, "validation.psnr")[-1]
    assert figures["validation.psnr"] > 15 and figures["validation.active_units"] > 32
    assert (tmp_path / "samples" / "step_0000150.png").is_file()


def test_batches_are_functions_of_seed_step_and_sample(tmp_path):
    task = tiny.task("vae", tiny.vae(tmp_path, pictures=6, steps=1))
    stream = torch.cat([task.order(step, 4, 0) for step in range(6)])
    assert all(sorted(epoch.tolist()) == list(range(6)) for epoch in stream.split(6))
    assert not task.order(0, 6, 0).equal(task.order(0, 6, 1))
    pair, alone = task.batch(torch.tensor([3, 5]), 7), task.batch(torch.tensor([5]), 7)
    assert pair["pixels"][1:].equal(alone["pixels"]) and pair["eps"][1:].equal(alone["eps"])
    assert not pair["eps"][0].equal(pair["eps"][1])
    assert not task.batch(torch.tensor([5]), 8)["eps"].equal(alone["eps"])
    other = tiny.task("vae", tiny.vae(tmp_path, pictures=6, steps=1) | {"seed": 1})
    assert not other.batch(torch.tensor([5]), 7)["eps"].equal(alone["eps"])
    assert not other.vae.encoder.conv_in.weight.equal(task.vae.encoder.conv_in.weight)


def test_the_scale_is_measured_on_the_training_latents(tmp_path):
    task = tiny.task("vae", tiny.vae(tmp_path, steps=1))
    with torch.no_grad():
        task.export(task.networks, tmp_path)
        vae = AutoencoderKL.load(tmp_path / "vae")
        posterior = vae.encode(task.images.batch(list(range(8))))
        draws = torch.stack([posterior.sample(torch.randn(posterior.mean.shape)) for _ in range(400)])
        report = task.finish(task.networks)
    assert (draws * vae.config.scaling_factor).std().item() == pytest.approx(1, abs=0.02)
    written = read_json(tmp_path / "vae" / "config.json")
    assert report["scaling_factor"] == vae.config.scaling_factor == written["scaling_factor"]
    assert vae.config.sample_size == 16


def test_validation_is_deterministic_and_draws_nothing(tmp_path):
    task = tiny.task("vae", tiny.vae(tmp_path, steps=1))
    with torch.no_grad():
        first = task.validate(task.networks)
        torch.manual_seed(5)
        assert task.validate(task.networks) == first
        assert task.samples(task.networks).shape == (4, 3, 16, 16)


def test_goes_on_from_another_autoencoder(straight, tmp_path):
    task = tiny.task("vae", tiny.vae(tmp_path, steps=1, init=str(straight / "vae")))
    begun = AutoencoderKL.load(straight / "vae")
    torch.testing.assert_close(task.vae.state_dict(), begun.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": 17}, "size = 17: not a multiple of the autoencoder's factor 2"),
        ({"validation": tiny.scenes(1)}, "validation: at least 2 images"),
    ],
)
def test_what_would_fail_later_is_refused_at_the_start(tmp_path, change, said):
    with pytest.raises(ValueError, match=said):
        tiny.task("vae", tiny.vae(tmp_path, steps=1) | change)
