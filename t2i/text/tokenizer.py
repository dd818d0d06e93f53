"""Tokenizers: CLIP's byte-level BPE trained on captions, their files, and the conversion of prompts to ids."""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

START, END, SUFFIX = "<|startoftext|>", "<|endoftext|>", "</w>"
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
LETTERS = BYTES + [byte + SUFFIX for byte in BYTES]  # every byte, within a word and at its end
SMALLEST = len(LETTERS) + 2


def learn_tokenizer(captions: Iterable[str], vocab_size: int, model_max_length: int = 32) -> CLIPTokenizer:
    """Trains BPE (Sennrich et al. 2016) on captions split as CLIP splits them; START and END are the highest ids.

    The vocabulary is smaller than `vocab_size` if the captions have no further pairs to merge.
    """
    if vocab_size < SMALLEST:
        raise ValueError(
            f"vocab_size = {vocab_size} is too small: the bytes and the two special tokens need {SMALLEST}"
        )
    vocab = {letter: i for i, letter in enumerate(LETTERS)}
    merges = []
    for first, second in learn_merges(captions, vocab_size - 2):
        if len(vocab) == vocab_size - 2:
            break
        vocab.setdefault(first + second, len(vocab))
        merges.append((first, second))
    vocab |= {START: len(vocab), END: len(vocab) + 1}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=model_max_length)


def learn_merges(captions: Iterable[str], vocab_size: int) -> list[tuple[str, str]]:
    """Returns the BPE merges in order, learned after CLIP's normalizer and pre-tokenizer."""
    clip = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(BPE(end_of_word_suffix=SUFFIX))
    learner.normalizer, learner.pre_tokenizer = clip.normalizer, clip.pre_tokenizer
    # The letters are given as "special tokens" to fix their ids: the trainer breaks ties between merges by id,
    # and would otherwise number the word-ending letters in the order of a hash map.
    trainer = BpeTrainer(vocab_size=vocab_size, special_tokens=LETTERS, end_of_word_suffix=SUFFIX, show_progress=False)
    learner.train_from_iterator(captions, trainer)
    return [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: str | Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json, special_tokens_map.json, and for CLIP vocab.json and merges.txt."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        tokenizer.save_pretrained(folder)
        if isinstance(tokenizer, CLIPTokenizer):
            tokenizer.backend_tokenizer.model.save(str(folder))
    except Exception as error:  # the tokenizers library raises nothing narrower for a full disk
        if isinstance(error, OSError) or not (match := re.search(r"\(os error (\d+)\)", str(error))):
            raise
        raise OSError(int(match[1]), os.strerror(int(match[1])), str(folder)) from None
    specials = json.dumps(tokenizer.special_tokens_map, indent=2, sort_keys=True)
    (folder / "special_tokens_map.json").write_text(specials + "\n", encoding="utf8")


def identity(tokenizer: PreTrainedTokenizerFast) -> str:
    """Serializes the parts that determine the ids of a text, without padding and truncation of the last call."""
    parts = json.loads(tokenizer.backend_tokenizer.to_str()) | {"padding": None, "truncation": None}
    plain = ["special tokens are plain text"] if tokenizer.backend_tokenizer.encode_special_tokens else []
    return json.dumps([parts, tokenizer.model_max_length, tokenizer.pad_token_id, *plain], sort_keys=True)


def load_tokenizer(folder: str | Path, kind: type[PreTrainedTokenizerFast] = CLIPTokenizer) -> Any:
    """Loads the tokenizer in a folder; ValueError naming the folder if there is none or it is damaged."""
    folder = Path(folder)
    files = ("tokenizer.json", *(["vocab.json"] if kind is CLIPTokenizer else []))
    if not any((folder / name).is_file() for name in files):
        raise ValueError(f"{folder}: no {' and no '.join(files)}: the text encoder needs its tokenizer")
    try:
        tokenizer = kind.from_pretrained(folder)
    except Exception as error:  # untrusted files raise anything, even a bare Exception
        cause = " ".join(str(error).split())
        raise ValueError(f"{folder}: not a readable {kind.__name__} ({type(error).__name__}: {cause})") from None
    longest = tokenizer.model_max_length
    if type(longest) is not int or longest < 1:
        raise ValueError(f"{folder}: `model_max_length` = {longest!r} is not a whole number above 0")
    return tokenizer


def token_id(tokenizer: PreTrainedTokenizerFast, token: object) -> int:
    """Returns the id of a special token."""
    id = tokenizer.convert_tokens_to_ids(str(token))
    assert isinstance(id, int)
    return id


def start_end_ids(tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """Returns the ids that begin and the ids that end every prompt."""
    ids: list[int] = tokenizer("")["input_ids"]  # pyright: ignore[reportAssignmentType]
    return ids[:-1], ids[-1:]


def multi_vector_tokens(tokenizer: PreTrainedTokenizerFast) -> dict[int, list[int]]:
    """Maps the id of an added token <a> to the ids that it stands for: those of <a>, <a>_1, <a>_2, .."""
    added = tokenizer.get_added_vocab()
    expansions = {}
    for token, first in added.items():
        ids = [first]
        while (following := added.get(f"{token}_{len(ids)}")) is not None:
            ids.append(following)
        if len(ids) > 1:
            expansions[first] = ids
    return expansions


class TextIds(NamedTuple):
    """The ids of a text without those of start and end, and the character at which each begins."""

    ids: list[int]
    starts: list[int]


def text_ids(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[TextIds]:
    """Returns the ids of each text; a token of several vectors becomes all of its ids."""
    if not texts:
        return []
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    expansions = multi_vector_tokens(tokenizer)
    rows = []
    for row, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        pairs = [(i, start) for id, (start, _) in zip(row, offsets, strict=True) for i in expansions.get(id, [id])]
        rows.append(TextIds([i for i, _ in pairs], [start for _, start in pairs]))
    return rows


def count_tokens(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[int]:
    """Returns the number of tokens of each text, start and end included; more than `max_tokens` are truncated."""
    ends = sum(map(len, start_end_ids(tokenizer)))
    return [len(text.ids) + ends for text in text_ids(tokenizer, texts)]


class Tokens(NamedTuple):
    """Prompts as padded ids, the mask of real tokens, and the truncated end of each prompt."""

    ids: Int[Tensor, "b n"]
    mask: Bool[Tensor, "b n"]
    truncated: list[str]


def tokenize(tokenizer: PreTrainedTokenizerFast, prompts: list[str], max_tokens: int) -> Tokens:
    """Returns start, text and end of each prompt, padded to `max_tokens`; a text that is too long is truncated."""
    begin, end = start_end_ids(tokenizer)
    room = max_tokens - len(begin) - len(end)
    rows = text_ids(tokenizer, prompts)
    truncated = [
        prompt[starts[room] :] if len(ids) > room else "" for prompt, (ids, starts) in zip(prompts, rows, strict=True)
    ]
    return Tokens(*pad(tokenizer, [begin + ids[:room] + end for ids, _ in rows], max_tokens), truncated)


def pad(
    tokenizer: PreTrainedTokenizerFast, rows: list[list[int]], max_tokens: int
) -> tuple[Int[Tensor, "b n"], Bool[Tensor, "b n"]]:
    """Returns rows of ids as one tensor of `max_tokens` columns, and the mask of real tokens."""
    ids = torch.full((len(rows), max_tokens), token_id(tokenizer, tokenizer.pad_token))
    mask = torch.zeros(len(rows), max_tokens, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = True
    return ids, mask
