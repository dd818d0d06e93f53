"""LoRA files here and in stock diffusers: the same latents, the same tensors; all that does not fit is named."""

import re
import warnings
from typing import Any, NamedTuple, cast

import peft
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers
from peft.utils import get_peft_model_state_dict
from pipeline.stock import load_stock, write_stock
from pipeline.tiny import apart, make_unet
from safetensors.torch import load_file, save_file

from t2i.interop.keys_unet import unet_places
from t2i.interop.lora import Lora, load_lora, lora_name, merge_lora, merge_tensors, read_lora
from t2i.interop.lora_names import network_of
from t2i.interop.lora_write import Dialect, write_lora
from t2i.nn.lora import LoraConfig, LoraLayer, add_lora, lora_state, loras_of, remove_lora, set_lora_weights
from t2i.pipeline import Pipeline

PROMPT, STEPS = "a red circle", 3
EVERYTHING = LoraConfig(rank=4, alpha=3, targets=("attention", "projections", "feed_forward"), conv_rank=2)
WORDS = LoraConfig(rank=3, alpha=6, targets=("attention", "feed_forward"))


class Pair(NamedTuple):
    ours: Pipeline
    stock: Any
    networks: dict[str, Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    torch.set_num_threads(1)
    folder = write_stock("sd1", tmp_path_factory.mktemp("sd1") / "model")
    ours = Pipeline.from_pretrained(folder)
    return Pair(ours, load_stock(folder), {"unet": ours.generator.unet, "text_encoder": ours.text_encoder})


@pytest.fixture
def pair(made):
    """Both pipelines, bare again after each test."""
    yield made
    made.stock.unload_lora_weights()
    for part in made.networks.values():
        remove_lora(network_of(part))


def ours_drawn(pair):
    options: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": 4.0, "output_type": "latent"}
    return pair.ours(PROMPT, "", solver="ddim", seeds=3, **options).images


def stock_drawn(pair):
    scheduler = DDIMScheduler.from_config(pair.stock.scheduler.config)
    pipeline = StableDiffusionPipeline(
        **pair.stock.components | {"scheduler": scheduler}, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return cast(Any, pipeline)(
        PROMPT,
        negative_prompt="",
        num_inference_steps=STEPS,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
    ).images


def drawn_lora(networks, configs=None, seed=0) -> Lora:
    """A LoRA of random tensors, large enough to be seen."""
    draw, found = torch.Generator().manual_seed(seed), {}
    for component, config in (configs or {"unet": EVERYTHING, "text_encoder": WORDS}).items():
        network = network_of(networks[component])
        add_lora(network, config)
        found[component] = {
            layer: LoraLayer(change.down, 0.1 * torch.randn(change.up.shape, generator=draw), change.alpha)
            for layer, change in lora_state(network).items()
        }
        remove_lora(network)
    return found


def deltas(lora):
    return {(part, layer): change.delta() for part, own in lora.items() for layer, change in own.items()}


def same_change(found, expected):
    found, expected = deltas(found), deltas(expected)
    return found.keys() == expected.keys() and all(apart(found[k], v) <= 1e-6 for k, v in expected.items())


@pytest.mark.parametrize("dialect", ["diffusers", "kohya"])
@pytest.mark.parametrize("weight", [1.0, 0.4])
def test_written_here_drawn_by_stock(pair, tmp_path, dialect, weight):
    file, lora = tmp_path / "mine.safetensors", drawn_lora(pair.networks)
    write_lora(file, lora, pair.networks, dialect)
    bare = ours_drawn(pair)
    assert load_lora(pair.networks, file, weight) == "mine"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pair.stock.load_lora_weights(str(file), adapter_name="mine")
    pair.stock.set_adapters(["mine"], [weight])
    found = ours_drawn(pair)
    assert apart(found, stock_drawn(pair)) <= 1e-4
    assert apart(found, bare) > 0.05


def stock_file(pair, folder, metadata=True):
    """A LoRA trained (drawn) and written by stock, still on its networks."""
    draw, given = torch.Generator().manual_seed(5), {}
    parts = {"unet": (["to_q", "to_v", "to_out.0"], 8), "text_encoder": (["q_proj", "out_proj"], 2)}
    for name, (targets, alpha) in parts.items():
        network = getattr(pair.stock, name)
        peft.inject_adapter_in_model(
            peft.LoraConfig(r=4, lora_alpha=alpha if metadata else 4, target_modules=targets), network
        )
        for key, parameter in network.named_parameters():
            if ".lora_B." in key:
                parameter.data = 0.1 * torch.randn(parameter.shape, generator=draw)
        given[f"{name}_lora_layers"] = convert_state_dict_to_diffusers(get_peft_model_state_dict(network))
    if metadata:
        given |= _collate_lora_metadata({name: getattr(pair.stock, name) for name in parts})
    StableDiffusionPipeline.save_lora_weights(folder, **given)
    return folder / "pytorch_lora_weights.safetensors"


@pytest.mark.parametrize("metadata", [True, False])
def test_written_by_stock_drawn_here(pair, tmp_path, metadata):
    file = stock_file(pair, tmp_path / "theirs", metadata)
    bare = ours_drawn(pair)
    assert load_lora(pair.networks, tmp_path / "theirs") == "theirs" == lora_name(file)
    found = ours_drawn(pair)
    assert apart(found, stock_drawn(pair)) <= 1e-4
    assert apart(found, bare) > 0.05


def test_two_at_once_with_weights(pair, tmp_path):
    for name, seed in {"a": 1, "b": 2}.items():
        parts = {"unet": LoraConfig(rank=2 + seed)} | ({"text_encoder": WORDS} if name == "b" else {})
        write_lora(tmp_path / f"{name}.safetensors", drawn_lora(pair.networks, parts, seed), pair.networks)
    bare = ours_drawn(pair)
    for name, weight in {"a": 0.9, "b": -0.3}.items():
        load_lora(pair.networks, tmp_path / f"{name}.safetensors", weight)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pair.stock.load_lora_weights(str(tmp_path / f"{name}.safetensors"), adapter_name=name)
    pair.stock.set_adapters(["a", "b"], [0.9, -0.3])
    assert loras_of(pair.networks["unet"]) == ["a", "b"]
    assert apart(ours_drawn(pair), stock_drawn(pair)) <= 1e-4
    set_lora_weights(pair.networks["unet"], {"a": 0.0, "b": 0.0})
    set_lora_weights(network_of(pair.networks["text_encoder"]), {"b": 0.0})
    assert torch.equal(ours_drawn(pair), bare)
    with pytest.raises(ValueError, match="'b' is loaded already: give this one another name"):
        load_lora(pair.networks, tmp_path / "b.safetensors")


def test_merged_equals_unmerged(made, pair, tmp_path):
    file, lora = tmp_path / "x.safetensors", drawn_lora(pair.networks)
    write_lora(file, lora, pair.networks, "kohya")
    load_lora(pair.networks, file, 0.7)
    unmerged = ours_drawn(pair)
    for part in pair.networks.values():
        remove_lora(network_of(part))
    files = {name: dict(part.named_tensors() if name != "unet" else part.state_dict()) for name, part in
             pair.networks.items()}  # fmt: skip
    merge_tensors(files, pair.networks, read_lora(file, pair.networks), 0.7)
    kept = {name: {k: v.clone() for k, v in part.state_dict().items()} for name, part in pair.networks.items()}
    try:
        merge_lora(pair.networks, file, 0.7)
        assert apart(ours_drawn(pair), unmerged) <= 1e-5
        assert all(torch.equal(files["unet"][k], v) for k, v in pair.networks["unet"].state_dict().items())
        assert all(torch.equal(files["text_encoder"][k], v) for k, v in made.ours.text_encoder.named_tensors().items())
    finally:
        for name, part in pair.networks.items():
            part.load_state_dict(kept[name])


def test_zero_b_changes_no_bit(pair, tmp_path):
    bare = ours_drawn(pair)
    lora = drawn_lora(pair.networks)
    zero = {part: {k: LoraLayer(c.down, torch.zeros_like(c.up), c.alpha) for k, c in own.items()}
            for part, own in lora.items()}  # fmt: skip
    write_lora(tmp_path / "zero.safetensors", zero, pair.networks)
    load_lora(pair.networks, tmp_path / "zero.safetensors")
    assert torch.equal(ours_drawn(pair), bare)


@pytest.mark.parametrize("dialect", ["diffusers", "kohya", "peft"])
def test_round_trip(pair, tmp_path, dialect):
    place = tmp_path / ("lora" if dialect == "peft" else "lora.safetensors")
    lora = drawn_lora(pair.networks)
    write_lora(place, lora, pair.networks, dialect)
    found = read_lora(place, pair.networks)
    assert same_change(found, lora)
    if dialect != "diffusers":
        assert {k: c.alpha for k, c in found["unet"].items()} == {k: c.alpha for k, c in lora["unet"].items()}
    write_lora(place, lora, pair.networks, dialect, torch.float16)  # over the one that is there
    assert [path.name for path in tmp_path.iterdir()] == [place.name]
    assert {c.up.dtype for own in read_lora(place, pair.networks).values() for c in own.values()} == {torch.float16}


def test_peft_reads_ours_and_we_read_its(pair, tmp_path):
    lora = drawn_lora(pair.networks)
    write_lora(tmp_path / "ours", lora, pair.networks, "peft")
    for name in ("unet", "text_encoder"):
        model = peft.PeftModel.from_pretrained(getattr(pair.stock, name), str(tmp_path / "ours" / name))
        found: Any = model.get_base_model()
        try:
            for layer, change in lora[name].items():
                assert apart(found.get_submodule(layer).get_delta_weight("default"), change.delta()) <= 1e-6, layer
            model.save_pretrained(str(tmp_path / "theirs" / name))
        finally:
            model.unload()
    assert same_change(read_lora(tmp_path / "theirs", pair.networks), lora)
    alone = read_lora(tmp_path / "theirs" / "unet", pair.networks)
    assert same_change(alone, {"unet": lora["unet"]})


def test_older_spellings_as_stock_reads_them(pair, tmp_path):
    """Attention alone, alpha as the rank: all that the first files held."""
    lora = drawn_lora(pair.networks, {"unet": LoraConfig(rank=2), "text_encoder": LoraConfig(rank=2)})
    write_lora(tmp_path / "new.safetensors", lora, pair.networks)
    state = load_file(tmp_path / "new.safetensors")
    for rule in ("lora", "processor"):
        file = tmp_path / f"{rule}.safetensors"
        save_file({older(key, rule): tensor for key, tensor in state.items()}, file)
        assert same_change(read_lora(file, pair.networks), lora)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pair.stock.load_lora_weights(str(file))
        load_lora(pair.networks, file)
        assert apart(ours_drawn(pair), stock_drawn(pair)) <= 1e-4
        pair.stock.unload_lora_weights()
        for part in pair.networks.values():
            remove_lora(network_of(part))


def older(key, rule):
    half = {"A": "down", "B": "up"}
    if rule == "lora":
        kind = "lora" if key.startswith("unet.") else "lora_linear_layer"
        return re.sub(r"\.lora_([AB])\.", lambda m: f".{kind}.{half[m[1]]}.", key)
    key = (
        key.replace("q_proj", "to_q").replace("k_proj", "to_k").replace("v_proj", "to_v").replace("out_proj", "to_out")
    )
    inner = "processor." if key.startswith("unet.") else ""
    return re.sub(r"(to_\w+)(?:\.0)?\.lora_([AB])\.", lambda m: f"{inner}{m[1]}_lora.{half[m[2]]}.", key)


@pytest.fixture
def file(pair, tmp_path):
    """A function that writes kohya's file with its tensors changed."""

    def write(change, dialect: Dialect = "kohya"):
        path = tmp_path / "x.safetensors"
        write_lora(path, drawn_lora(pair.networks, {"unet": LoraConfig()}), pair.networks, dialect)
        state = load_file(path)
        change(state)
        save_file(state, path)
        return path

    return write


def put(key):
    return lambda state: state.update({key: torch.ones(2, 2)})


def drop(ending):
    return lambda state: state.pop(next(key for key in state if key.endswith(ending)))


def spoil(ending, value):
    return lambda state: state.update({next(key for key in state if key.endswith(ending)): value})


def missing_all(state):
    state.clear()
    state["embeddings"] = torch.ones(2)


LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
BAD = [
    (put("lora_unet_down_blocks_9_x.lora_down.weight"), r"1 of its \d+ keys are of no layer of unet .*blocks_9_x"),
    (put("lora_te2_text_model_x.lora_down.weight"), "a LoRA for Stable Diffusion XL"),
    (put("lora_unet_label_emb_0_0.lora_down.weight"), "a LoRA for Stable Diffusion XL"),
    (put("lora_unet_single_blocks_0_linear1.lora_down.weight"), "SD 3 or Flux"),
    (put(f"{LAYER}.hada_w1_a"), "is a LoHa"),
    (put(f"{LAYER}.dora_scale"), "is a DoRA"),
    (missing_all, "is not a LoRA: it holds embeddings"),
    (drop(".lora_down.weight"), r"lacks 1 of its tensors: unet\.\S+ \(down\)"),
    (drop(".lora_up.weight"), r"lacks 1 of its tensors: unet\.\S+ \(up\)"),
    (spoil(".lora_up.weight", torch.full((16, 4), float("nan"))), "finite matrices are needed"),
    (spoil(".lora_up.weight", torch.ones(16, 4, dtype=torch.int64)), "int64: finite matrices are needed"),
    (spoil(".alpha", torch.tensor([1.0, 2.0])), "its alpha is not a finite number"),
    (spoil("0_attn1_to_q.lora_up.weight", torch.ones(18, 4)), r"attn1.to_q has a weight of \(16, 16\).*\(18, 4\)"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_files(pair, file, change, message):
    path = file(change)
    with pytest.raises(ValueError, match=message) as error:
        load_lora(pair.networks, path)
    assert str(error.value).startswith(str(path))
    assert not loras_of(pair.networks["unet"])


@pytest.mark.parametrize("prefix", ["lora_unet_", "diffusion_model."])
def test_names_of_the_original_code_and_of_a_first_text_encoder(pair, tmp_path, prefix):
    """As sgm's users, ComfyUI and diffusers' own export to kohya's format write them."""
    lora, path = drawn_lora(pair.networks), tmp_path / "x.safetensors"
    write_lora(path, lora, pair.networks, "kohya")
    places = {layer: unet_places(pair.networks["unet"].config, [f"{layer}.weight"])[f"{layer}.weight"].key
              for layer in lora["unet"]}  # fmt: skip
    state = {}
    for key, tensor in load_file(path).items():
        module, dot, part = key.partition(".")
        if module.startswith("lora_te_"):
            state[module.replace("lora_te_", "lora_te1_") + dot + part] = tensor
            continue
        layer = next(layer for layer in places if module == "lora_unet_" + layer.replace(".", "_"))
        name = places[layer].removeprefix("model.diffusion_model.").removesuffix(".weight")
        state[prefix + (name if "." in prefix else name.replace(".", "_")) + dot + part] = tensor
    save_file(state, path)
    assert any("input_blocks" in key for key in state) and any("lora_te1_" in key for key in state)
    assert same_change(read_lora(path, pair.networks), lora)


def test_key_under_two_spellings(pair, file):
    def twice(state):
        key = next(key for key in state if ".lora_A." in key)
        state[key.removeprefix("unet.")] = state[key].clone()

    with pytest.raises(ValueError, match="is there twice, under two spellings"):
        read_lora(file(twice, "diffusers"), pair.networks)


@pytest.mark.parametrize(("width", "family"), [(1024, "Stable Diffusion 2"), (768, "Stable Diffusion 1")])
def test_another_architecture_is_named(pair, tmp_path, width, family):
    other = {"unet": make_unet(block_out_channels=(16, 32, 32, 32), cross_attention_dim=width, encoder_hid_dim=None,
                               down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
                               up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3)}  # fmt: skip
    write_lora(tmp_path / "x.safetensors", drawn_lora(other, {"unet": LoraConfig()}), other)
    with pytest.raises(ValueError, match=rf"attn2\.to_k has .*for another architecture \(as {family}"):
        read_lora(tmp_path / "x.safetensors", pair.networks)


def test_places(pair, tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        read_lora(tmp_path / "none.safetensors", pair.networks)
    with pytest.raises(ValueError, match="holds no LoRA"):
        read_lora(tmp_path, pair.networks)
    with pytest.raises(ValueError, match="a pickle"):
        read_lora(tmp_path / "x.ckpt", pair.networks)
    (tmp_path / "cut.safetensors").write_bytes(b"\x00\x01")
    with pytest.raises(ValueError, match="not a readable safetensors"):
        read_lora(tmp_path / "cut.safetensors", pair.networks)
    lora = drawn_lora(pair.networks, {"unet": LoraConfig()})
    with pytest.raises(ValueError, match="call it X"):
        write_lora(tmp_path / "folder", lora, pair.networks)
    with pytest.raises(ValueError, match="call it a folder"):
        write_lora(tmp_path / "x.safetensors", lora, pair.networks, "peft")
    with pytest.raises(ValueError, match="weight = nan"):
        load_lora(pair.networks, tmp_path / "none.safetensors", float("nan"))
