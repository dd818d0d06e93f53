"""The CLIP text encoder against transformers, and its folders."""

import json
from typing import cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from t2i.text.encoder import load_text_encoder
from tests.text.tiny import CAPTIONS, encoder, saved

PROMPTS = [CAPTIONS[0], "", CAPTIONS[-1]]


def rewrite(folder, change):
    """Replace the weights file by `change(state)`."""
    path = folder / "text_encoder" / "model.safetensors"
    save_file({k: v.contiguous() for k, v in change(load_file(path)).items()}, path, metadata={"format": "pt"})


def same(a, b):
    assert torch.equal(a.tokens, b.tokens) and torch.equal(a.mask, b.mask) and torch.equal(a.pooled, b.pooled)


def test_states_are_those_of_transformers_clip(tmp_path):
    own = saved(tmp_path)
    encoded = own(PROMPTS)
    ids = own.tokenizer(PROMPTS, padding="max_length", max_length=16, return_tensors="pt").input_ids
    folder = tmp_path / "text_encoder"
    with torch.no_grad():
        for kind, output, found in (
            (CLIPTextModel, "last_hidden_state", encoded.conditioning.tokens),
            (CLIPTextModelWithProjection, "text_embeds", encoded.conditioning.pooled),
        ):
            reference, loading = cast(tuple, kind.from_pretrained(folder, output_loading_info=True))
            assert not loading["missing_keys"]
            torch.testing.assert_close(reference(ids)[output], found)
    assert not loading["unexpected_keys"]  # of the one with the projection
    assert encoded.conditioning.tokens.shape == (3, own.max_tokens, own.width) == (3, 16, 32)
    assert encoded.truncated == ["", "", ""]
    assert encoded.conditioning.mask.sum(1).tolist() == [len(x) for x in own.tokenizer(PROMPTS).input_ids]


def test_save_and_load_keep_states_and_fingerprint(tmp_path):
    own = saved(tmp_path)
    again = load_text_encoder(tmp_path)
    same(again(PROMPTS).conditioning, own(PROMPTS).conditioning)
    assert again.fingerprint() == own.fingerprint() != encoder(seed=1).fingerprint()
    assert all(k.startswith("text_model.") or k == "text_projection.weight" for k in own.named_tensors())
    assert set(load_file(tmp_path / "text_encoder" / "model.safetensors")) == set(own.named_tensors())


def test_weights_are_read_without_the_prefix(tmp_path):
    own = saved(tmp_path)
    rewrite(tmp_path, lambda state: {k.removeprefix("text_model."): v for k, v in state.items()})
    same(load_text_encoder(tmp_path)(PROMPTS).conditioning, own(PROMPTS).conditioning)


def test_plain_folder_with_its_tokenizer_in_it(tmp_path):
    own = saved(tmp_path)
    for path in (tmp_path / "tokenizer").iterdir():
        path.rename(tmp_path / "text_encoder" / path.name)
    (tmp_path / "tokenizer").rmdir()
    same(load_text_encoder(tmp_path / "text_encoder")(PROMPTS).conditioning, own(PROMPTS).conditioning)


def test_a_whole_clip_gives_its_text_tower(tmp_path):
    own = encoder()
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = sizes | {"image_size": 8, "patch_size": 4}
    clip = CLIPModel(CLIPConfig(text_config=own.config.to_dict(), vision_config=vision, projection_dim=24))
    clip.save_pretrained(tmp_path)
    own.tokenizer.save_pretrained(tmp_path)
    found = load_text_encoder(tmp_path)
    ids = own.tokenizer(PROMPTS, padding="max_length", max_length=16, return_tensors="pt").input_ids
    with torch.no_grad():
        reference = clip.eval().get_text_features(ids)
    torch.testing.assert_close(found(PROMPTS).conditioning.pooled, getattr(reference, "pooler_output", reference))
    images = [k for k in clip.state_dict() if k.startswith(("vision_model.", "visual_projection.", "logit_scale"))]
    assert sum(found.ignored.values()) >= len(images) > 0


