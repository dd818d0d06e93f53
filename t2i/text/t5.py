"""T5's encoder (Raffel et al. 2020) as a frozen text encoder, in diffusers-style folders."""

import warnings
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import CLIPTokenizer, PreTrainedTokenizerFast, T5Config, T5EncoderModel, T5Tokenizer

from t2i.component import check_keys, few_tensors
from t2i.conditioning import Conditioning
from t2i.files import read_json
from t2i.text.base import TextEncoder
from t2i.text.files import find_folders, read_tensors
from t2i.text.sizes import make_config
from t2i.text.tokenizer import load_tokenizer

SHARED, TIED = "shared.weight", "encoder.embed_tokens.weight"
DECODER = ("decoder.", "lm_head.")
CONFIG_KEYS = (
    "d_ff",
    "d_kv",
    "d_model",
    "dropout_rate",
    "eos_token_id",
    "feed_forward_proj",
    "initializer_factor",
    "layer_norm_epsilon",
    "model_type",
    "num_heads",
    "num_layers",
    "pad_token_id",
    "relative_attention_max_distance",
    "relative_attention_num_buckets",
    "vocab_size",
)
MAX_TOKENS = 77  # of a T5 that is in no pipeline's folder yet
NO_LIMIT = 10**6  # tokenizers that know of no limit say 1e30


class T5TextEncoder(TextEncoder):
    """Prompts to the last states of T5's encoder; its activations overflow float16, so it is never run there.

    Its tokenizer is T5's own, or CLIP's where the two are to read the same ids.
    Padding is hidden from the encoder only where config.json says `use_attention_mask`, as in the stock pipeline.
    """

    classes: ClassVar[dict[str, list[str]]] = {
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
    }
    config: T5Config

    def __init__(
        self,
        tower: nn.Module,
        tokenizer: PreTrainedTokenizerFast,
        max_tokens: int = MAX_TOKENS,
        use_attention_mask: bool = False,
    ) -> None:
        if max_tokens < 2:
            raise ValueError(f"max_tokens = {max_tokens}: T5 needs 2 or more, a token and the end")
        super().__init__(tower, tokenizer, max_tokens)
        if isinstance(tokenizer, CLIPTokenizer):
            words = {"tokenizer": ["transformers", "CLIPTokenizer"]}
            self.classes = T5TextEncoder.classes | words  # pyright: ignore[reportAttributeAccessIssue]
        self.use_attention_mask = use_attention_mask

    @property
    def width(self) -> int:
        return self.config.d_model

    def states(self, ids: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"]) -> Conditioning:
        """The encoder's states after its final norm; no `pooled`."""
        ids, mask = ids.to(self.device), mask.to(self.device)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            seen = mask.long() if self.use_attention_mask else None
            states: Float[Tensor, "b n d"] = self.tower(ids, attention_mask=seen).last_hidden_state
        return Conditioning(states, mask)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:  # pyright: ignore
        """Move the encoder; asked for float16 it goes to float32, and says so."""
        if dtype == torch.float16:
            warnings.warn("T5 overflows in float16: the text encoder stays in float32", stacklevel=2)
            dtype = torch.float32
        return super().to(device=device, dtype=dtype)

    def half(self) -> Self:
        return self.to(dtype=torch.float16)

    def named_tensors(self) -> dict[str, Tensor]:
        """The weights by the names they have in a file; the embedding, which has two names, by the first."""
        return {k: v for k, v in self.tower.state_dict().items() if k != TIED}

    def file_config(self) -> dict[str, Any]:
        values = {k: getattr(self.config, k) for k in CONFIG_KEYS}
        return values | {"architectures": ["T5EncoderModel"], "use_attention_mask": self.use_attention_mask}

    @classmethod
    def load(
        cls, folder: Path, layer: int | None = None, dtype: torch.dtype | None = None, max_tokens: int | None = None
    ) -> Self:
        """The encoder in a folder (see `find_folders`), also out of a whole T5."""
        weights, words = find_folders(folder)
        if layer not in (None, -1):
            raise ValueError(f"layer = {layer}: {weights} is a T5, which is read at its last layer; leave layer out")
        values = read_json(weights / "config.json")
        known = {k: values[k] for k in CONFIG_KEYS if k in values and k != "model_type"}
        config = make_config(T5Config, known, weights / "config.json")
        tokenizer = load_tokenizer(words, tokenizer_class(words))
        stock = tokenizer.model_max_length if weights != folder else NO_LIMIT
        default = stock if stock < NO_LIMIT else MAX_TOKENS
        found = read_tensors(weights)
        state = {k: v for k, v in found.items() if not k.startswith(DECODER)}
        tied = state.pop(TIED, None)
        if tied is not None:
            state.setdefault(SHARED, tied)
        with few_tensors(weights), torch.device("meta"):
            model = T5EncoderModel(config)
        masked = values.get("use_attention_mask", False)
        if not isinstance(masked, bool):
            raise ValueError(f"{weights / 'config.json'}: `use_attention_mask` = {masked!r} is neither true nor false")
        encoder = cls(model, tokenizer, default if max_tokens is None else max_tokens, masked)
        check_keys(encoder.named_tensors(), state, weights)
        model.load_state_dict(state | {TIED: state[SHARED]}, assign=True)
        encoder.set_embeddings(state[SHARED])
        encoder.ignored_keys = sum(k.startswith(DECODER) for k in found)
        return encoder.requires_grad_(False).to(dtype=dtype or torch.float32)


def tokenizer_class(folder: Path) -> type[PreTrainedTokenizerFast]:
    """T5's tokenizer, or CLIP's where tokenizer_config.json names it."""
    path = folder / "tokenizer_config.json"
    named = read_json(path).get("tokenizer_class") if path.is_file() else None
    return CLIPTokenizer if named == "CLIPTokenizer" else T5Tokenizer
