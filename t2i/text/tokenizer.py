"""CLIP's byte-level BPE tokenizer: training on captions, and the files that every reader of it knows."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from transformers import CLIPTokenizer

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


def save_tokenizer(tokenizer: CLIPTokenizer, folder: str | Path) -> None:
    """Write vocab.json, merges.txt, tokenizer.json, tokenizer_config.json and special_tokens_map.json."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.model.save(str(folder))
    specials = json.dumps(tokenizer.special_tokens_map, indent=2, sort_keys=True)
    (folder / "special_tokens_map.json").write_text(specials + "\n", encoding="utf8")


def identity(tokenizer: CLIPTokenizer) -> str:
    """What fixes the ids of a text: the tokenizer without the padding and truncation of its last call."""
    parts = json.loads(tokenizer.backend_tokenizer.to_str()) | {"padding": None, "truncation": None}
    return json.dumps([parts, tokenizer.model_max_length, tokenizer.pad_token_id], sort_keys=True)


def load_tokenizer(folder: str | Path) -> CLIPTokenizer:
    """The CLIP tokenizer in a folder; its absence is an error that names the folder."""
    folder = Path(folder)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise ValueError(f"{folder}: no tokenizer.json and no vocab.json: the text encoder needs its own tokenizer")
    return CLIPTokenizer.from_pretrained(folder)


def token_id(tokenizer: CLIPTokenizer, token: object) -> int:
    """The id of a special token."""
    found = tokenizer.convert_tokens_to_ids(str(token))
    assert isinstance(found, int)
    return found


class Tokens(NamedTuple):
    """Prompts as padded ids, the mask of real tokens, and the end of each prompt that did not fit."""

    ids: Int[Tensor, "b n"]
    mask: Bool[Tensor, "b n"]
    truncated: list[str]


def tokenize(tokenizer: CLIPTokenizer, prompts: list[str], max_tokens: int) -> Tokens:
    """START text END, padded to `max_tokens`; what does not fit is cut before END and reported."""
    encoded = tokenizer(prompts, return_offsets_mapping=True, verbose=False)
    ids = torch.full((len(prompts), max_tokens), token_id(tokenizer, tokenizer.pad_token))
    mask = torch.zeros(len(prompts), max_tokens, dtype=torch.bool)
    truncated = []
    for i, (row, offsets) in enumerate(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)):
        fits = len(row) <= max_tokens
        truncated.append("" if fits else prompts[i][offsets[max_tokens - 1][0] :])
        row = row if fits else [*row[: max_tokens - 1], tokenizer.eos_token_id]
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = True
    return Tokens(ids, mask, truncated)