@pytest.mark.parametrize("layer", [-1, -2, -3])
def test_layer_read_is_that_hidden_state_after_the_final_norm(tmp_path, layer):
    own = saved(tmp_path)
    read = load_text_encoder(tmp_path, layer=layer)
    ids = own.tokenizer(PROMPTS, padding="max_length", max_length=16, return_tensors="pt").input_ids
    reference = CLIPTextModel.from_pretrained(tmp_path / "text_encoder")
    with torch.no_grad():
        hidden = reference(ids, output_hidden_states=True).hidden_states[layer]
        norm = reference.get_submodule("final_layer_norm")
        torch.testing.assert_close(read(PROMPTS).conditioning.tokens, norm(hidden))
    read.save(tmp_path / "again")
    again = load_text_encoder(tmp_path / "again")
    assert torch.equal(again(PROMPTS).conditioning.tokens, read(PROMPTS).conditioning.tokens)
    assert (read.fingerprint() == own.fingerprint()) == (layer == -1)


def test_layers_out_of_range_are_named(tmp_path):
    saved(tmp_path)
    for layer in (0, 2, -4):
        with pytest.raises(ValueError, match=f"layer = {layer}.*-1 .last. to -3"):
            load_text_encoder(tmp_path, layer=layer)


def test_missing_unexpected_and_misshaped_weights_are_errors(tmp_path):
    saved(tmp_path)
    norm = "text_model.final_layer_norm.weight"
    rewrite(tmp_path, lambda state: {k: v for k, v in state.items() if k != norm} | {"text_model.odd": torch.zeros(1)})
    with pytest.raises(ValueError, match=f"(?s)missing {norm}.*unexpected text_model.odd"):
        load_text_encoder(tmp_path)
    rewrite(tmp_path, lambda state: {k: v for k, v in state.items() if "odd" not in k} | {norm: torch.ones(7)})
    with pytest.raises(ValueError, match=r"final_layer_norm.weight has shape \(7,\)"):
        load_text_encoder(tmp_path)


def test_position_ids_are_ignored_and_counted(tmp_path):
    own = saved(tmp_path)
    rewrite(tmp_path, lambda s: s | {"text_model.embeddings.position_ids": torch.arange(16)[None]})
    found = load_text_encoder(tmp_path)
    assert sum(found.ignored.values()) == 1
    same(found(PROMPTS).conditioning, own(PROMPTS).conditioning)


def test_a_pickle_is_refused(tmp_path):
    saved(tmp_path)
    weights = tmp_path / "text_encoder" / "model.safetensors"
    torch.save({}, weights.with_name("pytorch_model.bin"))
    weights.unlink()
    with pytest.raises(ValueError, match=r"pytorch_model.bin is a pickle"):
        load_text_encoder(tmp_path)


def test_sharded_weights(tmp_path):
    own = saved(tmp_path)
    folder = tmp_path / "text_encoder"
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, keys in shards.items():
        save_file({k: state[k] for k in keys}, folder / file)
    index = {"weight_map": {k: file for file, keys in shards.items() for k in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    same(load_text_encoder(tmp_path)(PROMPTS).conditioning, own(PROMPTS).conditioning)


def test_what_is_no_text_encoder_is_named(tmp_path):
    saved(tmp_path)
    path = tmp_path / "text_encoder" / "config.json"
    path.write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="'bert' is not a text encoder; allowed: clip"):
        load_text_encoder(tmp_path)


def test_a_foreign_tokenizer_is_refused(tmp_path):
    saved(tmp_path)
    path = tmp_path / "text_encoder" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"vocab_size": 500}))
    with pytest.raises(ValueError, match=r"582 tokens.*vocab_size is 500"):
        load_text_encoder(tmp_path)


def test_pooling_does_not_trust_the_config_s_old_end_token(tmp_path):
    own = saved(tmp_path)
    path = tmp_path / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": 2}))
    found = load_text_encoder(tmp_path)
    same(found(PROMPTS).conditioning, own(PROMPTS).conditioning)
    assert found.fingerprint() == own.fingerprint()


def test_frozen_in_eval_mode_and_the_same_in_any_company():
    own = encoder()
    before = own.fingerprint()
    own.train()
    assert not any(module.training for module in own.modules())
    assert not any(p.requires_grad for p in own.parameters())
    tokens = own(PROMPTS).conditioning.tokens
    assert not tokens.requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(own(PROMPTS).conditioning.tokens, tokens)
    torch.testing.assert_close(own(PROMPTS[2:]).conditioning.tokens, tokens[2:])
    assert own.fingerprint() == before


