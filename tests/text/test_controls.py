"""Controls: what each may know of a caption, their folders, and transformers reading them."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, CLIPTextModel, CLIPTokenizer, T5EncoderModel

from t2i.text.clip import CLIPTextEncoder
from t2i.text.controls import NullTextEncoder, OracleTextEncoder, bag_of_words, oracle, untrained
from t2i.text.encoder import TextEncoder, load_text_encoder
from t2i.text.prompts import encode_prompts
from t2i.text.t5 import T5TextEncoder
from tests.text import tiny

PROMPTS = ["", "red anvil icon", "a green dice 20 on a blue background and much more than fits in sixteen tokens"]


def tokens(encoder: TextEncoder, prompts: list[str]) -> torch.Tensor:
    return encoder(prompts).conditioning.tokens


def again(encoder: TextEncoder, folder: Path) -> TextEncoder:
    """The encoder out of its folder, which must give the same states, mask and fingerprint."""
    encoder.save(folder)
    found = load_text_encoder(folder)
    assert type(found) is type(encoder) and found.fingerprint() == encoder.fingerprint()
    return found


def same(a: TextEncoder, b: TextEncoder, prompts: list[str]) -> None:
    x, y = a(prompts), b(prompts)
    assert x.conditioning.tokens.equal(y.conditioning.tokens) and x.conditioning.mask.equal(y.conditioning.mask)
    assert x.truncated == y.truncated


def test_null_gives_every_caption_the_null(tmp_path):
    null = load_text_encoder("control:null")
    for encoder in (null, again(null, tmp_path)):
        assert isinstance(encoder, NullTextEncoder)
        found = encoder(PROMPTS)
        states, mask = found.conditioning.tokens, found.conditioning.mask
        assert found.truncated == ["", "", ""] and mask[0].equal(mask[2]) and mask.sum() == 6
        assert states[0].equal(states[1]) and states[0].equal(states[2])
        assert states[0].std(0).min() > 0.1  # positions differ: a projector that standardises them stays finite
        weighted = encode_prompts(encoder, ["(red:1.2) anvil"], syntax="a1111", chunks=False, min_chunks=1)
        assert weighted.conditioning.mask[0].equal(mask[0])
    reference = CLIPTextModel.from_pretrained(tmp_path / "text_encoder")
    words = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    ids = words(PROMPTS, padding="max_length", truncation=True, return_tensors="pt").input_ids
    torch.testing.assert_close(reference(ids).last_hidden_state, tokens(null, PROMPTS))


def test_bag_knows_words_and_places_but_no_context(tmp_path):
    tiny.saved(tmp_path / "clip")
    bag = load_text_encoder(f"control:bag:{tmp_path / 'clip'}")
    assert isinstance(bag, CLIPTextEncoder) and bag.width == 32 and bag.config.num_hidden_layers == 0
    a, b = tokens(bag, ["red anvil icon", "blue anvil icon"])
    assert a[2:].equal(b[2:]) and not a[1].equal(b[1])
    a, b = tokens(bag, ["red blue", "blue red"])
    assert not torch.isclose(a[1], b[2]).all()
    table, places = bag.embeddings(), bag.tower.embeddings.position_embedding.weight  # pyright: ignore
    ids = bag.tokenizer("red blue").input_ids
    torch.testing.assert_close(a[1], torch.nn.functional.layer_norm(table[ids[1]] + places[1], (32,)))
    same(again(bag, tmp_path / "bag"), bag, PROMPTS)
    reference = CLIPTextModel.from_pretrained(tmp_path / "bag" / "text_encoder")
    words = CLIPTokenizer.from_pretrained(tmp_path / "bag" / "tokenizer")
    ids = words(PROMPTS, padding="max_length", truncation=True, return_tensors="pt").input_ids
    torch.testing.assert_close(reference(ids).last_hidden_state, tokens(bag, PROMPTS))
    assert bag.with_clip_skip(1) is bag
    with pytest.raises(ValueError, match="clip skip = 2: the text encoder has 0 layers"):
        bag.with_clip_skip(2)


def test_random_has_the_shapes_and_words_of_the_encoder_and_none_of_its_weights(tmp_path):
    trained = tiny.saved(tmp_path / "clip")
    made = load_text_encoder(f"control:random:{tmp_path / 'clip'}")
    assert {k: v.shape for k, v in made.named_tensors().items()} == {
        k: v.shape for k, v in trained.named_tensors().items()
    }
    assert made.tokenizer.get_vocab() == trained.tokenizer.get_vocab() and made.max_tokens == trained.max_tokens
    weights = [(a, b) for a, b in zip(made.named_tensors().values(), trained.named_tensors().values(), strict=True)]
    assert not any(a.equal(b) for a, b in weights if a.dim() > 1)
    assert made.embeddings().std().item() == pytest.approx(10, rel=0.05)
    assert not any(p.requires_grad for p in made.parameters())
    same(again(made, tmp_path / "random"), made, PROMPTS)


def test_random_of_a_t5(tmp_path):
    trained = tiny.t5(use_attention_mask=True)
    trained.save(tmp_path / "t5")
    made = load_text_encoder(f"control:random:{tmp_path / 't5'}")
    assert isinstance(made, T5TextEncoder) and made.use_attention_mask and made.max_tokens == trained.max_tokens
    shapes = {k: v.shape for k, v in trained.named_tensors().items()}
    assert {k: v.shape for k, v in made.named_tensors().items()} == shapes
    assert not made.embeddings().equal(trained.embeddings())
    same(again(made, tmp_path / "random"), made, PROMPTS)


@pytest.mark.parametrize("kind", ["bag", "random"])
def test_seeds_are_all_that_tells_two_controls_apart(tmp_path, kind):
    tiny.saved(tmp_path)
    before = torch.random.get_rng_state()
    zero, default, one = (load_text_encoder(f"control:{kind}:{tmp_path}{seed}") for seed in ("@0", "", "@1"))
    assert torch.random.get_rng_state().equal(before)
    assert zero.fingerprint() == default.fingerprint() != one.fingerprint()
    assert not torch.isclose(tokens(zero, PROMPTS), tokens(one, PROMPTS)).all()


SCENES = {
    "a red circle left of a blue star": [["circle", "red", "left"], ["star", "blue", "right"], ["on white"]],
    "a blue star": [["star", "blue", "centre"], ["on white"]],
}


def test_oracle_gives_each_thing_its_attributes(tmp_path):
    made = oracle(SCENES, SCENES.__getitem__)
    words = ["blue", "centre", "circle", "left", "on white", "red", "right", "star"]
    prompts = ["", *SCENES, "a  blue star "]
    for encoder in (made, again(made, tmp_path), load_text_encoder(f"control:oracle:{tmp_path}")):
        found = encoder(prompts).conditioning
        assert found.tokens.shape == (4, 3, 8) and found.mask.sum(1).tolist() == [0, 3, 2, 2]
        read = [[{words[i] for i in row.nonzero()[:, 0].tolist()} for row in scene] for scene in found.tokens]
        assert read[0] == [set(), set(), set()] and read[2] == read[3]
        assert read[1] == [set(t) for t in SCENES["a red circle left of a blue star"]]
        assert read[2] == [{"star", "blue", "centre"}, {"on white"}, set()]
        assert found.tokens.unique().tolist() == [0, 1]


def test_oracle_refuses_what_it_cannot_know(tmp_path):
    made = oracle(SCENES, SCENES.__getitem__)
    with pytest.raises(ValueError, match="'a green dog' is not one of the 2 captions"):
        made(["a blue star", "a green dog"])
    with pytest.raises(ValueError, match="whole captions only"):
        encode_prompts(made, ["a (blue:1.2) star"], syntax="a1111", chunks=False, min_chunks=1)
    with pytest.raises(ValueError, match="no captions"):
        OracleTextEncoder.of({})
    made.save(tmp_path)
    with pytest.raises(ValueError, match="no layers"):
        load_text_encoder(tmp_path, layer=-2)


def test_t5_with_the_tokenizer_of_clip_is_read_by_transformers(tmp_path):
    words = tiny.tokenizer()
    config = tiny.t5().config
    config.vocab_size = len(words) + 4
    made = T5TextEncoder(T5EncoderModel(config), words, 16, use_attention_mask=True)
    assert made.classes["tokenizer"] == ["transformers", "CLIPTokenizer"]
    same(again(made, tmp_path), made, PROMPTS)
    batch = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")(
        PROMPTS, padding="max_length", truncation=True, return_tensors="pt"
    )
    reference = T5EncoderModel.from_pretrained(tmp_path / "text_encoder")
    torch.testing.assert_close(reference(**batch).last_hidden_state, tokens(made, PROMPTS))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("control:bag", "write one of control:null"),
        ("control:bag:", "write one of control:null"),
        ("control:null:x", "write one of control:null"),
        ("control:oracle", "write one of control:null"),
        ("control:twin:x", "write one of control:null"),
        ("control:random:/nowhere", "/nowhere: no such folder"),
    ],
)
def test_bad_names_are_named(name, message):
    with pytest.raises(ValueError, match=message):
        load_text_encoder(name)


def test_controls_of_the_wrong_thing_are_refused(tmp_path):
    with pytest.raises(ValueError, match="tokenizer of this text encoder is a T5Tokenizer"):
        bag_of_words(tiny.t5())
    with pytest.raises(ValueError, match="NullTextEncoder is a control itself"):
        untrained(load_text_encoder("control:null"))
    with pytest.raises(ValueError, match="layer = -2"):
        load_text_encoder("control:null", layer=-2)
