"""The table of text encoder families, and `load_text_encoder`, which opens one by name."""

from pathlib import Path

import torch
from huggingface_hub import snapshot_download

from t2i.files import read_json
from t2i.text.base import Encoded, TextEncoder, find_folders
from t2i.text.clip import CLIPTextEncoder
from t2i.text.controls import FORMS, NULL, ORACLE, NullTextEncoder, OracleTextEncoder, load_control
from t2i.text.openclip import load_openclip
from t2i.text.t5 import T5TextEncoder

__all__ = ["ENCODERS", "Encoded", "TextEncoder", "load_text_encoder"]

# By config.json's `control` if it has one, else by its `model_type`: a text tower, a whole CLIP or a whole T5.
ENCODERS: dict[str, type[CLIPTextEncoder] | type[T5TextEncoder] | type[OracleTextEncoder]] = {
    "clip": CLIPTextEncoder,
    "clip_text_model": CLIPTextEncoder,
    "t5": T5TextEncoder,
    NULL: NullTextEncoder,
    ORACLE: OracleTextEncoder,
}
KINDS: dict[str, type[TextEncoder]] = {"clip": CLIPTextEncoder, "t5": T5TextEncoder}
OPENCLIP, CONTROL = "openclip", "control"

FILES = ["config.json", "tokenizer*.json", "vocab.json", "merges.txt", "special_tokens_map.json", "model*.safetensors*"]


def load_text_encoder(
    name_or_folder: str | Path,
    layer: int | None = None,
    dtype: torch.dtype | None = None,
    max_tokens: int | None = None,
    variant: str | None = None,
) -> TextEncoder:
    """Loads a frozen text encoder: clip:ID, t5:ID, openclip:ARCH/PRETRAINED, control:..; ID is a folder or a hub name.

    The prefixes clip: and t5: are optional; a folder is in diffusers' or in transformers' layout.
    `layer` counts from the end of the file's layers (-1 last, -2 penultimate); `dtype` is fp32 by default;
    `max_tokens` is the tokenizer's by default, or 77 for a T5 outside of a pipeline's folder. `variant` is that of a
    folder's weights, as "fp16" for `model.fp16.safetensors`.
    """
    name = str(name_or_folder)
    prefix, colon, suffix = name.partition(":")
    if colon and prefix == OPENCLIP:
        return load_openclip(suffix, layer, dtype, max_tokens)
    if colon and prefix == CONTROL:
        if layer not in (None, -1):
            raise ValueError(f"layer = {layer}: only the last layer of {name} can be read; leave layer out")
        return load_control(suffix, lambda base: load_text_encoder(base, None, None, max_tokens)).to(dtype=dtype)
    required = KINDS.get(prefix) if colon else None
    folder = Path(suffix if required else name)
    if not folder.is_dir():
        if folder.is_absolute() or len(folder.parts) > 2 or str(folder).startswith("."):
            raise ValueError(f"{folder}: no such folder")  # a hub name is NAME or OWNER/NAME
        if ":" in folder.name:
            kinds = ", ".join([*(f"{k}:ID" for k in KINDS), f"{OPENCLIP}:ARCH/PRETRAINED", FORMS])
            raise ValueError(f"text encoder {name!r}: write a folder, a hub name or one of {kinds}")
        folder = download(str(folder))
    config = find_folders(folder)[0] / "config.json"
    values = read_json(config)
    family = values.get("control", values.get("model_type"))
    if not isinstance(family, str) or family not in ENCODERS:
        raise ValueError(f"{config}: `model_type` = {family!r} is not a text encoder; allowed: {', '.join(ENCODERS)}")
    if required and ENCODERS[family] is not required:
        raise ValueError(f"text encoder {name!r}: {config} has `model_type` = {family!r}; leave {prefix}: out")
    return ENCODERS[family].load(folder, layer, dtype, max_tokens, variant)


def download(name: str) -> Path:
    """Downloads the text encoder and the tokenizer of a hub repository; safetensors only."""
    patterns = [prefix + file for prefix in ("", "text_encoder/", "tokenizer/") for file in FILES]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        cause = str(error).splitlines()[0]
        raise ValueError(f"text encoder {name!r}: no such folder, and the hub download failed ({cause})") from None
