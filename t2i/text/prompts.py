"""Prompts with weights, and prompts of more tokens than a text encoder takes.

The weighting syntax is that of AUTOMATIC1111's web UI: (word:1.2), ((word)), [word], BREAK, and escapes.
"""

import re
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from t2i.conditioning import Conditioning
from t2i.text.base import Encoded, TextEncoder
from t2i.text.tokenizer import pad, start_end_ids, text_ids

SYNTAXES = ("plain", "a1111")
SMALLEST_MEAN = 0.01  # of the states' root mean square; a smaller mean is noise, and so is a ratio of two of them

STEP = 1.1  # weight of one ( ); one [ ] divides by it
MAX_WEIGHT = 1000.0  # weights are clamped to +-MAX_WEIGHT, so that states stay finite
BREAK = re.compile(r"\bBREAK\b")  # begins a new chunk

NUMBER = r"[+-]?+(?:[0-9]{1,9}+(?:\.[0-9]{0,9}+)?+|\.[0-9]{1,9}+)"
# Possessive, so that the time is linear: an escape, a weight that closes a bracket, a bracket, or text.
TOKEN = re.compile(rf"\\[\\()\[\]]|:\s*+({NUMBER})\s*+\)|[()\[\]\\:]|[^\\()\[\]:]++")
OPEN = {"(": STEP, "[": 1 / STEP}
CLOSE = {")": "(", "]": "["}


@dataclass
class Cut:
    """A prompt as chunks of (id, weight), and its truncated end."""

    chunks: list[list[tuple[int, float]]] = field(default_factory=lambda: [[]])
    truncated: str = ""


class Part(NamedTuple):
    """A text with one weight; `breaks` if a new chunk begins with it."""

    text: str
    weight: float
    breaks: bool


def encode_prompts(
    encoder: TextEncoder, texts: list[str], *, syntax: str = "plain", chunks: bool = False, min_chunks: int = 1
) -> Encoded:
    """Returns the states of prompts, all with the same number of tokens.

    syntax="a1111" reads weights (see `parse_weights`). With `chunks`, a prompt of more than max_tokens is encoded in
    chunks, each with its start and end tokens, and their states are concatenated; all prompts get as many chunks as
    the longest, at least `min_chunks`, filled up with empty ones. `pooled` is that of the first chunk.
    """
    if min_chunks > 1 and not chunks:
        raise ValueError(f"min_chunks = {min_chunks} needs chunks=True")
    cuts = [cut_prompt(encoder, text, syntax, chunks) for text in texts]
    n = max([min_chunks, *(len(cut.chunks) for cut in cuts)])
    rows = [chunk for cut in cuts for chunk in cut.chunks + [[]] * (n - len(cut.chunks))]
    begin, end = start_end_ids(encoder.tokenizer)
    ids, mask = pad(encoder.tokenizer, [begin + [i for i, _ in row] + end for row in rows], encoder.max_tokens)
    weights = torch.ones(ids.shape)
    for weight, row in zip(weights, rows, strict=True):
        weight[len(begin) : len(begin) + len(row)] = torch.tensor([w for _, w in row])
    encoded = encoder.states(ids, mask)
    states = emphasize(encoded.tokens, weights.to(encoded.tokens.device))
    conditioning = Conditioning(
        states.reshape(len(texts), n * encoder.max_tokens, encoder.width),
        encoded.mask.reshape(len(texts), n * encoder.max_tokens),
        None if encoded.pooled is None else encoded.pooled[::n],
    )
    return Encoded(conditioning, [cut.truncated for cut in cuts])


def count_chunks(encoder: TextEncoder, texts: list[str], syntax: str = "plain") -> int:
    """Returns the number of chunks that the longest prompt needs: `min_chunks` for calls that must agree."""
    return max((len(cut_prompt(encoder, text, syntax, chunks=True).chunks) for text in texts), default=1)


def cut_prompt(encoder: TextEncoder, text: str, syntax: str, chunks: bool) -> Cut:
    """Cuts a prompt into chunks of at most as many tokens as fit between the start and end tokens."""
    parts = parts_of(text, syntax)
    room = encoder.max_tokens - sum(map(len, start_end_ids(encoder.tokenizer)))
    cut = Cut()
    for i, (part, row) in enumerate(zip(parts, text_ids(encoder.tokenizer, [p.text for p in parts]), strict=True)):
        if part.breaks:
            if not chunks:
                raise ValueError(
                    "prompt: BREAK begins a new chunk: set --long-prompts (long_prompts=True), or remove it"
                )
            cut.chunks.append([])
        for id, start in zip(*row, strict=True):
            if len(cut.chunks[-1]) == room:
                if not chunks:
                    cut.truncated = part.text[start:] + "".join(p.text for p in parts[i + 1 :])
                    return cut
                cut.chunks.append([])
            cut.chunks[-1].append((id, part.weight))
    return cut


