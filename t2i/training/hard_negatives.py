"""Hard negatives from the corpus: captions that differ by one word, or by two words exchanged."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import combinations

import torch
from jaxtyping import Int
from torch import Tensor

from t2i.randomness import permutation, uniform

BALANCE = 0.1

Context = tuple[int, tuple[str, ...]]


class HardNegatives:
    """Indexes captions by word. A word's slot is its place from the left (0, 1, ..) or the right (-1, -2, ..)."""

    def __init__(self, captions: Sequence[str]) -> None:
        self.words = [caption.split() for caption in captions]

    @cached_property
    def by_context(self) -> dict[Context, list[int]]:
        """Returns the captions by each place and the words around it."""
        rows: dict[Context, list[int]] = defaultdict(list)
        for index, words in enumerate(self.words):
            for place in range(len(words)):
                rows[context(words, place)].append(index)
        return rows

    @cached_property
    def both_orders(self) -> set[tuple[int, int, str, str]]:
        """Returns (slot, slot, word, word) of all pairs of words that fill two slots of the corpus in both orders.

        The rarer order must be at least `BALANCE` as frequent as the other, so that one misprint is no exchange.
        """
        seen = Counter(
            pair for words in self.words for i, j in combinations(range(len(words)), 2) for pair in pairs(words, i, j)
        )
        return {
            (p, q, a, b)
            for (p, q, a, b), n in seen.items()
            if a != b and BALANCE * n <= seen[p, q, b, a] <= n / BALANCE
        }

    def exchanged(self, caption: str) -> list[str]:
        """Returns the caption with two words exchanged, for each pair that the corpus has there in both orders."""
        words = caption.split()
        swaps = []
        for i, j in combinations(range(len(words)), 2):
            if not self.both_orders.isdisjoint(pairs(words, i, j)):
                swapped = words.copy()
                swapped[i], swapped[j] = words[j], words[i]
                swaps.append(" ".join(swapped))
        return swaps

    def one_word_apart(self, row: int) -> list[list[int]]:
        """Returns, by place, the captions that differ from caption `row` in the word at that place only."""
        words = self.words[row]
        groups = [self.by_context[context(words, place)] for place in range(len(words))]
        return [others for group in groups if (others := [i for i in group if self.words[i] != words])]

    def negative(self, row: int, u: float, v: float) -> str:
        """Returns a wrong caption close to caption `row`, chosen by u, v in [0, 1).

        Two words are exchanged, else one is replaced; a caption without close ones is returned unchanged.
        """
        swaps = self.exchanged(" ".join(self.words[row]))
        if swaps:
            return swaps[int(u * len(swaps))]
        groups = self.one_word_apart(row)
        if not groups:
            return " ".join(self.words[row])
        group = groups[int(u * len(groups))]
        return " ".join(self.words[group[int(v * len(group))]])

    def order(self, rows: list[int], together: int, seed: int, epoch: int) -> Int[Tensor, " n"]:
        """Shuffles `rows` in runs of up to `together` captions that differ by one word: a function of (seed, epoch)."""
        runs: dict[Context, list[int]] = defaultdict(list)
        places = uniform((len(rows),), seed, "context", epoch).tolist()
        for k, u in zip(permutation(len(rows), seed, "rows", epoch).tolist(), places, strict=True):
            words = self.words[rows[k]]
            shared = [c for i in range(len(words)) if len(self.by_context[c := context(words, i)]) > 1]
            runs[shared[int(u * len(shared))] if shared else (-1, (str(k),))].append(rows[k])
        cut = [run[i : i + together] for run in runs.values() for i in range(0, len(run), together)]
        shuffled = permutation(len(cut), seed, "runs", epoch).tolist()
        return torch.tensor([row for k in shuffled for row in cut[k]])


def context(words: list[str], place: int) -> Context:
    """Returns the place, and the caption without the word there."""
    return place, (*words[:place], *words[place + 1 :])


def pairs(words: list[str], i: int, j: int) -> Iterator[tuple[int, int, str, str]]:
    """Yields the words at i < j with their slots, counted from the left, from both ends, and from the right."""
    n = len(words)
    for p, q in ((i, j), (i, j - n), (i - n, j - n)):
        yield p, q, words[i], words[j]
