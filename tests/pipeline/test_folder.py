"""A pipeline's folder: whole, readable by stock, and refused by name where it does not fit."""

import json
import random
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from t2i.pipeline import Defaults, Pipeline
from tests.hang import no_hang

from .tiny import apart, make_pipeline


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "model")


def edit(path, **keys):
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_what_the_folder_holds(folder, stock):
    assert sorted(path.name for path in folder.iterdir()) == [
        "model_index.json", "scheduler", "t2i.json", "text_encoder", "tokenizer", "unet", "vae"
    ]  # fmt: skip
    assert json.loads((folder / "t2i.json").read_text()) == {
        "schema_version": 1, "solver": "ddim", "steps": 5, "guidance": 4.0, "null": 'text([""])'
    }  # fmt: skip
    assert stock.safety_checker is None and stock.config.requires_safety_checker is False
    assert stock.vae.config.scaling_factor == 0.7


def test_saved_again_it_makes_the_same_picture(ours, tmp_path):
    ours.save_pretrained(tmp_path / "again")
    ours.save_pretrained(tmp_path / "again")  # over itself
    again = Pipeline.from_pretrained(tmp_path / "again")
    assert again.defaults == ours.defaults and again.scheduler == ours.scheduler
    asked = {"seeds": 0, "output_type": "latent"}
    assert torch.equal(again("a red circle", **asked).images, ours("a red circle", **asked).images)
    ours.save_pretrained(tmp_path / "half", torch.float16)
    half = Pipeline.from_pretrained(tmp_path / "half")
    assert half.generator.unet.conv_in.weight.dtype == torch.float32
    assert 0 < apart(half("a red circle", **asked).images, ours("a red circle", **asked).images) < 0.1


def test_a_save_that_fails_leaves_the_old_folder(copy, ours):
    before = (copy / "unet" / "config.json").read_bytes()
    broken = make_pipeline()
    broken.defaults = None  # pyright: ignore
    with pytest.raises(AttributeError):
        broken.save_pretrained(copy)
    assert (copy / "unet" / "config.json").read_bytes() == before
    assert [path.name for path in copy.parent.iterdir()] == ["model"]


def test_a_stock_folder_gets_the_stock_defaults(copy):
    (copy / "t2i.json").unlink()
    assert Pipeline.from_pretrained(copy).defaults == Defaults(solver="ddim", steps=50, guidance=7.5)
    edit(copy / "scheduler" / "scheduler_config.json", _class_name="DPMSolverMultistepScheduler")
    assert Pipeline.from_pretrained(copy).defaults.solver == "dpm++2m"


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_component_is_named(copy, name):
    shutil.rmtree(copy / name)
    with pytest.raises(ValueError, match=f"lacks {name};"):
        Pipeline.from_pretrained(copy)


def test_no_model_at_all(tmp_path):
    with pytest.raises(ValueError, match=r"missing\.safetensors: no such file$"):
        Pipeline.from_pretrained(tmp_path / "missing.safetensors")
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        Pipeline.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"model_index\.json: no such file"):
        Pipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("file", "keys", "message"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionXLPipeline"}, "'StableDiffusionXLPipeline' is not"),
        ("t2i.json", {"schema_version": 2}, r"t2i\.json: `schema_version`"),
        ("t2i.json", {"null": "zeros"}, r"t2i\.json: `null`"),
        ("t2i.json", {"guidence": 2}, "unknown key `guidence`; did you mean `guidance`"),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, r"(?s)scheduler_config\.json.*zero term"),
    ],
)
def test_a_folder_that_says_what_is_not_supported(copy, file, keys, message):
    edit(copy / file, **keys)
    with pytest.raises(ValueError, match=message):
        Pipeline.from_pretrained(copy)


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder"])
def test_pickled_weights_are_refused(copy, name):
    weights = next((copy / name).glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match="is a pickle"):
        Pipeline.from_pretrained(copy)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"unet": {"in_channels": 6}}, "`in_channels` = 6, but vae/config.json: `latent_channels` = 4"),
        ({"vae": {"latent_channels": 8}}, "`in_channels` = 4, but vae/config.json: `latent_channels` = 8"),
        ({"unet": {"encoder_hid_dim": 48}}, "`encoder_hid_dim` = 48, but the text encoder's states are 32 wide"),
        ({"unet": {"encoder_hid_dim": None}}, "`cross_attention_dim` = 24, but the text encoder's states are 32 wide"),
    ],
)
def test_components_that_were_not_made_for_each_other(parts, message):
    with pytest.raises(ValueError, match=message):
        make_pipeline(**parts)