def parts_of(text: str, syntax: str) -> list[Part]:
    """Splits a prompt into texts of one weight each."""
    if syntax not in SYNTAXES:
        raise ValueError(f"prompt syntax = {syntax!r} is unknown: choose one of {', '.join(SYNTAXES)}")
    if syntax == "plain":
        return [Part(text, 1.0, False)]
    check_syntax(text)
    split = [(BREAK.split(piece), weight) for piece, weight in parse_weights(text)]
    return [Part(words, weight, i > 0) for run, weight in split for i, words in enumerate(run)]


def emphasize(states: Float[Tensor, "c n d"], weights: Float[Tensor, "c n"]) -> Float[Tensor, "c n d"]:
    """Multiplies each token's state by its weight, then each chunk by the factor that restores its mean (as A1111).

    A chunk whose mean is near zero, before or after, is only weighted.
    """
    if bool((weights == 1).all()):
        return states
    before = states.float()
    after = before * weights[..., None]
    old, new = before.mean((1, 2)), after.mean((1, 2))
    least = SMALLEST_MEAN * before.square().mean((1, 2)).sqrt()
    ratio = torch.where((old.abs() > least) & (new.abs() > least), old / new, 1.0)
    return (after * ratio[:, None, None]).to(states.dtype)


def parse_weights(text: str) -> list[tuple[str, float]]:
    """Splits a prompt into pieces and their weights; adjacent pieces of equal weight are merged.

    (a) is 1.1, ((a)) is 1.1 * 1.1, [a] is 1 / 1.1, (a:1.3) is 1.3; nested brackets multiply. A backslash escapes a
    bracket. An unclosed bracket extends to the end; a closing bracket without an opening one is text.
    """
    tokens = list(TOKEN.finditer(text))
    factors = bracket_factors(tokens)
    stacks: dict[str, list[float]] = {"(": [1.0], "[": [1.0]}
    pieces: list[tuple[str, float]] = []
    for i, token in enumerate(tokens):
        matched = token[0]
        if i in factors:
            kind, factor = factors[i]
            if factor is None:
                stacks[kind].pop()
            else:
                stacks[kind].append(clamp(stacks[kind][-1] * factor))
            continue
        plain = matched[1:] if matched[0] == "\\" else matched
        if plain:
            pieces.append((plain, clamp(stacks["("][-1] * stacks["["][-1])))
    merged = [("".join(t for t, _ in run), weight) for weight, run in groupby(pieces, lambda piece: piece[1])]
    return merged or [("", 1.0)]


def bracket_factors(tokens: list[re.Match[str]]) -> dict[int, tuple[str, float | None]]:
    """Maps the index of each token that is a bracket, not text, to its kind and its factor (None if it closes)."""
    factors: dict[int, tuple[str, float | None]] = {}
    opened: dict[str, list[int]] = {"(": [], "[": []}
    for i, token in enumerate(tokens):
        matched = token[0]
        if matched in OPEN:
            opened[matched].append(i)
            factors[i] = matched, OPEN[matched]
        kind = "(" if token[1] is not None else CLOSE.get(matched)
        if kind and opened[kind]:
            start = opened[kind].pop()
            factors[start] = kind, OPEN[kind] if token[1] is None else float(token[1])
            factors[i] = kind, None
    return factors


def clamp(weight: float) -> float:
    """Returns the weight clamped to [-MAX_WEIGHT, MAX_WEIGHT]."""
    return max(-MAX_WEIGHT, min(MAX_WEIGHT, weight))


def check_syntax(text: str) -> None:
    """Raises ValueError for the parts of A1111's syntax that are not supported, which would be read as words."""
    for inner in re.findall(r"(?<!\\)\[([^\[\]]*+)\]", text):
        when = inner.rpartition(":")
        if "|" in inner or (when[1] and re.fullmatch(rf"\s*+{NUMBER}\s*+", when[2])):
            raise ValueError(
                f"prompt: [{inner}] is prompt editing, which is not supported: write one text, or \\[ for a bracket"
            )
    if extra := re.search(r"<(?:lora|lyco|hypernet):", text):
        raise ValueError(
            f"prompt: {extra[0]}..> in a prompt is not supported: remove it, and give the LoRA with --lora"
        )
    if re.search(r"\bAND\b", text):
        raise ValueError("prompt: AND (composed prompts) is not supported: write it in lower case")
