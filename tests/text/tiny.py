"""Small captions, tokenizers and text encoders."""

from pathlib import Path

import torch
from transformers import CLIPTokenizer

from t2i.text.clip import CLIPTextEncoder
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