def recast(folder, variant="fp16", keep=False):
    """The networks' weights once more in half precision, called as a variant is."""
    for weights in [*folder.glob("*/*.safetensors")]:
        half = weights.with_name(f"{weights.stem}.{variant}.safetensors")
        save_file({k: v.half() for k, v in load_file(weights).items()}, half, {"format": "pt"})
        if not keep:
            weights.unlink()


def drawn(pipeline):
    return pipeline("a red circle", seeds=0, output_type="latent").images


def rounded(folder, tmp_path):
    """The picture of the weights in half precision."""
    Pipeline.from_pretrained(folder).save_pretrained(tmp_path / "half", torch.float16)
    return drawn(Pipeline.from_pretrained(tmp_path / "half"))


def test_a_variant_is_read_where_it_is_asked_for_or_alone(copy, ours, tmp_path):
    expected = rounded(copy, tmp_path)
    recast(copy, keep=True)
    assert Pipeline.from_pretrained(copy).report == ()
    assert torch.equal(drawn(Pipeline.from_pretrained(copy)), drawn(ours))
    asked = Pipeline.from_pretrained(copy, variant="fp16")
    assert asked.report == () and torch.equal(drawn(asked), expected) and not torch.equal(expected, drawn(ours))
    for weights in [p for p in copy.glob("*/*.safetensors") if "fp16" not in p.name and p.parent.name != "vae"]:
        weights.unlink()
    alone = Pipeline.from_pretrained(copy)
    assert alone.report == tuple(
        f"{part}: has only the variant 'fp16', which is read" for part in ("unet", "text_encoder")
    )
    (copy / "vae" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    mixed = Pipeline.from_pretrained(copy, variant="fp16")
    assert mixed.report == ("vae: has no variant 'fp16', diffusion_pytorch_model.safetensors is read",)
    with pytest.raises(ValueError, match="has no such variant; it has fp16"):
        Pipeline.from_pretrained(copy, variant="bf16")
    recast(copy, "bf16", keep=True)
    shutil.copy(copy / "unet" / "diffusion_pytorch_model.fp16.safetensors", copy / "unet" / "x.safetensors")
    (copy / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    (copy / "vae" / "diffusion_pytorch_model.ema.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"vae: which variant\? there are .*bf16.* .*ema"):
        Pipeline.from_pretrained(copy)


def shard(weights, variant=None):
    """The weights in three files and their index, as others write them."""
    state = load_file(weights)
    mark = f".{variant}" if variant else ""
    index = {}
    for i in range(3):
        name = f"{weights.stem}{mark}-0000{i + 1}-of-00003.safetensors"
        part = dict(list(state.items())[i::3])
        save_file(part, weights.with_name(name), {"format": "pt"})
        index |= dict.fromkeys(part, name)
    weights.unlink()
    path = weights.with_name(f"{weights.name}.index{mark}.json")
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": index}))
    return path


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_are_read_by_their_index(copy, ours, variant):
    for weights in [*copy.glob("*/*.safetensors")]:
        shard(weights, variant)
    assert torch.equal(drawn(Pipeline.from_pretrained(copy, variant=variant)), drawn(ours))


def test_an_index_that_does_not_fit_its_shards(copy):
    index = shard(copy / "unet" / "diffusion_pytorch_model.safetensors")
    good = json.loads(index.read_text())["weight_map"]
    first, second = sorted(set(good.values()))[:2]
    other = next(key for key, file in good.items() if file == second)
    for wrong, message in (
        (good | {"conv_in.bias": "../x.safetensors"}, r"`conv_in\.bias` is in '\.\./x\.safetensors', which is not"),
        (good | {"conv_in.bias": "/x.safetensors"}, "not a safetensors file of this folder"),
        (good | {"conv_in.bias": "config.json"}, "not a safetensors file of this folder"),
        (good | {"conv_in.bias": 3}, "not a safetensors file of this folder"),
        (good | {"conv_in.bias": "x.safetensors"}, r"lists x\.safetensors, which does not exist"),
        (good | {other: first}, f"lacks {other}|holds {other}"),
        (good | {"more": first}, "lacks more, which the index has in it"),
        ({k: v for k, v in good.items() if k != other}, f"{second}: holds {other}, which the index has in no shard"),
        ([], "has no `weight_map`"),
    ):
        index.write_text(json.dumps({"weight_map": wrong}))
        with pytest.raises(ValueError, match=message):
            Pipeline.from_pretrained(copy)
    index.write_text(json.dumps({"weight_map": good}))
    Pipeline.from_pretrained(copy)
    save_file({"conv_in.bias": torch.zeros(1)}, index.with_name("diffusion_pytorch_model.safetensors"))
    with pytest.raises(ValueError, match=r"holds .*index\.json.*: remove one of them"):
        Pipeline.from_pretrained(copy)


def test_files_that_would_take_long_to_read(copy):
    """Many keys, or an index of many: refused before they are gone through."""
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    raw = weights.read_bytes()
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"x{n}": empty for n in range(200_000)}).encode()
    weights.write_bytes(len(header).to_bytes(8, "little") + header)
    with no_hang(), pytest.raises(ValueError, match="holds 200000 tensors; no model has more than 5000"):
        Pipeline.from_pretrained(copy)
    weights.write_bytes(raw)
    index = weights.with_name(weights.name + ".index.json")
    weights.rename(weights.with_name("x.safetensors"))
    index.write_text(json.dumps({"weight_map": {f"x{n}": "x.safetensors" for n in range(200_000)}}))
    with no_hang(), pytest.raises(ValueError, match="has no `weight_map` of 1 to 5000 keys"):
        Pipeline.from_pretrained(copy)


def test_old_names_of_the_autoencoders_attention(copy, ours):
    path = copy / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(path)
    for new, name in old.items():
        state = {k.replace(f"attentions.0.{new}.", f"attentions.0.{name}."): v for k, v in state.items()}
    assert any(".query." in key for key in state)
    save_file(state, path)
    assert torch.equal(Pipeline.from_pretrained(copy).decode(drawn(ours)), ours.decode(drawn(ours)))


@pytest.mark.parametrize(("keys", "told"), [({}, True), ({"clip_sample": True}, True), ({"clip_sample": False}, False)])
def test_that_other_solvers_would_clip_is_said(copy, keys, told):
    config = copy / "scheduler" / "scheduler_config.json"
    values = {k: v for k, v in json.loads(config.read_text()).items() if k != "clip_sample"}
    config.write_text(json.dumps(values | {"_class_name": "PNDMScheduler", "skip_prk_steps": True} | keys))
    assert any("clip_sample" in line for line in Pipeline.from_pretrained(copy).report) == told


def test_what_is_not_read_is_said(copy, ours):
    absent = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "image_encoder": [None, None]}
    edit(copy / "model_index.json", **absent, feature_extractor=["transformers", "CLIPImageProcessor"])
    path = copy / "text_encoder" / "model.safetensors"
    state = {key.removeprefix("text_model."): value for key, value in load_file(path).items()}
    extra = {"embeddings.position_ids": torch.arange(12)[None], "logit_scale": torch.ones(())}
    save_file(state | extra, path)
    pipeline = Pipeline.from_pretrained(copy)
    assert torch.equal(drawn(pipeline), drawn(ours))
    assert sorted(pipeline.report) == [
        "ignored feature_extractor, safety_checker: they are not needed for sampling",
        "text_encoder: ignored 1 key: position ids, a buffer",
        "text_encoder: ignored 1 key: the scale of CLIP's contrastive loss",
    ]
    edit(copy / "model_index.json", controlnet=["diffusers", "ControlNetModel"])
    with pytest.raises(ValueError, match="controlnet: not a component of a Stable Diffusion"):
        Pipeline.from_pretrained(copy)


