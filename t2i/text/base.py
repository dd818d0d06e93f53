"""The interface of a text encoder (a frozen tower and its tokenizer), and the reading of its folder."""

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedTokenizerFast
from transformers.activations import ACT2FN

from t2i.component import fingerprint, load_weights, save_weights
from t2i.conditioning import Conditioning
from t2i.files import atomic_folder, write_json
from t2i.text.tokenizer import identity, save_tokenizer, tokenize

WEIGHTS = "model.safetensors"
MAX_SIZE = 2**24  # of any size in a config
SIZE_KEYS = {
    "d_ff",
    "d_kv",
    "d_model",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_heads",
    "projection_dim",
    "relative_attention_max_distance",
    "relative_attention_num_buckets",
    "vocab_size",
}
LAYER_KEYS = {"num_hidden_layers", "num_layers"}

C = TypeVar("C", bound=PreTrainedConfig)


@dataclass(frozen=True)
class Encoded:
    """Token states of prompts; `truncated[i]` is the end of prompt i that was cut off, "" if nothing was."""

    conditioning: Conditioning
    truncated: list[str]


class TextEncoder(nn.Module, ABC):
    """A frozen map from prompts to token states (b, max_tokens, width), always in eval mode."""

    classes: ClassVar[dict[str, list[str]]]  # the entries of its two folders in model_index.json
    tower: nn.Module
    tokenizer: PreTrainedTokenizerFast
    ignored: dict[str, int]  # reason -> number of tensors in the file that are not weights of this encoder

    def __init__(self, tower: nn.Module, tokenizer: PreTrainedTokenizerFast, max_tokens: int) -> None:
        super().__init__()
        self.config: PreTrainedConfig = tower.config  # pyright: ignore[reportAttributeAccessIssue]
        vocabulary: int = self.config.vocab_size  # pyright: ignore[reportAttributeAccessIssue]
        if len(tokenizer) > vocabulary:
            raise ValueError(
                f"the tokenizer has {len(tokenizer)} tokens, the text encoder's vocab_size is "
                f"{vocabulary}: they do not belong together"
            )
        self.tower, self.tokenizer = tower, tokenizer
        self.tokenizer.model_max_length = max_tokens
        self.ignored = {}
        self.requires_grad_(False)
        self.train(False)

    @property
    @abstractmethod
    def width(self) -> int:
        """The size of a token's state."""

    @abstractmethod
    def states(self, ids: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"]) -> Conditioning:
        """Returns the states of padded ids; `mask` is True at real tokens."""

    @abstractmethod
    def named_tensors(self) -> dict[str, Tensor]:
        """Returns the weights by their names in a file."""

    @abstractmethod
    def file_config(self) -> dict[str, Any]:
        """Returns the values of config.json."""

    @property
    def max_tokens(self) -> int:
        """The number of tokens that a prompt is padded or cut to."""
        return self.tokenizer.model_max_length

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.tower.parameters()).device

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode: the encoder is frozen."""
        return super().train(False)

    def forward(self, prompts: list[str]) -> Encoded:
        """Returns states (b, max_tokens, width), the mask of real tokens, and the truncated end of each prompt."""
        tokens = tokenize(self.tokenizer, prompts, self.max_tokens)
        return Encoded(self.states(tokens.ids, tokens.mask), tokens.truncated)

    def with_clip_skip(self, n: int) -> "TextEncoder":
        """Returns the encoder without its last n - 1 layers, as A1111 counts clip skip (1: all layers)."""
        if n == 1:
            return self
        raise ValueError(f"clip skip = {n}: only a CLIP text encoder can skip layers; leave it out, or set it to 1")

    def embeddings(self) -> Float[Tensor, "v d"]:
        """Returns the token embeddings, one row per id."""
        return self.tower.get_input_embeddings().weight  # pyright: ignore

    def set_embeddings(self, weight: Float[Tensor, "v d"]) -> None:
        """Replaces the token embeddings; the old tensor is not modified."""
        table = nn.Embedding.from_pretrained(weight, freeze=True)
        self.tower.set_input_embeddings(table)  # pyright: ignore[reportCallIssue]
        self.config.vocab_size = len(weight)  # pyright: ignore[reportAttributeAccessIssue]

    def fingerprint(self) -> str:
        """Returns the sha256 of the weights, the config and the tokenizer, which together determine the states."""
        return fingerprint(self.named_tensors(), repr(self.file_config()), identity(self.tokenizer))

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Writes `folder/text_encoder/` and `folder/tokenizer/` in diffusers' layout."""
        with atomic_folder(Path(folder) / "text_encoder") as tmp:
            # Without it transformers takes the file's dtype, and diffusers mixes half with its own float32.
            write_json(tmp / "config.json", self.file_config() | {"dtype": "float32"})
            save_weights(self.named_tensors(), tmp / WEIGHTS, dtype)
        with atomic_folder(Path(folder) / "tokenizer") as tmp:
            save_tokenizer(self.tokenizer, tmp)


def find_folders(folder: Path) -> tuple[Path, Path]:
    """Returns the folders of the weights and of the tokenizer.

    They are `text_encoder/` and `tokenizer/`, or `folder` itself for one or both of them.
    """
    weights = folder / "text_encoder"
    if weights.is_dir():
        return weights, folder / "tokenizer"
    sibling = folder.parent / "tokenizer"
    has_tokenizer = any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))
    return folder, folder if has_tokenizer or not sibling.is_dir() else sibling


def read_tensors(folder: Path, variant: str | None = None) -> dict[str, Tensor]:
    """Returns the tensors in `model.safetensors` or its shards; variant "fp16" reads `model.fp16.safetensors`."""
    return load_weights(folder, WEIGHTS, variant)


def split_ignored(
    state: Mapping[str, Tensor], ignored: tuple[tuple[str, str], ...]
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Returns the tensors that match no (pattern, reason) of `ignored`, and the number of the others by reason."""
    rules = [(re.compile(pattern), reason) for pattern, reason in ignored]
    reasons = {key: next((reason for rule, reason in rules if rule.fullmatch(key)), None) for key in state}
    kept = {key: tensor for key, tensor in state.items() if reasons[key] is None}
    return kept, dict(Counter(reason for reason in reasons.values() if reason is not None))


def make_config(kind: type[C], values: dict[str, Any], where: Path) -> C:
    """Returns a tower's config from untrusted `values`; ValueError naming `where` and the key if one is unusable."""
    for key, value in values.items():
        least = 1 if key in SIZE_KEYS else 0
        if key in SIZE_KEYS | LAYER_KEYS and (type(value) is not int or not least <= value <= MAX_SIZE):
            raise ValueError(f"{where}: `{key}` = {value!r:.200} is not a whole number in {least}..{MAX_SIZE}")
    try:
        config = kind(**values)
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise ValueError(f"{where}: not a text encoder's config ({' '.join(str(error)[:500].split())})") from None
    act = getattr(config, "dense_act_fn", getattr(config, "hidden_act", None))
    if act not in ACT2FN:
        raise ValueError(f"{where}: activation {act!r} is unknown; allowed: {', '.join(sorted(ACT2FN))}")
    return config
