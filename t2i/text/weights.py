"""The weighting syntax of prompts: (word:1.2), ((word)), [word], and escapes, as AUTOMATIC1111's web UI reads it."""

import re
from itertools import groupby

STEP = 1.1  # of one ( ); one [ ] divides by it
LARGEST = 1000.0  # no weight is further from 0: all stay finite
BREAK = re.compile(r"\bBREAK\b")  # begins a new chunk

NUMBER = r"[+-]?+(?:[0-9]{1,9}+(?:\.[0-9]{0,9}+)?+|\.[0-9]{1,9}+)"
# Possessive, so that every character is read once: an escape, a weight that closes a bracket, a bracket, or text.
TOKEN = re.compile(rf"\\[\\()\[\]]|:\s*+({NUMBER})\s*+\)|[()\[\]\\:]|[^\\()\[\]:]++")
OPEN = {"(": STEP, "[": 1 / STEP}
CLOSE = {")": "(", "]": "["}


def parse_weights(text: str) -> list[tuple[str, float]]:
    """A prompt as pieces and their weights; neighbours of one weight are one piece.

    (a) is 1.1, ((a)) is 1.1 * 1.1, [a] is 1 / 1.1, (a:1.3) is 1.3, and brackets multiply. A backslash takes the
    meaning from a bracket. A bracket that nothing closes reaches to the end, one that nothing opened is text.
    """
    tokens = list(TOKEN.finditer(text))
    factors = bracket_factors(tokens)
    stacks: dict[str, list[float]] = {"(": [1.0], "[": [1.0]}
    pieces: list[tuple[str, float]] = []
    for i, token in enumerate(tokens):
        found = token[0]
        if i in factors:
            kind, factor = factors[i]
            if factor is None:
                stacks[kind].pop()
            else:
                stacks[kind].append(within(stacks[kind][-1] * factor))
            continue
        plain = found[1:] if found[0] == "\\" else found
        if plain:
            pieces.append((plain, within(stacks["("][-1] * stacks["["][-1])))
    merged = [("".join(t for t, _ in run), weight) for weight, run in groupby(pieces, lambda piece: piece[1])]
    return merged or [("", 1.0)]


def bracket_factors(tokens: list[re.Match[str]]) -> dict[int, tuple[str, float | None]]:
    """For each token that is a bracket and no text: its kind, and what it multiplies by (None where it closes)."""
    factors: dict[int, tuple[str, float | None]] = {}
    opened: dict[str, list[int]] = {"(": [], "[": []}
    for i, token in enumerate(tokens):
        found = token[0]
        if found in OPEN:
            opened[found].append(i)
            factors[i] = found, OPEN[found]
        kind = "(" if token[1] is not None else CLOSE.get(found)
        if kind and opened[kind]:
            start = opened[kind].pop()
            factors[start] = kind, OPEN[kind] if token[1] is None else float(token[1])
            factors[i] = kind, None
    return factors


def within(weight: float) -> float:
    """A weight in [-LARGEST, LARGEST]."""
    return max(-LARGEST, min(LARGEST, weight))


def refuse_unknown(text: str) -> None:
    """Refuse the parts of the syntax that are not built, rather than read them as words."""
    for inner in re.findall(r"(?<!\\)\[([^\[\]]*+)\]", text):
        when = inner.rpartition(":")
        if "|" in inner or (when[1] and re.fullmatch(rf"\s*+{NUMBER}\s*+", when[2])):
            raise ValueError(
                f"prompt: [{inner}] is prompt editing, which is not supported: write one text, or \\[ for a bracket"
            )
    if extra := re.search(r"<(?:lora|lyco|hypernet):", text):
        raise ValueError(
            f"prompt: {extra[0]}..> in a prompt is not supported: take it out, and give a LoRA with --lora"
        )
    if re.search(r"\bAND\b", text):
        raise ValueError("prompt: AND (composed prompts) is not supported: write it in small letters")
