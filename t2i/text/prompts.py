"""Prompts with weights, and prompts longer than a text encoder's tokens."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from t2i.conditioning import Conditioning
from t2i.text.base import Encoded, TextEncoder
from t2i.text.tokenizer import frame, pad, read_words
from t2i.text.weights import BREAK, parse_weights, refuse_unknown

SYNTAXES = ("plain", "a1111")
SMALLEST_MEAN = 0.01  # of the states' root mean square; a mean below it is noise, and a ratio of such says nothing


@dataclass
class Cut:
    """A prompt as chunks of (id, weight), and the end of it that has no room."""

    chunks: list[list[tuple[int, float]]] = field(default_factory=lambda: [[]])
    truncated: str = ""


class Part(NamedTuple):
    """Text of one weight; `breaks` where a new chunk begins with it."""

    text: str
    weight: float
    breaks: bool


def encode_prompts(
    encoder: TextEncoder, texts: list[str], *, syntax: str = "plain", chunks: bool = False, min_chunks: int = 1
) -> Encoded:
    """The states of prompts, all of equally many tokens.

    syntax="a1111" reads weights (see `parse_weights`). With `chunks`, a prompt of more than max_tokens is read in
    chunks that each have a begin and an end of their own, their states in a row; all prompts get as many chunks as
    the longest, `min_chunks` at least, the missing ones empty. `pooled` is that of the first chunk.
    """
    if min_chunks > 1 and not chunks:
        raise ValueError(f"min_chunks = {min_chunks} needs chunks=True")
    cuts = [cut_prompt(encoder, text, syntax, chunks) for text in texts]
    n = max([min_chunks, *(len(cut.chunks) for cut in cuts)])
    rows = [chunk for cut in cuts for chunk in cut.chunks + [[]] * (n - len(cut.chunks))]
    begin, end = frame(encoder.tokenizer)
    ids, mask = pad(encoder.tokenizer, [begin + [i for i, _ in row] + end for row in rows], encoder.max_tokens)
    weights = torch.ones(ids.shape)
    for weight, row in zip(weights, rows, strict=True):
        weight[len(begin) : len(begin) + len(row)] = torch.tensor([w for _, w in row])
    found = encoder.states(ids, mask)
    states = emphasise(found.tokens, weights.to(found.tokens.device))
    conditioning = Conditioning(
        states.reshape(len(texts), n * encoder.max_tokens, encoder.width),
        found.mask.reshape(len(texts), n * encoder.max_tokens),
        None if found.pooled is None else found.pooled[::n],
    )
    return Encoded(conditioning, [cut.truncated for cut in cuts])


def count_chunks(encoder: TextEncoder, texts: list[str], syntax: str = "plain") -> int:
    """The chunks that the longest of the prompts needs: the `min_chunks` of calls that must agree."""
    return max((len(cut_prompt(encoder, text, syntax, chunks=True).chunks) for text in texts), default=1)


def cut_prompt(encoder: TextEncoder, text: str, syntax: str, chunks: bool) -> Cut:
    """A prompt as chunks of at most as many tokens as fit between begin and end."""
    parts = parts_of(text, syntax)
    room = encoder.max_tokens - sum(map(len, frame(encoder.tokenizer)))
    cut = Cut()
    for i, (part, words) in enumerate(zip(parts, read_words(encoder.tokenizer, [p.text for p in parts]), strict=True)):
        if part.breaks:
            if not chunks:
                raise ValueError(
                    "prompt: BREAK begins a new chunk: give --long-prompts (long_prompts=True), or take it out"
                )
            cut.chunks.append([])
        for id, start in zip(*words, strict=True):
            if len(cut.chunks[-1]) == room:
                if not chunks:
                    cut.truncated = part.text[start:] + "".join(p.text for p in parts[i + 1 :])
                    return cut
                cut.chunks.append([])
            cut.chunks[-1].append((id, part.weight))
    return cut


def parts_of(text: str, syntax: str) -> list[Part]:
    """A prompt as texts of one weight each."""
    if syntax not in SYNTAXES:
        raise ValueError(f"prompt syntax = {syntax!r} is unknown: choose one of {', '.join(SYNTAXES)}")
    if syntax == "plain":
        return [Part(text, 1.0, False)]
    refuse_unknown(text)
    split = [(BREAK.split(piece), weight) for piece, weight in parse_weights(text)]
    return [Part(words, weight, i > 0) for run, weight in split for i, words in enumerate(run)]


def emphasise(states: Float[Tensor, "c n d"], weights: Float[Tensor, "c n"]) -> Float[Tensor, "c n d"]:
    """Each token's state times its weight, then each chunk times what restores its mean.

    States whose mean is next to nothing, before or after, have none to restore: they are only weighted.
    """
    if bool((weights == 1).all()):
        return states
    before = states.float()
    after = before * weights[..., None]
    old, new = before.mean((1, 2)), after.mean((1, 2))
    least = SMALLEST_MEAN * before.square().mean((1, 2)).sqrt()
    ratio = torch.where((old.abs() > least) & (new.abs() > least), old / new, 1.0)
    return (after * ratio[:, None, None]).to(states.dtype)
