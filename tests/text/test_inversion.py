"""Textual inversion: learnt words, against diffusers' own loader."""

from typing import Any, cast

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel

from t2i.text.encoder import load_text_encoder
from t2i.text.inversion import add_embedding
from tests.text.tiny import CAPTIONS, encoder, saved, t5

PROMPT = "red <cat> icon on a blue background"


def embedding(folder, n=3, width=32, key="<cat>", name="learned_embeds.safetensors"):
    torch.manual_seed(5)
    vectors = torch.randn(n, width)
    save_file({key: vectors}, folder / name)
    return folder / name, vectors


def reference(folder) -> StableDiffusionPipeline:
    sizes: dict[str, Any] = {"block_out_channels": (8,), "norm_num_groups": 8, "layers_per_block": 1}
    unet = UNet2DConditionModel(
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), mid_block_type=None, **sizes
    )
    parts = (AutoencoderKL(**sizes), CLIPTextModel.from_pretrained(folder / "text_encoder"))
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    none = cast(Any, None)
    return StableDiffusionPipeline(*parts, tokenizer, unet, DDIMScheduler(), none, none, none)


def reference_states(pipeline, prompt):
    with torch.no_grad():
        return pipeline.encode_prompt([prompt], "cpu", 1, False)[0]


@pytest.mark.parametrize("n", [1, 3])
def test_states_are_those_of_the_diffusers_loader(tmp_path, n):
    own = saved(tmp_path)
    file, _ = embedding(tmp_path, n)
    before = file.read_bytes(), (tmp_path / "tokenizer" / "tokenizer.json").read_bytes()
    pipeline = reference(tmp_path)
    pipeline.load_textual_inversion(file, token="<cat>")
    plain, mark = own([CAPTIONS[0]]).conditioning.tokens, own.fingerprint()
    report = add_embedding(own, file)
    assert report.startswith(f"<cat>: {n} vector") and "width 32" in report and str(file) in report
    torch.testing.assert_close(own([PROMPT]).conditioning.tokens, reference_states(pipeline, PROMPT), rtol=0, atol=1e-6)
    assert torch.equal(own([CAPTIONS[0]]).conditioning.tokens, plain)
    assert own.fingerprint() != mark
    assert (file.read_bytes(), (tmp_path / "tokenizer" / "tokenizer.json").read_bytes()) == before
    assert load_text_encoder(tmp_path).fingerprint() == mark  # the folder is as it was


def test_the_vectors_stand_in_a_row_where_the_word_stood(tmp_path):
    own = encoder()
    file, vectors = embedding(tmp_path)
    plain = own.tokenizer(PROMPT.replace("<cat> ", "")).input_ids
    first = len(own.tokenizer)
    add_embedding(own, file)
    seen: list[torch.Tensor] = []
    hook = own.tower.embeddings.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    own([PROMPT])
    hook.remove()
    ids = seen[0][0].tolist()
    assert ids[: len(plain) + 3] == [*plain[:2], first, first + 1, first + 2, *plain[2:]]
    assert torch.equal(own.embeddings()[first : first + 3], vectors)


def test_a_folder_saved_with_the_word_knows_it_here_and_in_diffusers(tmp_path):
    own = encoder()
    add_embedding(own, embedding(tmp_path)[0])
    own.save(tmp_path / "new")
    again = load_text_encoder(tmp_path / "new")
    assert torch.equal(again([PROMPT]).conditioning.tokens, own([PROMPT]).conditioning.tokens)
    assert again.fingerprint() == own.fingerprint()
    torch.testing.assert_close(
        reference_states(reference(tmp_path / "new"), PROMPT), own([PROMPT]).conditioning.tokens, rtol=0, atol=1e-6
    )