def test_truncation_is_reported():
    prompt = "red anvil icon on a blue background and a Yellow FROG"
    truncated = encoder(max_tokens=10)(["red anvil", prompt]).truncated
    assert truncated[0] == "" and truncated[1] and prompt.endswith(truncated[1])


def test_half_precision_on_request(tmp_path):
    own = saved(tmp_path)
    half = load_text_encoder(tmp_path, dtype=torch.bfloat16)
    assert half(PROMPTS).conditioning.tokens.dtype == torch.bfloat16
    assert half.fingerprint() != own.fingerprint()
    own.save(tmp_path / "half", dtype=torch.float16)
    assert load_text_encoder(tmp_path / "half")(PROMPTS).conditioning.tokens.dtype == torch.float32


@pytest.mark.parametrize("n", [1, 2, 3])
def test_clip_skip_is_the_layer_read_without_loading_again(tmp_path, n):
    own = saved(tmp_path)
    mark = own.fingerprint()
    view, read = own.with_clip_skip(n), load_text_encoder(tmp_path, layer=-n)
    assert torch.equal(view(PROMPTS).conditioning.tokens, read(PROMPTS).conditioning.tokens)
    assert (view.config.num_hidden_layers, view.fingerprint()) == (4 - n, read.fingerprint())
    assert view.max_tokens == own.max_tokens and (view is own) == (n == 1)
    assert {p.data_ptr() for p in view.tower.parameters()} <= {p.data_ptr() for p in own.parameters()}
    assert own.fingerprint() == mark and own.config.num_hidden_layers == 3


def test_clip_skip_out_of_range_is_named():
    for n in (0, 4):
        with pytest.raises(ValueError, match=f"clip skip = {n}: the text encoder has 3 layers"):
            encoder().with_clip_skip(n)


@pytest.mark.parametrize("act", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("prefix", ["text_model.", ""])
def test_stable_diffusion_2_s_tower_of_23_layers(tmp_path, act, prefix):
    own = saved(tmp_path)
    path = tmp_path / "text_encoder" / "config.json"
    config = json.loads(path.read_text()) | {"num_hidden_layers": 23, "hidden_act": act, "projection_dim": 512}
    torch.manual_seed(1)
    reference = CLIPTextModel(CLIPTextConfig(**config)).eval()
    path.write_text(json.dumps(config | {"architectures": ["CLIPTextModel"]}))
    rewrite(tmp_path, lambda _: {prefix + k.removeprefix("text_model."): v for k, v in reference.state_dict().items()})
    found = load_text_encoder(f"clip:{tmp_path}")
    ids = own.tokenizer(PROMPTS, padding="max_length", max_length=16, return_tensors="pt").input_ids
    with torch.no_grad():
        wanted = reference(ids, output_hidden_states=True)
    torch.testing.assert_close(found(PROMPTS).conditioning.tokens, wanted.last_hidden_state)
    norm = reference.get_submodule("final_layer_norm")
    with torch.no_grad():
        penultimate = norm(wanted.hidden_states[-2])
    torch.testing.assert_close(found.with_clip_skip(2)(PROMPTS).conditioning.tokens, penultimate)
    assert found.config.hidden_act == act and found(PROMPTS).conditioning.pooled is None
    found.save(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "text_encoder" / "config.json").read_text())
    assert (again["num_hidden_layers"], again["hidden_act"]) == (23, act)


def test_max_tokens_is_a_choice_within_the_positions(tmp_path):
    own = saved(tmp_path)
    short = load_text_encoder(tmp_path, max_tokens=12)
    torch.testing.assert_close(short(PROMPTS).conditioning.tokens, own(PROMPTS).conditioning.tokens[:, :12])
    with pytest.raises(ValueError, match="max_tokens = 17: this text encoder takes 3 to 16 tokens"):
        load_text_encoder(tmp_path, max_tokens=17)


def test_names_that_are_none_are_explained(tmp_path):
    saved(tmp_path)
    with pytest.raises(ValueError, match=r"write a folder, a hub name or one of clip:ID, t5:ID, openclip:ARCH"):
        load_text_encoder("bert:base")
    with pytest.raises(ValueError, match=r"`model_type` = 'clip_text_model'; leave t5: out"):
        load_text_encoder(f"t5:{tmp_path}")
    with pytest.raises(ValueError, match="/nowhere: no such folder"):
        load_text_encoder("clip:/nowhere")
