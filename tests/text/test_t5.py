"""The T5 text encoder against transformers and diffusers' pipeline, and its folders."""

import json
from typing import Any, cast

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, T5Config, T5EncoderModel, T5ForConditionalGeneration, T5Tokenizer

from t2i.text.encoder import load_text_encoder
from t2i.text.t5 import T5TextEncoder
from tests.text.tiny import CAPTIONS, t5

PROMPTS = [CAPTIONS[0], "", CAPTIONS[-1]]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("act", ["relu", "gated-gelu"])
def test_states_are_those_of_the_diffusers_pipeline(tmp_path, masked, act):
    own = t5(use_attention_mask=masked, act=act)
    own.save(tmp_path)
    reference, loading = cast(Any, T5EncoderModel.from_pretrained(tmp_path / "text_encoder", output_loading_info=True))
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert tokenizer.model_max_length == 32
    sizes: dict[str, Any] = {"block_out_channels": (8,), "norm_num_groups": 8, "layers_per_block": 1}
    unet = UNet2DConditionModel(
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), mid_block_type=None, **sizes
    )
    pipeline = StableDiffusionPipeline(
        AutoencoderKL(**sizes),
        reference,
        tokenizer,
        unet,
        DDIMScheduler(),
        cast(Any, None),
        cast(Any, None),
        cast(Any, None),
    )
    with torch.no_grad():
        wanted, null = pipeline.encode_prompt(PROMPTS, "cpu", 1, True)
    found = own(PROMPTS).conditioning
    assert found.tokens.shape == (3, own.max_tokens, own.width) == (3, 32, 32) and found.pooled is None
    torch.testing.assert_close(found.tokens, wanted, rtol=0, atol=1e-6)
    torch.testing.assert_close(own([""]).conditioning.tokens, null[:1], rtol=0, atol=1e-6)
    assert found.mask.sum(1).tolist() == [len(ids) for ids in own.tokenizer(PROMPTS).input_ids]


def test_the_mask_reaches_the_encoder_only_where_the_config_says_so():
    a, b = (t5(use_attention_mask=masked)(PROMPTS[:1]).conditioning for masked in (False, True))
    real = a.mask[0]
    assert not torch.allclose(a.tokens[0, real], b.tokens[0, real], atol=1e-3)
    alone = t5(max_tokens=int(real.sum()))(PROMPTS[:1]).conditioning.tokens
    torch.testing.assert_close(b.tokens[:, real], alone, rtol=0, atol=1e-5)


def test_save_and_load_keep_states_and_fingerprint(tmp_path):
    own = t5(use_attention_mask=True)
    own.save(tmp_path)
    again = load_text_encoder(tmp_path)
    assert isinstance(again, T5TextEncoder) and again.use_attention_mask and again.max_tokens == 32
    assert torch.equal(again(PROMPTS).conditioning.tokens, own(PROMPTS).conditioning.tokens)
    assert again.fingerprint() == own.fingerprint()
    assert len({own.fingerprint(), t5().fingerprint(), t5(seed=1).fingerprint()}) == 3
    assert not any(p.requires_grad for p in again.parameters()) and not again.tower.training
    assert T5TextEncoder.classes["tokenizer"] == ["transformers", T5Tokenizer.__name__]


def test_a_whole_t5_in_a_plain_folder_gives_its_encoder(tmp_path):
    own = t5()
    torch.manual_seed(2)
    whole = T5ForConditionalGeneration(
        T5Config(**own.file_config() | {"num_decoder_layers": 1, "is_encoder_decoder": True})
    )
    whole.save_pretrained(tmp_path)
    own.tokenizer.model_max_length = 512
    own.tokenizer.save_pretrained(tmp_path)
    found = load_text_encoder(f"t5:{tmp_path}")
    assert found.max_tokens == 77  # the 512 of the tokenizer is not Stable Diffusion's
    assert (
        sum(found.ignored.values())
        == sum(k.startswith("decoder.") for k in load_file(tmp_path / "model.safetensors"))
        > 0
    )
    short = load_text_encoder(tmp_path, max_tokens=32)
    ids = own.tokenizer(PROMPTS, padding="max_length", max_length=32, return_tensors="pt").input_ids
    with torch.no_grad():
        wanted = whole.eval().get_encoder()(ids).last_hidden_state
    torch.testing.assert_close(short(PROMPTS).conditioning.tokens, wanted)


def test_the_embedding_is_read_by_either_name_or_both(tmp_path):
    own = t5()
    own.save(tmp_path)
    path = tmp_path / "text_encoder" / "model.safetensors"
    state = load_file(path)
    shared = state.pop("shared.weight")
    for names in (["encoder.embed_tokens.weight"], ["encoder.embed_tokens.weight", "shared.weight"]):
        save_file(state | {name: shared.clone() for name in names}, path)
        found = load_text_encoder(tmp_path)
        assert found.fingerprint() == own.fingerprint() and sum(found.ignored.values()) == 0
    save_file(state, path)
    with pytest.raises(ValueError, match=r"missing shared\.weight"):
        load_text_encoder(tmp_path)


def test_never_float16(tmp_path):
    own = t5()
    own.save(tmp_path, dtype=torch.float16)
    with pytest.warns(UserWarning, match="T5 overflows in float16"):
        found = load_text_encoder(tmp_path, dtype=torch.float16)
    assert found(PROMPTS).conditioning.tokens.dtype == torch.float32
    for ask in (lambda e: e.to(dtype=torch.float16), lambda e: e.to("cpu", torch.float16), lambda e: e.half()):
        with pytest.warns(UserWarning, match="stays in float32"):
            assert next(ask(found).parameters()).dtype == torch.float32
    half = found.to(dtype=torch.bfloat16)
    assert half(PROMPTS).conditioning.tokens.dtype == torch.bfloat16
    assert half.tower.get_input_embeddings() is half.tower.encoder.embed_tokens


def test_truncation_is_reported():
    prompt = "red anvil icon on a blue background and a yellow frog"
    truncated = t5(max_tokens=10)(["red anvil", prompt]).truncated
    assert truncated[0] == "" and truncated[1] and prompt.endswith(truncated[1])


def test_what_a_t5_has_not_is_refused(tmp_path):
    own = t5()
    own.save(tmp_path)
    with pytest.raises(ValueError, match=r"layer = -2: .*T5"):
        load_text_encoder(tmp_path, layer=-2)
    assert own.with_clip_skip(1) is own
    with pytest.raises(ValueError, match="clip skip = 2: only a CLIP"):
        own.with_clip_skip(2)
    with pytest.raises(ValueError, match=r"`model_type` = 't5'; leave clip: out"):
        load_text_encoder(f"clip:{tmp_path}")
    with pytest.raises(ValueError, match="max_tokens = 1"):
        load_text_encoder(tmp_path, max_tokens=1)
    (tmp_path / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer: no tokenizer\.json"):
        load_text_encoder(tmp_path)
    assert json.loads((tmp_path / "text_encoder" / "config.json").read_text())["model_type"] == "t5"
