"""One loader: everything that `-m` takes is opened by `Pipeline.from_pretrained` and by every verb."""

import json
import sys

import pytest
import torch

from t2i.cli.app import app
from t2i.errors import ConfigError
from t2i.interop.lora import merge_lora
from t2i.interop.lora_write import write_lora
from t2i.nn.lora import LoraConfig, add_lora, lora_state, remove_lora
from t2i.pipeline import Pipeline
from t2i.pipeline.finetuned import write_pointer

from .tiny import make_pipeline

PLAIN = {"encoder_hid_dim": None, "cross_attention_dim": 32}


def run(*arguments):
    before = sys.argv
    sys.argv = ["t2i", *map(str, arguments)]
    try:
        app(standalone_mode=False)
    finally:
        sys.argv = before


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A model as a folder, as a single file, and below the LoRA of a fine-tuned run."""
    root = tmp_path_factory.mktemp("places")
    pipeline = make_pipeline(unet=PLAIN)
    pipeline.save_pretrained(root / "model")
    run("convert", root / "model", root / "model.safetensors")
    unet, draw = pipeline.generator.unet, torch.Generator().manual_seed(0)
    add_lora(unet, LoraConfig(rank=2))
    state = {k: c._replace(up=0.2 * torch.randn(c.up.shape, generator=draw)) for k, c in lora_state(unet).items()}
    remove_lora(unet)
    (root / "run").mkdir()
    write_lora(root / "run" / "frog.safetensors", {"unet": state}, pipeline.networks)
    write_pointer(root / "run", root / "model", loras=["frog.safetensors"])
    return {"folder": root / "model", "file": root / "model.safetensors", "run": root / "run"}


def latents(pipeline):
    return pipeline("a red circle", seeds=0, num_inference_steps=2, output_type="latent").images


def test_a_single_file_and_a_fine_tuned_run_are_pipelines(places):
    plain = Pipeline.from_pretrained(places["folder"])
    assert torch.equal(latents(Pipeline.from_pretrained(places["file"])), latents(plain))
    tuned = Pipeline.from_pretrained(places["run"])
    assert not torch.equal(latents(tuned), latents(plain)) and "frog.safetensors: layers changed" in tuned.report[-1]
    merge_lora(plain.networks, places["run"] / "frog.safetensors")
    assert torch.equal(latents(tuned), latents(plain))


@pytest.mark.parametrize("kind", ["file", "run"])
def test_every_verb_opens_them(places, kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    prompts = [word for prompt in ("a", "b", "c") for word in ("--prompt", prompt)]
    run("study", "sigma", "-m", places[kind], *prompts, "--count", 2, "--steps", 2, "-o", "sigma")
    assert {row["steps"] for row in json.loads((tmp_path / "sigma" / "metrics.json").read_text())["rows"]} == {2}
    run("generate", "a", "-m", places[kind], "--steps", 1)
    assert "model: " in capsys.readouterr().err


def test_options_of_other_kinds_are_refused_by_their_key(places):
    for place, key in (("file", "variant"), ("file", "revision"), ("folder", "revision"), ("folder", "config"),
                       ("run", "prediction_type")):  # fmt: skip
        with pytest.raises(ConfigError) as refusal:
            Pipeline.from_pretrained(places[place], **{key: "fp16"})
        assert refusal.value.key == key
