"""Where a text encoder's files lie, and their tensors."""

from pathlib import Path

from torch import Tensor

from t2i.component import load_weights, read_json, read_safetensors

WEIGHTS = "model.safetensors"


def find_folders(folder: Path) -> tuple[Path, Path]:
    """Where the weights and the tokenizer lie: `text_encoder/` and `tokenizer/`, or both in the folder itself."""
    weights = folder / "text_encoder"
    if weights.is_dir():
        return weights, folder / "tokenizer"
    sibling = folder.parent / "tokenizer"
    own = any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))
    return folder, folder if own or not sibling.is_dir() else sibling


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors in `model.safetensors` or its shards."""
    index = folder / f"{WEIGHTS}.index.json"
    if not index.is_file():
        return load_weights(folder, WEIGHTS)
    state: dict[str, Tensor] = {}
    for shard in sorted(set(read_json(index)["weight_map"].values())):
        state |= read_safetensors(folder / shard)
    return state
