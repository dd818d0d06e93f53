"""Every key of Stable Diffusion 1.5 and 2.1 as published has its place or its reason."""

from pathlib import Path

import pytest
from data.published import WEIGHTS, published

from t2i.autoencoder.kl import AutoencoderKL
from t2i.interop import ignored_keys as reasons
from t2i.interop.ignored_keys import TABLE, split_ignorable
from t2i.interop.keys_text import TextConfig
from t2i.interop.layout import shapes_there
from t2i.interop.resolve import resolve
from t2i.interop.single_file import PARTS, layout, on_meta

NAMES = ("sd15", "sd21")
IGNORED = {
    "sd15": {reasons.POSITIONS: 1, reasons.EMA_UNET: 688, reasons.SCHEDULE: 12},
    "sd21": {reasons.UNUSED: 12, reasons.PROJECTED: 1, reasons.SCALE: 1, reasons.SCHEDULE: 12},
}
TENSORS = {"unet": 686, "vae": 248, "text_encoder": {"sd15": 196, "sd21": 23 * 16 + 4}}


def tuples(shapes):
    return {key: tuple(shape) for key, shape in shapes.items()}


def config_of(found, name):
    return found.configs[f"{name}/config.json"]


@pytest.mark.parametrize("name", NAMES)
def test_the_single_file_one_to_one(name):
    found = published(name)
    single = tuples(found.single_file)
    expected = {}
    for part in PARTS:
        ours = layout(part, config_of(found, part), Path(name), single)
        count = TENSORS[part]
        assert len(ours.shapes) == (count if isinstance(count, int) else count[name])
        there = shapes_there(ours.places, ours.shapes)
        assert not set(there) & set(expected)
        expected |= there
    assert {key: single.get(key) for key in expected} == expected
    layers = TextConfig.parse(config_of(found, "text_encoder"), name).num_hidden_layers
    kept, ignored = split_ignorable({k: None for k in single if k not in expected}, "single_file", layers)
    assert not kept
    assert ignored == IGNORED[name]


@pytest.mark.parametrize("name", NAMES)
def test_the_folder(name):
    found = published(name)
    for part in PARTS:
        shapes = tuples(found.folder[part])
        if part == "vae":
            assert "decoder.mid_block.attentions.0.query.weight" in shapes
            renamed = AutoencoderKL.rename_keys(on_meta(shapes))
            shapes = {key: tuple(tensor.shape) for key, tensor in renamed.items()}
        kept, ignored = split_ignorable(shapes, part)
        assert kept == layout(part, config_of(found, part), Path(name), None).shapes
        assert ignored == ({reasons.POSITIONS: 1} if part == "text_encoder" else {})
    assert set(found.folder) == set(WEIGHTS)


@pytest.mark.parametrize("name", NAMES)
def test_configs_are_inferred_as_published(name):
    found = published(name)
    got = resolve(Path(f"{name}.safetensors"), tuples(found.single_file), {}, None, config=None, prediction=None)
    for part in PARTS:
        config, inferred = config_of(found, part), got.configs[part]
        unsaid = {"bos_token_id", "eos_token_id", "pad_token_id"}  # the published ones are wrong and not read
        differ = {k for k in config.keys() & inferred.keys() if config[k] != inferred[k] and k not in unsaid}
        assert not differ
        same = layout(part, inferred, Path(name), None).shapes
        assert same == layout(part, config, Path(name), None).shapes
    scheduler = found.configs["scheduler/scheduler_config.json"]
    assert scheduler.items() <= (got.scheduler | {"_diffusers_version": scheduler["_diffusers_version"]}).items()
    assert got.scheduler["prediction_type"] == {"sd15": "epsilon", "sd21": "v_prediction"}[name]
    assert any("768" in line if name == "sd15" else "1024" in line for line in got.report)
    assert any(line.startswith("prediction") for line in got.report)


def test_what_is_in_the_files_beside_the_weights():
    """So that the tests above cannot pass on lists without extras and omissions."""
    first, second = (published(name) for name in NAMES)
    assert "timestep_spacing" not in first.configs["scheduler/scheduler_config.json"]
    assert first.configs["model_index.json"]["safety_checker"][0] == "stable_diffusion"
    assert "scaling_factor" not in first.configs["vae/config.json"]
    assert "cond_stage_model.model.transformer.resblocks.23.ln_1.bias" in second.single_file
    assert len(first.single_file) == 686 + 248 + 197 + 688 + 12
    assert len(second.single_file) == 686 + 248 + 294 + 12


def test_the_table_names_a_reason_for_every_pattern():
    assert all(rule.reason for rule in TABLE)
    kept, ignored = split_ignorable(
        {"logit_scale": 1, "text_model.final_layer_norm.bias": 2, "mystery": 3}, "text_encoder"
    )
    assert kept == {"text_model.final_layer_norm.bias": 2, "mystery": 3}
    assert ignored == {reasons.SCALE: 1}
    block = "cond_stage_model.model.transformer.resblocks.{}.ln_1.bias"
    kept, _ = split_ignorable({block.format(i): i for i in (1, 2, 22, 23, 24)}, "single_file", 2)
    assert sorted(kept.values()) == [1, 22, 23, 24]