@pytest.mark.parametrize(
    ("file", "keys", "message"),
    [
        ("model_index.json", {"_class_name": "StableDiffusion3Pipeline"}, "this is a Stable Diffusion 3"),
        ("model_index.json", {"_class_name": "FluxPipeline"}, "this is a Flux"),
        ("unet/config.json", {"addition_embed_type": "text_time"}, "added conditions"),
    ],
)
def test_other_families_are_named(copy, file, keys, message):
    edit(copy / file, **keys)
    with pytest.raises(ValueError, match=message):
        Pipeline.from_pretrained(copy)


def test_hub_names(folder, ours, tmp_path, monkeypatch):
    """A repository that is in the hub's cache, read without a network; and one that is not."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository, commit = tmp_path / "models--someone--tiny", "0" * 40
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "v2").write_text(commit)
    assert torch.equal(drawn(Pipeline.from_pretrained("someone/tiny", revision="v2")), drawn(ours))
    with pytest.raises(ValueError, match="model 'someone/tiny' at v3: no such folder, and the hub did not give it"):
        Pipeline.from_pretrained("someone/tiny", revision="v3")
    with pytest.raises(ValueError, match="is for hub repositories"):
        Pipeline.from_pretrained(folder, revision="v2")


def flip(raw, draw):
    found = bytearray(raw)
    for _ in range(3):
        found[draw.randrange(min(len(raw), 2000))] = draw.randrange(256)
    return bytes(found)


HOSTILE = {
    "truncated": lambda raw, draw: raw[: draw.randrange(len(raw))],
    "flipped": flip,
    "garbage": lambda raw, draw: draw.randbytes(200),
    "header": lambda raw, draw: draw.randbytes(8) + raw[8:],
    "bomb": lambda raw, draw: b"[" * 100_000,
    "object": lambda raw, draw: b'{"a":' * 100_000,
    "empty": lambda raw, draw: b"",
}


VALUES = [float("nan"), float("inf"), -1, 0, 10**12, 10**30, "x", None, [], [[]], {}, True, [10**9] * 3, "a" * 10_000]


def survives(copy, what):
    """Loads, or is refused with a ValueError that names a file of the folder; and soon."""
    said = str(copy)
    try:
        with no_hang():
            Pipeline.from_pretrained(copy)
    except ValueError as error:
        said = str(error)
    assert str(copy) in said or "/config.json" in said, (what, said)


@pytest.mark.parametrize(
    "name",
    [
        "unet/config.json",
        "scheduler/scheduler_config.json",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("vae/config.json", "text_encoder/config.json", "model_index.json", "t2i.json")
        ),
    ],
)
def test_damaged_and_hostile_configs(copy, name):
    draw = random.Random(0)
    path = copy / name
    raw = path.read_bytes()
    for kind, damage in HOSTILE.items():
        path.write_bytes(damage(raw, draw))
        survives(copy, kind)
    values = json.loads(raw)
    for key in draw.sample(sorted(values), min(len(values), 12)):
        value = draw.choice(VALUES)
        path.write_text(json.dumps(values | {key: value}))
        survives(copy, (key, value))


@pytest.mark.parametrize(
    "name",
    ["unet", *(pytest.param(name, marks=pytest.mark.slow) for name in ("text_encoder", "tokenizer/tokenizer.json"))],
)
def test_damaged_and_hostile_weights(copy, name):
    draw = random.Random(1)
    path = copy / name
    path = path if path.is_file() else next(path.glob("*.safetensors"))
    raw = path.read_bytes()
    for kind, damage in HOSTILE.items():
        for _ in range(2):
            path.write_bytes(damage(raw, draw))
            survives(copy, kind)


def test_a_config_too_deep_or_too_wide_to_build(copy):
    for keys in (
        {"layers_per_block": 10**9},
        {"layers_per_block": 64, "transformer_layers_per_block": 64},
        {"block_out_channels": [2**40, 2**40]},
        {"norm_eps": float("inf")},
    ):
        path = copy / "unet" / "config.json"
        raw = path.read_text()
        edit(path, **keys)
        with no_hang(), pytest.raises(ValueError, match=r"unet"):
            Pipeline.from_pretrained(copy)
        path.write_text(raw)
    edit(copy / "text_encoder" / "config.json", num_hidden_layers=10**6)
    with no_hang(), pytest.raises(ValueError, match="asks for more than 5000 tensors"):
        Pipeline.from_pretrained(copy)
