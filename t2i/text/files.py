"""Where a text encoder's files lie, and their tensors."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from torch import Tensor

from t2i.component import load_weights

WEIGHTS = "model.safetensors"
# Keys that are no weights of a text encoder, each with its reason.
IGNORABLE = (
    (r"(.+\.)?position_ids", "position ids, a buffer that counts"),
    (r"(vision_model|visual_projection)\..+", "CLIP's image side"),
    (r"logit_scale.*", "the scale of CLIP's contrastive loss"),
    (r"(decoder|lm_head)\..+", "T5's decoder, which only its training needs"),
)
_VARIANT: ContextVar[str | None] = ContextVar("variant", default=None)


@contextmanager
def reading(variant: str | None) -> Iterator[None]:
    """A block in which `read_tensors` takes this variant of the weights, as fp16 in model.fp16.safetensors."""
    token = _VARIANT.set(variant)
    try:
        yield
    finally:
        _VARIANT.reset(token)


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
    return load_weights(folder, WEIGHTS, _VARIANT.get())


def count_ignored(keys: Iterable[str]) -> dict[str, int]:
    """How many keys are ignored for which reason."""
    rules = [(re.compile(pattern), reason) for pattern, reason in IGNORABLE]
    return dict(Counter(reason for key in keys for pattern, reason in rules if pattern.fullmatch(key)))
