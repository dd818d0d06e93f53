"""Hard negatives out of the corpus: exchanges, one-word neighbours, and the order that keeps them together."""

from collections import Counter
from itertools import pairwise

from t2i.training.hard_negatives import HardNegatives
from tests.text.tiny import CAPTIONS


def apart(a: str, b: str) -> int:
    """How many words of two captions of one length differ."""
    return sum(x != y for x, y in zip(a.split(), b.split(), strict=True))


def test_colours_are_exchanged_without_a_list_of_colours():
    corpus = HardNegatives(CAPTIONS)
    assert corpus.exchanged("red unseen thing icon on a blue background") == [
        "blue unseen thing icon on a red background"
    ]
    assert corpus.exchanged("red anvil icon on a red background") == []
    assert corpus.exchanged("big frog, noto emoji") == []
    assert corpus.exchanged("violet anvil icon on a red background") == []


def test_an_order_that_is_an_oddity_is_no_exchange():
    words = [f"{a} icon on a table" for a in "abcdefghijklmnopqrst"]
    assert HardNegatives([*words, "z on icon a table"]).exchanged("k icon on a table") == []
    assert HardNegatives(["cup on a table", "table on a cup"]).exchanged("cup on a table") == ["table on a cup"]


def test_one_word_apart_names_every_such_caption_and_no_other():
    corpus = HardNegatives(CAPTIONS)
    for row, caption in enumerate(CAPTIONS):
        same_length = [i for i, c in enumerate(CAPTIONS) if len(c.split()) == len(caption.split())]
        wanted = {i for i in same_length if apart(caption, CAPTIONS[i]) == 1}
        assert {i for group in corpus.one_word_apart(row) for i in group} == wanted


def test_a_negative_is_an_exchange_or_another_caption_one_word_apart_or_nothing():
    lone = "nothing like this caption exists anywhere"
    captions = [*CAPTIONS, lone, "anvil, firefox emoji"]
    corpus = HardNegatives(captions)
    for row, caption in enumerate(captions):
        wrong = corpus.negative(row, 0.7, 0.3)
        if " icon on a " in caption:
            assert Counter(wrong.split()) == Counter(caption.split()) and apart(wrong, caption) == 2
        elif caption.startswith("anvil,"):
            assert wrong in captions and apart(wrong, caption) == 1
        else:  # no caption is one word away
            assert wrong == caption


def test_order_is_a_permutation_that_keeps_neighbours_together():
    corpus, rows = HardNegatives(CAPTIONS), list(range(0, len(CAPTIONS), 2))
    order = corpus.order(rows, 4, seed=3, epoch=0).tolist()
    assert sorted(order) == rows
    assert order == corpus.order(rows, 4, seed=3, epoch=0).tolist()
    assert order != corpus.order(rows, 4, seed=3, epoch=1).tolist() != corpus.order(rows, 4, seed=4, epoch=1).tolist()

    def close(together: int) -> int:
        found = corpus.order(list(range(len(CAPTIONS))), together, seed=0, epoch=0).tolist()
        words = [CAPTIONS[i].split() for i in found]
        return sum(len(a) == len(b) and sum(map(str.__ne__, a, b)) == 1 for a, b in pairwise(words))

    assert close(4) > 3 * close(1)
