"""The table of text encoders, and how one is opened by name."""

from pathlib import Path

import torch
from huggingface_hub import snapshot_download

from t2i.component import read_json
from t2i.text.base import Encoded, TextEncoder
from t2i.text.clip import CLIPTextEncoder, find_folders

__all__ = ["ENCODERS", "Encoded", "TextEncoder", "load_text_encoder"]

# By `model_type` in config.json: a text tower alone, or out of a whole CLIP.
ENCODERS: dict[str, type[CLIPTextEncoder]] = {"clip": CLIPTextEncoder, "clip_text_model": CLIPTextEncoder}

FILES = ["config.json", "tokenizer*.json", "vocab.json", "merges.txt", "special_tokens_map.json", "model*.safetensors*"]


def load_text_encoder(
    name_or_folder: str | Path, layer: int | None = None, dtype: torch.dtype | None = None
) -> CLIPTextEncoder:
    """A frozen text encoder from a hub name, a diffusers-style folder or a plain transformers folder.

    `layer` counts from the end of the file's layers (-1 last, -2 penultimate); `dtype` is fp32 by default.
    """
    folder = Path(name_or_folder)
    if not folder.is_dir():
        if folder.is_absolute() or len(folder.parts) > 2 or str(name_or_folder).startswith("."):
            raise ValueError(f"{folder}: no such folder")  # a hub name is NAME or OWNER/NAME
        folder = download(str(name_or_folder))
    config = find_folders(folder)[0] / "config.json"
    kind = read_json(config).get("model_type")
    if kind not in ENCODERS:
        raise ValueError(f"{config}: `model_type` = {kind!r} is not a text encoder; allowed: {', '.join(ENCODERS)}")
    return ENCODERS[kind].load(folder, layer, dtype)


def download(name: str) -> Path:
    """A hub repository's text encoder and tokenizer; safetensors only."""
    patterns = [prefix + file for prefix in ("", "text_encoder/", "tokenizer/") for file in FILES]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        cause = str(error).splitlines()[0]
        raise ValueError(f"text encoder {name!r}: no such folder, and the hub did not give it ({cause})") from None