def test_the_file_s_name_is_the_word_of_an_unnamed_embedding(tmp_path):
    own = encoder()
    file, vectors = embedding(tmp_path, 1, key="emb_params", name="EasyStyle.safetensors")
    assert add_embedding(own, file).startswith("EasyStyle: 1 vector of")
    a, b = own(["red easystyle icon", "red EasyStyle icon"]).conditioning.tokens
    assert torch.equal(a, b)
    row = own.embeddings()[-1]
    assert torch.equal(row, vectors[0])
    first = own.tokenizer("red EasyStyle icon").input_ids[2]
    assert first == len(own.tokenizer) - 1
    assert first not in own.tokenizer("uneasystyles").input_ids  # no part of a longer word
    assert add_embedding(own, file, token="<other>").startswith("<other>")


def test_views_and_later_words(tmp_path):
    own = encoder()
    view = own.with_clip_skip(2)
    states = view(CAPTIONS[:1]).conditioning.tokens
    add_embedding(own, embedding(tmp_path)[0])
    assert torch.equal(view(CAPTIONS[:1]).conditioning.tokens, states)
    file, _ = embedding(tmp_path, 2, key="<dog>", name="dog.safetensors")
    add_embedding(own, file)
    a, b = own.with_clip_skip(2)([PROMPT, "red <dog> icon"]).conditioning.tokens
    assert not torch.equal(a, b) and len(own.embeddings()) == len(own.tokenizer)


def test_a_t5_learns_a_word_too_and_its_spare_rows_come_first(tmp_path):
    own = t5()
    rows = len(own.embeddings())
    file, vectors = embedding(tmp_path)
    add_embedding(own, file)
    assert len(own.embeddings()) == rows
    assert torch.equal(own.embeddings()[len(own.tokenizer) - 3 : len(own.tokenizer)], vectors)
    own.save(tmp_path / "new")
    again = load_text_encoder(tmp_path / "new")
    assert torch.equal(again([PROMPT]).conditioning.tokens, own([PROMPT]).conditioning.tokens)
    reference_t5 = T5EncoderModel.from_pretrained(tmp_path / "new" / "text_encoder")
    ids = own.tokenizer("red <cat> <cat>_1 <cat>_2", padding="max_length", max_length=32, return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(reference_t5(ids).last_hidden_state, own(["red <cat>"]).conditioning.tokens)


def test_what_does_not_fit_is_refused_and_changes_nothing(tmp_path):
    own = encoder()
    mark = own.fingerprint()
    good, _ = embedding(tmp_path)
    wide, _ = embedding(tmp_path, width=48, name="wide.safetensors")
    two = tmp_path / "two.safetensors"
    save_file({"clip_l": torch.zeros(1, 32), "clip_g": torch.zeros(1, 48)}, two)
    whole = tmp_path / "whole.safetensors"
    save_file({"a": torch.zeros(1, 32, dtype=torch.int64)}, whole)
    nan = tmp_path / "nan.safetensors"
    save_file({"a": torch.full((1, 32), torch.nan)}, nan)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(good.read_bytes()[:-7])
    pickle = tmp_path / "cat.pt"
    torch.save({}, pickle)
    for file, token, fault in (
        (wide, None, "48 wide, the text encoder's are 32"),
        (two, None, "an embedding for Stable Diffusion XL"),
        (whole, None, "int64: finite vectors"),
        (nan, None, "finite vectors"),
        (damaged, None, "damaged.safetensors: not a readable"),
        (pickle, None, "a pickle.*`t2i convert .*cat.pt .*cat.safetensors` reads its tensors alone"),
        (tmp_path / "none.safetensors", None, "no such file"),
        (good, "<|endoftext|>", "already has the token '<|endoftext|>'"),
        (good, "red</w>", "already"),
        (good, " ", "is empty"),
    ):
        with pytest.raises(ValueError, match=fault.replace("|", r"\|")):
            add_embedding(own, file, token)
    assert own.fingerprint() == mark
    add_embedding(own, good)
    for token in ("<cat>", "<CAT>", "<cat>_2"):
        with pytest.raises(ValueError, match="already"):
            add_embedding(own, good, token)
