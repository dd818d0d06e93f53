"""What a text encoder is to the rest of the project: a frozen tower and its tokenizer."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from t2i.component import fingerprint, save_weights
from t2i.conditioning import Conditioning
from t2i.files import atomic_folder, write_json
from t2i.text.files import WEIGHTS
from t2i.text.tokenizer import identity, save_tokenizer, tokenize


@dataclass(frozen=True)
class Encoded:
    """Token states of prompts; `truncated[i]` is the end of prompt i that did not fit, "" if all of it did."""

    conditioning: Conditioning
    truncated: list[str]


class TextEncoder(nn.Module, ABC):
    """A frozen map from prompts to token states (b, max_tokens, width), always in eval mode."""

    classes: ClassVar[dict[str, list[str]]]  # what model_index.json calls its folders' contents
    tower: nn.Module
    tokenizer: PreTrainedTokenizerFast
    ignored_keys: int = 0  # tensors in the file that are no weights of this encoder

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
        self.requires_grad_(False)
        self.train(False)

    @property
    @abstractmethod
    def width(self) -> int:
        """The size of a token's state."""

    @abstractmethod
    def states(self, ids: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"]) -> Conditioning:
        """The states of padded ids; `mask` is True at real tokens."""

    @abstractmethod
    def named_tensors(self) -> dict[str, Tensor]:
        """The weights by the names they have in a file."""

    @abstractmethod
    def file_config(self) -> dict[str, Any]:
        """The values in config.json."""

    @property
    def max_tokens(self) -> int:
        """How many tokens a prompt is padded and cut to."""
        return self.tokenizer.model_max_length

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.tower.parameters()).device

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: the encoder is frozen."""
        return super().train(False)

    def forward(self, prompts: list[str]) -> Encoded:
        """States (b, max_tokens, width), the mask of real tokens, and the text of each prompt that did not fit."""
        tokens = tokenize(self.tokenizer, prompts, self.max_tokens)
        return Encoded(self.states(tokens.ids, tokens.mask), tokens.truncated)

    def skipped(self, n: int) -> "TextEncoder":
        """The encoder without its last n - 1 layers (clip skip n, as it is counted in prompts' settings)."""
        if n == 1:
            return self
        raise ValueError(f"clip skip = {n}: only a CLIP text encoder is read at an earlier layer; leave it out, or 1")

    def embeddings(self) -> Float[Tensor, "v d"]:
        """The vectors of the tokens, one row an id."""
        return self.tower.get_input_embeddings().weight  # pyright: ignore

    def set_embeddings(self, weight: Float[Tensor, "v d"]) -> None:
        """Replace the vectors of the tokens; the tensor that was there stays as it is."""
        table = nn.Embedding.from_pretrained(weight, freeze=True)
        self.tower.set_input_embeddings(table)  # pyright: ignore[reportCallIssue]
        self.config.vocab_size = len(weight)  # pyright: ignore[reportAttributeAccessIssue]

    def fingerprint(self) -> str:
        """sha256 of the weights, the config and the tokenizer: equal exactly when the states are."""
        return fingerprint(self.named_tensors(), repr(self.file_config()), identity(self.tokenizer))

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write `folder/text_encoder/` and `folder/tokenizer/` as diffusers lays them out."""
        with atomic_folder(Path(folder) / "text_encoder") as tmp:
            # Without it transformers takes the file's dtype, and a stock pipeline mixes half with its own float32.
            write_json(tmp / "config.json", self.file_config() | {"dtype": "float32"})
            save_weights(self.named_tensors(), tmp / WEIGHTS, dtype)
        with atomic_folder(Path(folder) / "tokenizer") as tmp:
            save_tokenizer(self.tokenizer, tmp)
