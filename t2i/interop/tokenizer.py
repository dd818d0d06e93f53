"""The tokenizer of a single file: by CLIP's standard vocabulary, or all of its files in the header's metadata."""

import json
import tempfile
from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer, PreTrainedTokenizerFast

from t2i.interop.single_file import Checkpoint
from t2i.text.openclip import PAD, openclip_tokenizer
from t2i.text.tokenizer import END, load_tokenizer, save_tokenizer

CLIP = "clip"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def choose_tokenizer(checkpoint: Checkpoint, where: Path, config: Path | None) -> tuple[CLIPTokenizer, list[str]]:
    """Returns the tokenizer of the config folder, of the file's own metadata, else CLIP's; and lines for the report."""
    if config is not None and (config / "tokenizer").is_dir():
        return load_tokenizer(config / "tokenizer"), [f"tokenizer: {config / 'tokenizer'}"]
    values = checkpoint.tokenizer
    assert values is not None
    if values.get("vocabulary") == CLIP:
        pad = values.get("pad_token", END)
        length, split = values.get("model_max_length", 77), values.get("split_special_tokens", pad == PAD)
        if pad not in (END, PAD) or not isinstance(length, int) or not 2 < length <= 2**16:
            raise ValueError(f"{where}: its tokenizer pads with {pad!r} to {length!r}: {END} or {PAD} to 77 is known")
        return clip_tokenizer(pad, bool(split), length), []
    files = values.get("files")
    if not isinstance(files, dict) or not all(isinstance(files.get(name), str) for name in TOKENIZER_FILES):
        raise ValueError(f"{where}: its metadata has no tokenizer's files ({', '.join(TOKENIZER_FILES)})")
    with tempfile.TemporaryDirectory() as tmp:
        for name in TOKENIZER_FILES:
            (Path(tmp) / name).write_text(files[name], encoding="utf8")
        try:
            return load_tokenizer(tmp), ["tokenizer: its own, in the file's metadata"]
        except ValueError:
            raise ValueError(f"{where}: the tokenizer in its metadata is damaged; give --config DIR with one") from None


def clip_tokenizer(pad: str, split: bool, length: int = 77) -> CLIPTokenizer:
    """Returns CLIP's standard tokenizer; `split`: special tokens in a text are read as plain text."""
    model = json.loads(openclip_tokenizer().backend_tokenizer.to_str())["model"]
    merges: Any = [tuple(pair) for pair in model["merges"]]
    return CLIPTokenizer(
        vocab=model["vocab"], merges=merges, pad_token=pad, model_max_length=length, split_special_tokens=split
    )


def describe_tokenizer(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Returns a tokenizer's entry in a single file's metadata: its use of CLIP's vocabulary, or all of its files."""
    backend = tokenizer.backend_tokenizer
    split, pad = bool(backend.encode_special_tokens), str(tokenizer.pad_token)
    use = {"pad_token": pad, "model_max_length": tokenizer.model_max_length, "split_special_tokens": split}
    if len(tokenizer) == len(standard := clip_tokenizer(pad, split)) and pad in (END, PAD):
        ours, theirs = (json.loads(t.backend_tokenizer.to_str())["model"] for t in (tokenizer, standard))
        if ours["vocab"] == theirs["vocab"] and ours["merges"] == theirs["merges"]:
            return {"vocabulary": CLIP} | use
    with tempfile.TemporaryDirectory() as tmp:
        save_tokenizer(tokenizer, tmp)
        files = {name: (Path(tmp) / name).read_text(encoding="utf8") for name in TOKENIZER_FILES}
    return {"vocabulary": "own", "files": files} | use
