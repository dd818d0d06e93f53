"""Weights in prompts, and prompts in chunks."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from t2i.text.prompts import MAX_WEIGHT, count_chunks, encode_prompts, parse_weights
from tests.hang import no_hang
from tests.text.tiny import CAPTIONS, encoder, t5

LONG = "red anvil icon on a blue background, green big frog icon on a yellow background, honey pot"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", [("", 1)]),
        ("normal text: 2", [("normal text: 2", 1)]),
        ("an (important) word", [("an ", 1), ("important", 1.1), (" word", 1)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        ("closed) [only]", [("closed) ", 1), ("only", 1 / 1.1)]),
        (r"\(literal\] \\ a\b", [(r"(literal] \ ab", 1)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        ("((a)) [[b]]", [("a", 1.1 * 1.1), (" ", 1), ("b", 1 / 1.1 / 1.1)]),
        ("(a:1.5) (b:.5) (c: -2 )", [("a", 1.5), (" ", 1), ("b", 0.5), (" ", 1), ("c", -2)]),
        ("(a (b:2) c:3)", [("a ", 3), ("b", 6), (" c", 3)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("a:1.5) b", [("a:1.5) b", 1)]),
        ("(a [b) c]", [("a ", 1.1), ("b", 1.1 / 1.1), (" c", 1 / 1.1)]),
        ("a BREAK b", [("a BREAK b", 1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1),
                ("house", 1.3 * 1.1 * 1.1),
                (" ", 1.1),
                ("on", 1),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.1**4),
                (".", 1.1),
            ],
        ),
    ],
)
def test_weights_are_read(text, wanted):
    found = parse_weights(text)
    assert [piece for piece, _ in found] == [piece for piece, _ in wanted]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in wanted], rel=1e-12)


@given(st.text(st.sampled_from(r"()[]\:.0123456789-+ abé|BREAK" + "\n"), max_size=80) | st.text())
def test_any_text_is_read_and_nothing_but_syntax_is_lost(text):
    found = parse_weights(text)
    assert found and all(math.isfinite(w) and abs(w) <= MAX_WEIGHT for _, w in found)
    letters = [
        c for c in text if c not in "()[]\\:.+-0123456789 \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85" and not c.isspace()
    ]
    assert [c for piece, _ in found for c in piece if c in set(letters)] == letters
    assert all(a[1] != b[1] for a, b in pairwise(found))


@given(st.text().filter(lambda text: not set(text) & set("()[]\\")))
def test_text_without_syntax_is_kept(text):
    assert parse_weights(text) == [(text, 1.0)]


@given(st.text())
def test_an_escaped_text_is_kept(text):
    escaped = "".join("\\" + c if c in "()[]\\" else c for c in text)
    assert parse_weights(escaped) == [(text, 1.0)]


@pytest.mark.parametrize("hostile", ["(", "[", "(a", "[(", ":1", ": ", "(a:", "\\", "(:9", "1", "(a:999999999)", "()"])
def test_a_hostile_text_takes_linear_time(hostile):
    text = hostile * (100_000 // len(hostile))
    with no_hang():
        found = parse_weights(text)
    assert all(abs(w) <= MAX_WEIGHT for _, w in found)


def test_the_depth_of_brackets_is_bounded_by_the_weight():
    assert parse_weights("(" * 5000 + "a")[0] == ("a", MAX_WEIGHT)
    assert parse_weights("(a:-5000)")[0] == ("a", -MAX_WEIGHT)


def tokens(own, texts, **options):
    return encode_prompts(own, texts, **options).conditioning.tokens


@pytest.mark.parametrize("make", [encoder, t5])
@pytest.mark.parametrize("syntax", ["plain", "a1111"])
@pytest.mark.parametrize("chunks", [False, True])
def test_plain_short_prompts_are_encoded_as_ever(make, syntax, chunks):
    own = make()
    texts = [CAPTIONS[0], "", CAPTIONS[-1]]
    found, wanted = encode_prompts(own, texts, syntax=syntax, chunks=chunks), own(texts)
    assert torch.equal(found.conditioning.tokens, wanted.conditioning.tokens)
    assert torch.equal(found.conditioning.mask, wanted.conditioning.mask)
    assert (found.conditioning.pooled is None) == (wanted.conditioning.pooled is None)
    assert found.truncated == wanted.truncated == ["", "", ""]
    assert torch.equal(tokens(own, ["(a) b"], syntax="plain"), own(["(a) b"]).conditioning.tokens)


def test_a_weighted_token_s_state_is_multiplied_and_the_mean_restored():
    own = encoder()
    torch.nn.init.constant_(own.tower.final_layer_norm.bias, 0.3)
    plain = own(["red anvil icon"]).conditioning.tokens[0]
    n = len(own.tokenizer("red").input_ids) - 2
    weighted = plain.clone()
    weighted[1 : 1 + n] *= 1.5
    wanted = weighted * (plain.mean() / weighted.mean())
    found = tokens(own, ["(red:1.5) anvil icon", CAPTIONS[1]], syntax="a1111")
    torch.testing.assert_close(found[0], wanted)
    assert torch.equal(found[0], tokens(own, ["(red:1.5) anvil icon"], syntax="a1111")[0])  # whatever stands beside it
    torch.testing.assert_close(found[1], own([CAPTIONS[1]]).conditioning.tokens[0])
    assert abs(found[0].mean() - plain.mean()) < 1e-6


def test_a_mean_that_is_none_is_not_restored():
    own = encoder()  # a fresh layer norm: every state's mean is zero
    plain = own(["red anvil icon"]).conditioning.tokens[0]
    found = tokens(own, ["(red anvil icon:0.5)"], syntax="a1111")[0]
    torch.testing.assert_close(found[1:4], plain[1:4] * 0.5)
    torch.testing.assert_close(found[0], plain[0])
    assert found.isfinite().all()


@pytest.mark.parametrize("make", [encoder, t5])
def test_a_long_prompt_is_its_chunks_in_a_row(make):
    own = make(max_tokens=8)
    room = 8 - len(own.tokenizer("").input_ids)
    ids = own.tokenizer(LONG, add_special_tokens=False).input_ids
    count = -(-len(ids) // room)
    assert count > 2 and count_chunks(own, ["", LONG]) == count
    found = encode_prompts(own, ["red", LONG], chunks=True)
    assert found.truncated == ["", ""]
    assert found.conditioning.tokens.shape == (2, count * 8, 32)
    begin, end = own.tokenizer("").input_ids[:-1], own.tokenizer("").input_ids[-1:]
    for i in range(count):
        row = begin + ids[i * room : (i + 1) * room] + end
        padded = torch.tensor([row + [own.tokenizer.pad_token_id] * (8 - len(row))])
        mask = (torch.arange(8) < len(row))[None]
        with torch.no_grad():
            wanted = own.states(padded, mask).tokens[0]
        torch.testing.assert_close(found.conditioning.tokens[1, i * 8 : (i + 1) * 8], wanted)
        assert torch.equal(found.conditioning.mask[1, i * 8 : (i + 1) * 8], mask[0])
    short, empty = own(["red", ""]).conditioning.tokens
    torch.testing.assert_close(found.conditioning.tokens[0], torch.cat([short] + [empty] * (count - 1)))
    if found.conditioning.pooled is not None:
        torch.testing.assert_close(found.conditioning.pooled[0], own(["red"]).conditioning.pooled[0])


def test_min_chunks_makes_calls_agree():
    own = encoder(max_tokens=12)
    whole = tokens(own, ["", LONG], chunks=True)
    alone = tokens(own, [""], chunks=True, min_chunks=count_chunks(own, [LONG]))
    torch.testing.assert_close(alone, whole[:1])
    with pytest.raises(ValueError, match="min_chunks = 2 needs chunks"):
        encode_prompts(own, [""], min_chunks=2)


def test_break_begins_a_new_chunk():
    own = encoder()
    found = tokens(own, ["red anvil BREAK (blue:1.0) frog"], syntax="a1111", chunks=True)
    parts = own(["red anvil", "blue frog"]).conditioning.tokens
    torch.testing.assert_close(found[0], parts.flatten(0, 1))
    assert count_chunks(own, ["a BREAK b BREAK", "BREAKER"], "a1111") == 3
    assert count_chunks(own, ["a BREAK b"], "plain") == 1
    with pytest.raises(ValueError, match="BREAK begins a new chunk"):
        encode_prompts(own, ["a BREAK b"], syntax="a1111")


@pytest.mark.parametrize("syntax", ["plain", "a1111"])
def test_what_does_not_fit_is_reported_without_chunks(syntax):
    own = encoder(max_tokens=10)
    assert encode_prompts(own, ["red", LONG], syntax=syntax).truncated == own(["red", LONG]).truncated
    assert torch.equal(tokens(own, [LONG], syntax=syntax), own([LONG]).conditioning.tokens)
    weighted = encode_prompts(own, ["red anvil icon (on a blue background and (a frog:1.2) icon)"], syntax="a1111")
    assert weighted.truncated[0].endswith("a frog icon")


def test_what_is_not_built_is_refused():
    own = encoder()
    for text, fault in (
        ("[red:blue:0.5] frog", "prompt editing"),
        ("[frog:10]", "prompt editing"),
        ("[red|blue] frog", "prompt editing"),
        ("a frog AND a pot", "AND"),
        ("frog <lora:x:1>", "<lora:"),
    ):
        with pytest.raises(ValueError, match=fault):
            encode_prompts(own, [text], syntax="a1111")
        encode_prompts(own, [text])
    encode_prompts(own, [r"[(red:1.2)] \[a|b\] [note: this] SAND"], syntax="a1111")
    with pytest.raises(ValueError, match="prompt syntax = 'compel' is unknown: choose one of plain, a1111"):
        encode_prompts(own, ["a"], syntax="compel")
