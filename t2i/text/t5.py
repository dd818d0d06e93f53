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
from t2i.text.base import TextEncoder, find_folders, make_config, read_tensors, split_ignored
from t2i.text.tokenizer import load_tokenizer

SHARED, TIED = "shared.weight", "encoder.embed_tokens.weight"
IGNORED = ((r"(decoder|lm_head)\..+", "T5's decoder, which only its training needs"),)
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
MAX_TOKENS = 77  # of a T5 that is not in a pipeline's folder yet
NO_LIMIT = 10**6  # tokenizers without a limit record 1e30


class T5TextEncoder(TextEncoder):
    """Maps prompts to the last states of T5's encoder; never in float16, which its activations overflow.

    Its tokenizer is T5's, or CLIP's for an encoder that was trained on CLIP's ids.
    Padding is masked only if `use_attention_mask` is set in config.json, as in diffusers.
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
        """Returns the encoder's states after its final norm; `pooled` is None."""
        ids, mask = ids.to(self.device), mask.to(self.device)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            attended = mask.long() if self.use_attention_mask else None
            states: Float[Tensor, "b n d"] = self.tower(ids, attention_mask=attended).last_hidden_state
        return Conditioning(states, mask)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:  # pyright: ignore
        """Moves the encoder; for float16 it warns and moves to float32."""
        if dtype == torch.float16:
            warnings.warn("T5 overflows in float16: the text encoder stays in float32", stacklevel=2)
            dtype = torch.float32
        return super().to(device=device, dtype=dtype)

    def half(self) -> Self:
        return self.to(dtype=torch.float16)

    def named_tensors(self) -> dict[str, Tensor]:
        """Returns the weights by their names in a file; the embedding, which has two names, by the first."""
        return {k: v for k, v in self.tower.state_dict().items() if k != TIED}

    def file_config(self) -> dict[str, Any]:
        values = {k: getattr(self.config, k) for k in CONFIG_KEYS}
        return values | {"architectures": ["T5EncoderModel"], "use_attention_mask": self.use_attention_mask}

    @classmethod
    def load(
        cls,
        folder: Path,
        layer: int | None = None,
        dtype: torch.dtype | None = None,
        max_tokens: int | None = None,
        variant: str | None = None,
    ) -> Self:
        """Loads the encoder in a folder (see `find_folders`), which may hold a whole T5."""
        weights, tokenizer_folder = find_folders(folder)
        if layer not in (None, -1):
            raise ValueError(f"layer = {layer}: {weights} is a T5, read at its last layer only; leave layer out")
        values = read_json(weights / "config.json")
        known = {k: values[k] for k in CONFIG_KEYS if k in values and k != "model_type"}
        config = make_config(T5Config, known, weights / "config.json")
        tokenizer = load_tokenizer(tokenizer_folder, tokenizer_class(tokenizer_folder))
        recorded = tokenizer.model_max_length if weights != folder else NO_LIMIT
        default = recorded if recorded < NO_LIMIT else MAX_TOKENS
        state, ignored = split_ignored(read_tensors(weights, variant), IGNORED)
        tied = state.pop(TIED, None)
        if tied is not None:
            state.setdefault(SHARED, tied)
        with few_tensors(weights), torch.device("meta"):
            model = T5EncoderModel(config)
        masked = values.get("use_attention_mask", False)
        if not isinstance(masked, bool):
            raise ValueError(f"{weights / 'config.json'}: `use_attention_mask` = {masked!r} is not true or false")
        encoder = cls(model, tokenizer, default if max_tokens is None else max_tokens, masked)
        check_keys(encoder.named_tensors(), state, weights)
        model.load_state_dict(state | {TIED: state[SHARED]}, assign=True)
        encoder.set_embeddings(state[SHARED])
        encoder.ignored = ignored
        return encoder.requires_grad_(False).to(dtype=dtype or torch.float32)


def tokenizer_class(folder: Path) -> type[PreTrainedTokenizerFast]:
    """Returns the class of T5's tokenizer, or of CLIP's if tokenizer_config.json names that one."""
    path = folder / "tokenizer_config.json"
    named = read_json(path).get("tokenizer_class") if path.is_file() else None
    return CLIPTokenizer if named == "CLIPTokenizer" else T5Tokenizer
