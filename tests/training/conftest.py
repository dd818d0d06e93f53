"""One frozen text encoder and autoencoder, and one straight run of the autoencoder's training."""

import pytest

from . import tiny

STEPS, SAVE_EVERY = 60, 6


@pytest.fixture(scope="session")
def components(tmp_path_factory):
    folder = tmp_path_factory.mktemp("components")
    tiny.make_components(folder)
    return folder


@pytest.fixture(scope="session")
def straight(tmp_path_factory):
    out = tmp_path_factory.mktemp("straight") / "run"
    tiny.run("vae", tiny.vae(out, steps=STEPS, save_every=SAVE_EVERY, ema=0.9, warmup_steps=3))
    return out
