"""The tokenizer: the same ids before and after reload by either reader, and what does not fit."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, CLIPTokenizer

from t2i.text.tokenizer import SMALLEST, learn_tokenizer, save_tokenizer, tokenize
from tests.text.tiny import CAPTIONS, tokenizer


def written(folder, vocab_size, model_max_length=32):
    trained = learn_tokenizer(CAPTIONS, vocab_size, model_max_length)
    save_tokenizer(trained, folder)
    return trained


ODD = ["  Two   spaces\tand\nlines ", "naïve 日本 🙂 İ", "don't WALK!!", "", "zzz-unseen 1234"]


def test_every_caption_has_the_same_ids_after_reload(tmp_path):
    trained = written(tmp_path, 640, 16)
    texts = CAPTIONS + ODD
    ids = trained(texts).input_ids
    for reader in (AutoTokenizer, CLIPTokenizer):
        again = reader.from_pretrained(tmp_path)
        assert again(texts).input_ids == ids
        assert again.model_max_length == 16
        assert again.pad_token_id == again.eos_token_id == len(again) - 1
        assert again.bos_token_id == len(again) - 2


def test_reload_from_vocabulary_and_merges_alone(tmp_path):
    trained = written(tmp_path, 640)
    (tmp_path / "tokenizer.json").unlink()
    assert CLIPTokenizer.from_pretrained(tmp_path)(CAPTIONS + ODD).input_ids == trained(CAPTIONS + ODD).input_ids


def test_files_of_the_folder(tmp_path):
    written(tmp_path, 600, 20)
    names = {"vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    assert {p.name for p in tmp_path.iterdir()} == names
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["model_max_length"] == 20 and config["tokenizer_class"] == "CLIPTokenizer"
    assert json.loads((tmp_path / "special_tokens_map.json").read_text())["pad_token"] == "<|endoftext|>"


def test_frequent_words_become_one_token_and_nothing_is_unknown():
    words = learn_tokenizer(CAPTIONS, 700)
    assert words.tokenize("Background") == ["background</w>"]
    for text in ODD:
        ids = words(text).input_ids
        assert words.eos_token_id not in ids[1:-1]
        assert str(words.decode(ids[1:-1])).replace(" ", "") == "".join(text.lower().split())


def test_two_trainings_give_one_vocabulary():
    assert learn_tokenizer(CAPTIONS, 600).get_vocab() == learn_tokenizer(list(CAPTIONS), 600).get_vocab()


def test_vocabulary_size_is_kept_or_refused():
    assert len(learn_tokenizer(CAPTIONS, 560)) == 560
    with pytest.raises(ValueError, match=f"vocab_size = 100.*{SMALLEST}"):
        learn_tokenizer(CAPTIONS, 100)


def test_what_does_not_fit_is_reported_in_the_prompt_s_own_words():
    long = "Red anvil icon on a blue background with  Honey Pot at the end"
    tokens = tokenize(tokenizer(8), ["red anvil", long, ""], 8)
    assert tokens.truncated[0] == tokens.truncated[2] == ""
    assert tokens.truncated[1] and long.endswith(tokens.truncated[1])
    kept = str(tokenizer(8).decode(tokens.ids[1][1:-1].tolist())).replace(" ", "")
    assert kept == "".join(long.removesuffix(tokens.truncated[1]).lower().split())
    assert tokens.ids[1, -1] == tokenizer(8).eos_token_id and tokens.mask[1].all()


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=40))
def test_ids_are_those_of_the_library_s_own_padding_and_truncation(text):
    words = tokenizer(8)
    own = tokenize(words, [text, "anvil"], 8)
    reference = words([text, "anvil"], padding="max_length", truncation=True, max_length=8, return_tensors="pt")
    assert own.ids.equal(reference.input_ids)
    assert own.mask.equal(reference.attention_mask.bool())
