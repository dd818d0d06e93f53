"""One tiny random pipeline in a folder, read once by us and once by stock diffusers."""

import warnings

import pytest
from diffusers import StableDiffusionPipeline

from t2i.pipeline import Pipeline

from .tiny import make_pipeline


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "model"
    make_pipeline().save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def ours(folder):
    return Pipeline.from_pretrained(folder)


@pytest.fixture(scope="session")
def stock(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
