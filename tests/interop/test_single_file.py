"""Single files: what is written is read back bit for bit, and others' files are read by the names they have."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from t2i.files import write_json
from t2i.generator.scheduler_config import SchedulerConfig
from t2i.interop.ignored_keys import EMA_UNET
from t2i.interop.infer import infer_text
from t2i.interop.layout import shapes_there
from t2i.interop.resolve import resolve
from t2i.interop.single_file import NOT_AVERAGED, layout, open_single_file, read_single_file, write_single_file

from .tiny import ODD, SCHEDULER, SD1, SD2, foreign, make, same, write

KINDS = {"sd1": SD1, "sd2": SD2, "odd": ODD}
FAMILIES = {"sd1": SD1, "sd2": SD2}


def check_components(got, components, configs=True):
    assert got.components.keys() == components.keys()
    for name, (config, state) in components.items():
        found, tensors = got.components[name]
        assert same(tensors, state), name
        if configs:
            assert found == config


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_is_bit_equal(kind, tmp_path):
    components = make(KINDS[kind])
    tokenizer, defaults = {"files": {"merges.txt": 'a b\n"ü"'}}, {"solver": "ddim", "steps": 7}
    path = tmp_path / "made" / "model.safetensors"
    write_single_file(path, components, SCHEDULER, tokenizer=tokenizer, defaults=defaults)
    got = read_single_file(path)
    check_components(got, components)
    assert (got.scheduler, got.tokenizer, got.defaults) == (SCHEDULER, tokenizer, defaults)
    assert not any(line.startswith("ignored") for line in got.report)
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]
    again = tmp_path / "again.safetensors"
    write_single_file(again, got.components, got.scheduler, tokenizer=got.tokenizer, defaults=got.defaults)
    assert again.read_bytes() == path.read_bytes()


def test_written_over_the_file_that_was_read(tmp_path):
    components, path = make(ODD), tmp_path / "model.safetensors"
    write_single_file(path, components, SCHEDULER)
    got = read_single_file(path)
    write_single_file(path, got.components, got.scheduler, dtype=torch.float16)
    halves = {name: (c, {k: v.half() for k, v in state.items()}) for name, (c, state) in components.items()}
    check_components(read_single_file(path), halves)


def test_keys_that_mark_the_prediction_type_and_the_schedule(tmp_path):
    state = foreign(make(SD1)) | {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}
    state |= {"denoiser.sigmas": torch.ones(1000), "embedding_manager.x": torch.ones(3)}
    got = read_single_file(write(tmp_path / "model.safetensors", state))
    assert got.scheduler["prediction_type"] == "v_prediction" and got.scheduler["rescale_betas_zero_snr"] is True
    assert SchedulerConfig.parse(got.scheduler, "x").schedule().alpha_bar[-1] < 1e-6
    assert any("prediction v_prediction: says its key `v_pred`" in line for line in got.report)
    asked = read_single_file(tmp_path / "model.safetensors", prediction="epsilon")
    assert asked.scheduler["prediction_type"] == "epsilon"


@pytest.mark.parametrize("kind", FAMILIES)
def test_others_files_are_read_without_configs(kind, tmp_path):
    components = make(FAMILIES[kind])
    got = read_single_file(write(tmp_path / "model.safetensors", foreign(components)))
    check_components(got, components, configs=False)
    for name, (config, _) in components.items():
        found = got.components[name][0]
        assert {k: found[k] for k in config.keys() & found.keys()} == {
            k: config[k] for k in config.keys() & found.keys()
        }
    assert got.components["unet"][0]["attention_head_dim"] == (8 if kind == "sd1" else [1, 1, 1, 2])
    assert got.tokenizer is not None
    assert got.tokenizer["pad_token"] == ("<|endoftext|>" if kind == "sd1" else "!")
    ignored = sum(int(line.split()[1]) for line in got.report if line.startswith("ignored"))
    assert ignored == (13 if kind == "sd1" else 12 + 12 + 2)


@pytest.mark.parametrize("kind", FAMILIES)
def test_written_names_are_those_of_others(kind, tmp_path):
    components, path = make(FAMILIES[kind]), tmp_path / "model.safetensors"
    write_single_file(path, components, SCHEDULER)
    with safe_open(path, framework="pt") as file:
        written = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    theirs = foreign(components)
    assert written.keys() <= theirs.keys()
    assert same(written, {key: theirs[key] for key in written})


def test_old_merges_without_the_towers_prefix():
    state = foreign(make(SD1))
    found = {k.replace("transformer.text_model.", "transformer."): tuple(v.shape) for k, v in state.items()}
    text = layout("text_encoder", infer_text(Path("m"), found), Path("m"), found)
    there = shapes_there(text.places, text.shapes)
    assert there.items() <= found.items()
    assert "cond_stage_model.transformer.final_layer_norm.bias" in there


def test_nine_channels_and_a_last_block_already_gone(tmp_path):
    components = make(SD2 | {"unet": SD2["unet"] | {"in_channels": 9}})
    state = {k: v for k, v in foreign(components).items() if ".resblocks.1." not in k and "text_projection" not in k}
    got = read_single_file(write(tmp_path / "m.safetensors", state))
    check_components(got, components, configs=False)
    assert got.components["unet"][0]["in_channels"] == 9


def test_moving_average_is_read_where_asked_for(tmp_path):
    components, other = make(SD1), make(SD1, seed=1)
    averages = {
        "model_ema." + k.removeprefix("model.").replace(".", ""): v
        for k, v in foreign(other).items()
        if k.startswith("model.diffusion_model.")
    }
    counters = {"model_ema.decay": torch.tensor(0.9), "model_ema.num_updates": torch.tensor(3)}
    path = write(tmp_path / "m.safetensors", foreign(components) | averages | counters)
    plain, ema = read_single_file(path), read_single_file(path, ema=True)
    check_components(plain, components, configs=False)
    check_components(ema, components | {"unet": other["unet"]}, configs=False)
    assert f"ignored {len(averages) + 2} keys: {EMA_UNET}" in plain.report
    assert f"ignored {len(averages)} keys: {NOT_AVERAGED}" in ema.report
    with pytest.raises(ValueError, match="no EMA weights"):
        read_single_file(write(tmp_path / "n.safetensors", foreign(components)), ema=True)


def resolved(path, config=None, prediction=None):
    with open_single_file(path) as (file, shapes):
        steps = 875000 if "global_step" in shapes else None
        return resolve(path, shapes, file.metadata() or {}, steps, config=config, prediction=prediction)


def predicts(path, **options):
    return resolved(path, **options).scheduler["prediction_type"]


def test_who_says_what_the_network_predicts(tmp_path):
    state = foreign(make(SD2))
    path = write(tmp_path / "m.safetensors", state)
    assert predicts(path) == "v_prediction"
    assert any("assumed" in line for line in resolved(path).report)
    assert predicts(write(tmp_path / "n.safetensors", state | {"global_step": torch.tensor(3)})) == "epsilon"
    path = write(tmp_path / "m.safetensors", state, {"modelspec.prediction_type": "epsilon"})
    assert predicts(path) == "epsilon"
    (tmp_path / "m.yaml").write_text("model: {params: {parameterization: v}}")
    assert predicts(path) == "v_prediction"
    folder = tmp_path / "configs"
    (folder / "scheduler").mkdir(parents=True)
    write_json(folder / "scheduler" / "scheduler_config.json", {"beta_end": 0.01})  # epsilon by its absence
    assert predicts(path, config=folder) == "epsilon"
    assert resolved(path, config=folder).scheduler["beta_end"] == 0.01
    assert predicts(path, config=folder, prediction="v") == "v_prediction"
    with pytest.raises(ValueError, match="prediction 'velocity' is not known"):
        predicts(path, prediction="velocity")


# A list of 2^60 letters, by aliases.
BOMB = "model: {params: {x0: &x0 [a], " + "".join(f"x{n}: &x{n} [*x{n - 1}, *x{n - 1}], " for n in range(1, 61))
BOMB += "scale_factor: *x60}}"


def test_yaml_beside_the_file(tmp_path):
    path = write(tmp_path / "m.safetensors", foreign(make(SD1)))
    (tmp_path / "m.yaml").write_text(
        "model:\n  target: ldm.models.diffusion.ddpm.LatentDiffusion\n  params:\n    scale_factor: 0.5\n"
        "    linear_start: 0.001\n    unet_config:\n      params: {num_head_channels: 16, num_heads: -1}\n"
    )
    got = resolved(path)
    assert got.configs["unet"]["attention_head_dim"] == [2, 2, 4, 4]
    assert got.configs["vae"]["scaling_factor"] == 0.5
    assert got.scheduler["beta_start"] == 0.001
    assert got.scheduler["prediction_type"] == "epsilon"
    assert sum("m.yaml" in line for line in got.report) == 3
    for text in (
        "model: 3",
        "model: {params: {scale_factor: much}}",
        "a: [",
        "!!python/object/apply:os.getcwd []",
        BOMB,
        "#" * 10**5,
    ):
        (tmp_path / "m.yaml").write_text(text)
        with pytest.raises(ValueError, match=r"m\.yaml: ") as caught:
            resolved(path)
        assert len(str(caught.value)) < 1000


def test_config_folder_for_another_build(tmp_path):
    components, path = make(ODD), tmp_path / "m.safetensors"
    write_single_file(path, components, SCHEDULER)
    with safe_open(path, framework="pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    path = write(tmp_path / "bare.safetensors", state)
    with pytest.raises(ValueError, match=r"cross-attention reads states 12 wide(.|\n)*--config DIR"):
        read_single_file(path)
    for name, (config, _) in components.items():
        (tmp_path / "configs" / name).mkdir(parents=True)
        write_json(tmp_path / "configs" / name / "config.json", config)
    (tmp_path / "configs" / "scheduler").mkdir()
    write_json(tmp_path / "configs" / "scheduler" / "scheduler_config.json", SCHEDULER)
    got = read_single_file(path, config=tmp_path / "configs")
    check_components(got, components)
    assert got.scheduler == SCHEDULER
