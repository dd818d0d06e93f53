"""Small captions, tokenizers and text encoders."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import Unigram
from tokenizers.trainers import UnigramTrainer
from transformers import CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from t2i.text.clip import CLIPTextEncoder
from t2i.text.t5 import T5TextEncoder
from t2i.text.tokenizer import learn_tokenizer
from t2i.text.towers import TextTowerConfig, text_tower

COLOURS = ("red", "green", "blue", "yellow")
THINGS = ("anvil", "big frog", "honey pot", "crème brûlée", "dice 20", "don't-walk sign")
CAPTIONS = [f"{a} {t} icon on a {b} background" for t in THINGS for a in COLOURS for b in COLOURS if a != b]
CAPTIONS += [f"{t}, noto emoji" for t in THINGS]


def tokenizer(max_tokens: int = 16) -> CLIPTokenizer:
    return learn_tokenizer(CAPTIONS, 600, max_tokens)


def encoder(layers: int = 3, max_tokens: int = 16, seed: int = 0) -> CLIPTextEncoder:
    torch.manual_seed(seed)
    words = tokenizer(max_tokens)
    model = text_tower(TextTowerConfig(width=32, layers=layers, heads=2, mlp_ratio=2), words, 24)
    return CLIPTextEncoder(model.text_model, model.text_projection, words)


def saved(folder: Path, **options) -> CLIPTextEncoder:
    made = encoder(**options)
    made.save(folder)
    return made


def t5_tokenizer() -> T5Tokenizer:
    """Pieces of the captions as T5 has them: padding, end and unknown first."""
    learner = Tokenizer(Unigram())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = ["<pad>", "</s>", "<unk>"]
    learner.train_from_iterator(CAPTIONS, UnigramTrainer(vocab_size=90, special_tokens=specials, unk_token="<unk>"))
    pieces = json.loads(learner.to_str())["model"]["vocab"]
    return T5Tokenizer(vocab=[(piece, score) for piece, score in pieces], extra_ids=4)


def t5(seed: int = 0, max_tokens: int = 32, use_attention_mask: bool = False, act: str = "gated-gelu") -> T5TextEncoder:
    torch.manual_seed(seed)
    words = t5_tokenizer()
    sizes = {"d_model": 32, "d_ff": 48, "d_kv": 16, "num_layers": 2, "num_heads": 2}
    config = T5Config(vocab_size=len(words) + 5, feed_forward_proj=act, **sizes)
    return T5TextEncoder(T5EncoderModel(config), words, max_tokens, use_attention_mask)
