"""Tokenizers: CLIP's byte-level BPE trained on captions, the files that every reader knows, and prompts as ids."""

import json
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


def train_tokenizer(
    captions: Iterable[str], vocab_size: int, folder: str | Path, model_max_length: int = 32
) -> CLIPTokenizer:
    """`learn_tokenizer`, and its folder written."""
    tokenizer = learn_tokenizer(captions, vocab_size, model_max_length)
    save_tokenizer(tokenizer, folder)
    return tokenizer


def learn_tokenizer(captions: Iterable[str], vocab_size: int, model_max_length: int = 32) -> CLIPTokenizer:
    """BPE (Sennrich et al. 2016) on captions as CLIP splits them; START and END are the highest ids.

    The vocabulary is smaller than `vocab_size` where the captions have no more to merge.
    """
    if vocab_size < SMALLEST:
        raise ValueError(
            f"vocab_size = {vocab_size} is too small: {SMALLEST} hold the bytes and the two special tokens"
        )
    vocab = {letter: i for i, letter in enumerate(LETTERS)}
    merges = []
    for left, right in learn_merges(captions, vocab_size - 2):
        if len(vocab) == vocab_size - 2:
            break
        vocab.setdefault(left + right, len(vocab))
        merges.append((left, right))
    vocab |= {START: len(vocab), END: len(vocab) + 1}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=model_max_length)


def learn_merges(captions: Iterable[str], vocab_size: int) -> list[tuple[str, str]]:
    """BPE merges in order, learnt behind CLIP's own normaliser and pre-tokenizer."""
    stock = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(BPE(end_of_word_suffix=SUFFIX))
    learner.normalizer, learner.pre_tokenizer = stock.normalizer, stock.pre_tokenizer
    # The letters go in as "special tokens" to fix their ids: the trainer breaks ties between merges by id,
    # and would otherwise number the word-ending letters in the order of a hash map.
    trainer = BpeTrainer(vocab_size=vocab_size, special_tokens=LETTERS, end_of_word_suffix=SUFFIX, show_progress=False)
    learner.train_from_iterator(captions, trainer)
    return [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: str | Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json; CLIP's also vocab.json, merges.txt."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    if isinstance(tokenizer, CLIPTokenizer):
        tokenizer.backend_tokenizer.model.save(str(folder))
    specials = json.dumps(tokenizer.special_tokens_map, indent=2, sort_keys=True)
    (folder / "special_tokens_map.json").write_text(specials + "\n", encoding="utf8")


def identity(tokenizer: PreTrainedTokenizerFast) -> str:
    """What fixes the ids of a text: the tokenizer without the padding and truncation of its last call."""
    parts = json.loads(tokenizer.backend_tokenizer.to_str()) | {"padding": None, "truncation": None}
    plain = ["special tokens are plain text"] if tokenizer.backend_tokenizer.encode_special_tokens else []
    return json.dumps([parts, tokenizer.model_max_length, tokenizer.pad_token_id, *plain], sort_keys=True)


def load_tokenizer(folder: str | Path, kind: type[PreTrainedTokenizerFast] = CLIPTokenizer) -> Any:
    """The tokenizer in a folder; its absence is an error that names the folder."""
    folder = Path(folder)
    files = ("tokenizer.json", *(["vocab.json"] if kind is CLIPTokenizer else []))
    if not any((folder / name).is_file() for name in files):
        raise ValueError(f"{folder}: no {' and no '.join(files)}: the text encoder needs its own tokenizer")
    try:
        tokenizer = kind.from_pretrained(folder)
    except Exception as error:  # files from an unknown hand raise anything, a bare Exception among it
        cause = " ".join(str(error).split())
        raise ValueError(f"{folder}: not a readable {kind.__name__} ({type(error).__name__}: {cause})") from None
    longest = tokenizer.model_max_length
    if type(longest) is not int or longest < 1:
        raise ValueError(f"{folder}: `model_max_length` = {longest!r} is not a whole number above 0")
    return tokenizer


def token_id(tokenizer: PreTrainedTokenizerFast, token: object) -> int:
    """The id of a special token."""
    found = tokenizer.convert_tokens_to_ids(str(token))
    assert isinstance(found, int)
    return found


def frame(tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """The ids that begin and end every prompt."""
    ids: list[int] = tokenizer("")["input_ids"]  # pyright: ignore[reportAssignmentType]
    return ids[:-1], ids[-1:]


def vectors(tokenizer: PreTrainedTokenizerFast) -> dict[int, list[int]]:
    """The ids that one added token stands for: those of <a>, <a>_1, <a>_2, .. for that of <a>."""
    added = tokenizer.get_added_vocab()
    found = {}
    for token, first in added.items():
        ids = [first]
        while (following := added.get(f"{token}_{len(ids)}")) is not None:
            ids.append(following)
        if len(ids) > 1:
            found[first] = ids
    return found


class Words(NamedTuple):
    """A text's ids without the frame, and the character where each begins."""

    ids: list[int]
    starts: list[int]


def read_words(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[Words]:
    """Each text as ids, a token of several vectors as all of them."""
    if not texts:
        return []
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    expanded = vectors(tokenizer)
    found = []
    for row, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        pairs = [(i, start) for id, (start, _) in zip(row, offsets, strict=True) for i in expanded.get(id, [id])]
        found.append(Words([i for i, _ in pairs], [start for _, start in pairs]))
    return found


class Tokens(NamedTuple):
    """Prompts as padded ids, the mask of real tokens, and the end of each prompt that did not fit."""

    ids: Int[Tensor, "b n"]
    mask: Bool[Tensor, "b n"]
    truncated: list[str]


def tokenize(tokenizer: PreTrainedTokenizerFast, prompts: list[str], max_tokens: int) -> Tokens:
    """The framed text, padded to `max_tokens`; what does not fit is cut before END and reported."""
    begin, end = frame(tokenizer)
    room = max_tokens - len(begin) - len(end)
    words = read_words(tokenizer, prompts)
    truncated = [
        prompt[starts[room] :] if len(ids) > room else "" for prompt, (ids, starts) in zip(prompts, words, strict=True)
    ]
    return Tokens(*pad(tokenizer, [begin + ids[:room] + end for ids, _ in words], max_tokens), truncated)


def pad(
    tokenizer: PreTrainedTokenizerFast, rows: list[list[int]], max_tokens: int
) -> tuple[Int[Tensor, "b n"], Bool[Tensor, "b n"]]:
    """Rows of ids as one tensor of `max_tokens` columns, and where they are real."""
    ids = torch.full((len(rows), max_tokens), token_id(tokenizer, tokenizer.pad_token))
    mask = torch.zeros(len(rows), max_tokens, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = True
    return ids, mask
