"""Prompts -> token states: each text is encoded once, and every image refers to its states by row."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from t2i.conditioning import Conditioning
from t2i.errors import ConfigError, check_finite
from t2i.pipeline import request as checks
from t2i.pipeline.noise import slerp
from t2i.pipeline.request import Request
from t2i.text.base import TextEncoder
from t2i.text.prompts import SYNTAXES, count_chunks, encode_prompts


@dataclass(frozen=True)
class Texts:
    """Token states, each text once, with the rows of every prompt and of its negative prompt."""

    states: Conditioning
    rows: Int[Tensor, " p"]
    uncond_rows: Int[Tensor, " p"]
    truncated: list[str]
    negative_truncated: list[str]


def texts_of(request: Request, width: int, guidance: float) -> tuple[list[str] | Tensor, list[str] | Tensor | None]:
    """Returns prompts and negative prompts, as strings or as states; no negatives where the guidance scale is 1."""
    embeds, negative_embeds = request.prompt_embeds, request.negative_prompt_embeds
    if (request.prompt is None) == (embeds is None):
        raise ConfigError("prompt", "give prompt or prompt_embeds, one of the two")
    if request.negative_prompt is not None and negative_embeds is not None:
        raise ConfigError("negative_prompt", "given beside negative_prompt_embeds; give one of the two")
    if request.prompt_syntax not in SYNTAXES:
        raise ConfigError("prompt_syntax", f"unknown; choose one of {', '.join(SYNTAXES)}", request.prompt_syntax)
    if embeds is None:
        prompts = checks.prompt_list(request.prompt, "prompt")
    else:
        checks.check_embeds("prompt_embeds", embeds, width)
        prompts = embeds
    if request.towards is not None and (embeds is not None or len(request.towards) != len(prompts)):
        raise ConfigError("towards", f"{len(request.towards)} given; one (or None) for each prompt is needed")
    if negative_embeds is None:
        negatives = checks.negative_list(request.negative_prompt, len(prompts))
    else:
        checks.check_embeds("negative_prompt_embeds", negative_embeds, width, (1, len(prompts)))
        negatives = negative_embeds
    if guidance != 1:
        return prompts, negatives
    if isinstance(negatives, Tensor) or any(negatives):
        warnings.warn("guidance_scale = 1 is no guidance: the negative prompt is ignored", stacklevel=4)
    if request.guidance_rescale or request.guidance_interval != (0, 1):
        warnings.warn("guidance_scale = 1 is no guidance: its rescaling and interval are ignored", stacklevel=4)
    return prompts, None


@torch.inference_mode()
def encode(
    encoder: TextEncoder, prompts: list[str] | Tensor, negatives: list[str] | Tensor | None, request: Request
) -> Texts:
    """Encodes every text, equal texts once; states that are given are taken as they are."""
    towards = request.towards or ()
    parts = [prompts, negatives, [text for text, _ in filter(None, towards)]]
    texts = list(dict.fromkeys(t for part in parts if isinstance(part, list) for t in part))
    bank, cut = _states(encoder, texts, request)
    row_of = {text: i for i, text in enumerate(texts)}
    device = encoder.device

    def rows_of(part: list[str] | Tensor) -> Tensor:
        if isinstance(part, list):
            return torch.tensor([row_of[text] for text in part])
        start = sum(len(states) for states in bank)
        tokens = part.to(device)
        bank.append(Conditioning(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=device)))
        return torch.arange(start, start + len(part)).expand(max(len(part), len(prompts)))

    rows = rows_of(prompts)
    uncond_rows = rows if negatives is None else rows_of(negatives)
    if len(lengths := {states.tokens.shape[1] for states in bank}) > 1:
        raise ConfigError(
            "negative_prompt_embeds", f"prompts and negatives have {sorted(lengths)} tokens, not equally many"
        )
    states = Conditioning.cat(bank)
    for i, aim in enumerate(towards):
        if aim is not None:
            states = Conditioning.cat([states, _between(states, int(rows[i]), row_of[aim[0]], aim[1])])
            rows[i] = len(states) - 1
    return Texts(
        states,
        rows,
        uncond_rows,
        [cut[t] for t in prompts] if isinstance(prompts, list) else [""] * len(prompts),
        [cut[t] for t in negatives] if isinstance(negatives, list) else [""] * len(prompts),
    )


def _states(encoder: TextEncoder, texts: Sequence[str], request: Request) -> tuple[list[Conditioning], dict[str, str]]:
    """Returns the states of `texts` batch by batch, and the end of each that did not fit."""
    assert request.clip_skip is not None, "a resolved request has the number of layers"
    encoder = encoder.with_clip_skip(request.clip_skip)
    parts = [list(texts[i : i + request.batch_size]) for i in range(0, len(texts), request.batch_size)]
    if request.prompt_syntax == "plain" and not request.long_prompts:
        encoded = [encoder(part) for part in parts]
    else:
        syntax, long = request.prompt_syntax, request.long_prompts
        least = count_chunks(encoder, list(texts), syntax) if long else 1
        encoded = [encode_prompts(encoder, part, syntax=syntax, chunks=long, min_chunks=least) for part in parts]
    bank = [part.conditioning for part in encoded]
    for part in bank:
        check_finite(part.tokens, "text encoder")
    return bank, dict(zip(texts, (t for part in encoded for t in part.truncated), strict=True))


def _between(states: Conditioning, a: int, b: int, fraction: float) -> Conditioning:
    """Returns the states at `fraction` of the way from prompt `a` to prompt `b`, along the arc of each token."""
    pooled = None if states.pooled is None else slerp(states.pooled[a : a + 1], states.pooled[b : b + 1], fraction)
    return Conditioning(
        slerp(states.tokens[a], states.tokens[b], fraction)[None],
        states.mask[a : a + 1] | states.mask[b : b + 1],
        pooled,
    )
