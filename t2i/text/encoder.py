"""The table of text encoders, and how one is opened by name."""

from pathlib import Path

import torch
from huggingface_hub import snapshot_download

from t2i.files import read_json
from t2i.text.base import Encoded, TextEncoder
from t2i.text.clip import CLIPTextEncoder
from t2i.text.controls import FORMS, NULL, ORACLE, NullTextEncoder, OracleTextEncoder, load_control
from t2i.text.files import find_folders
from t2i.text.openclip import load_openclip
from t2i.text.t5 import T5TextEncoder

__all__ = ["ENCODERS", "Encoded", "TextEncoder", "load_text_encoder"]

# By `model_type` in config.json: a text tower alone, or out of a whole CLIP, or out of a whole T5; by `control` first.
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
) -> TextEncoder:
    """A frozen text encoder by name: clip:ID, t5:ID, openclip:ARCH/PRETRAINED, control:..; ID: a folder or a hub name.

    ID alone is enough where it is a folder (diffusers-style or plain transformers) or a hub name.
    `layer` counts from the end of the file's layers (-1 last, -2 penultimate); `dtype` is fp32 by default;
    `max_tokens` is the tokenizer's own by default, 77 for a T5 in no pipeline's folder.
    """
    name = str(name_or_folder)
    kind, colon, rest = name.partition(":")
    if colon and kind == OPENCLIP:
        return load_openclip(rest, layer, dtype, max_tokens)
    if colon and kind == CONTROL:
        if layer not in (None, -1):
            raise ValueError(f"layer = {layer}: {name} is read at its last layer; leave layer out")
        return load_control(rest, lambda base: load_text_encoder(base, None, None, max_tokens)).to(dtype=dtype)
    wanted = KINDS.get(kind) if colon else None
    folder = Path(rest if wanted else name)
    if not folder.is_dir():
        if folder.is_absolute() or len(folder.parts) > 2 or str(folder).startswith("."):
            raise ValueError(f"{folder}: no such folder")  # a hub name is NAME or OWNER/NAME
        if ":" in folder.name:
            kinds = ", ".join([*(f"{k}:ID" for k in KINDS), f"{OPENCLIP}:ARCH/PRETRAINED", FORMS])
            raise ValueError(f"text encoder {name!r}: write a folder, a hub name or one of {kinds}")
        folder = download(str(folder))
    config = find_folders(folder)[0] / "config.json"
    values = read_json(config)
    found = values.get("control", values.get("model_type"))
    if not isinstance(found, str) or found not in ENCODERS:
        raise ValueError(f"{config}: `model_type` = {found!r} is not a text encoder; allowed: {', '.join(ENCODERS)}")
    if wanted and ENCODERS[found] is not wanted:
        raise ValueError(f"text encoder {name!r}: {config} says `model_type` = {found!r}; leave {kind}: out")
    return ENCODERS[found].load(folder, layer, dtype, max_tokens)


def download(name: str) -> Path:
    """A hub repository's text encoder and tokenizer; safetensors only."""
    patterns = [prefix + file for prefix in ("", "text_encoder/", "tokenizer/") for file in FILES]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        cause = str(error).splitlines()[0]
        raise ValueError(f"text encoder {name!r}: no such folder, and the hub did not give it ({cause})") from None
