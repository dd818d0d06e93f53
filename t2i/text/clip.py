"""CLIP's text tower (Radford et al. 2021) as a frozen text encoder, in diffusers-style folders."""

from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from t2i.component import (
    atomic_folder,
    check_keys,
    fingerprint,
    load_weights,
    read_json,
    read_safetensors,
    save_weights,
    write_json,
)
from t2i.conditioning import Conditioning
from t2i.text.base import Encoded
from t2i.text.tokenizer import identity, load_tokenizer, save_tokenizer, token_id, tokenize

WEIGHTS = "model.safetensors"
PREFIX, PROJECTION = "text_model.", "text_projection.weight"
IMAGE_SIDE = ("vision_model.", "visual_projection.", "logit_scale")
CONFIG_KEYS = (
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "hidden_act",
    "hidden_size",
    "initializer_factor",
    "initializer_range",
    "intermediate_size",
    "layer_norm_eps",
    "max_position_embeddings",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "pad_token_id",
    "projection_dim",
    "vocab_size",
)


class CLIPTextEncoder(nn.Module):
    """Prompts to the states of CLIP's text tower after its final layer norm; frozen, always in eval mode.

    An earlier layer (-2: the penultimate) is read by leaving out the layers after it, so a saved folder gives the
    same states in any reader. `pooled` is the projected state of the first end token, None without a projection.
    """

    def __init__(self, tower: nn.Module, projection: nn.Linear | None, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.config: CLIPTextConfig = tower.config  # pyright: ignore[reportAttributeAccessIssue]
        if len(tokenizer) > self.config.vocab_size:
            raise ValueError(
                f"the tokenizer has {len(tokenizer)} tokens, the text encoder's vocab_size is "
                f"{self.config.vocab_size}: they do not belong together"
            )
        self.tower, self.projection, self.tokenizer = tower, projection, tokenizer
        self.ignored_keys = 0
        self.tokenizer.model_max_length = self.max_tokens
        self.requires_grad_(False)
        self.train(False)

    @property
    def width(self) -> int:
        return self.config.hidden_size

    @property
    def max_tokens(self) -> int:
        return min(self.tokenizer.model_max_length, self.config.max_position_embeddings)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: the encoder is frozen."""
        return super().train(False)

    def forward(self, prompts: list[str]) -> Encoded:
        """States (b, max_tokens, width), the mask of real tokens, and the text of each prompt that did not fit."""
        tokens = tokenize(self.tokenizer, prompts, self.max_tokens)
        weight = next(self.tower.parameters())
        ids = tokens.ids.to(weight.device)
        with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
            states: Float[Tensor, "b n d"] = self.tower(ids).last_hidden_state
            pooled = None if self.projection is None else self.projection(self._end_state(states, ids))
        return Encoded(Conditioning(states, tokens.mask.to(weight.device), pooled), tokens.truncated)

    def _end_state(self, states: Float[Tensor, "b n d"], ids: Int[Tensor, "b n"]) -> Float[Tensor, "b d"]:
        # Not tower(ids).pooler_output: old configs say eos_token_id 2, with which transformers takes the highest id.
        first = (ids == token_id(self.tokenizer, self.tokenizer.eos_token)).int().argmax(-1)
        return states[torch.arange(len(ids), device=ids.device), first]

    def named_tensors(self) -> dict[str, Tensor]:
        """The weights by the names they have in a file, always with the `text_model.` prefix."""
        state = {PREFIX + k: v for k, v in self.tower.state_dict().items()}
        if self.projection is not None:
            state[PROJECTION] = self.projection.weight
        return state

    def fingerprint(self) -> str:
        """sha256 of the weights, the config and the tokenizer: equal exactly when the states are."""
        return fingerprint(self.named_tensors(), repr(self._config()), identity(self.tokenizer))

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write `folder/text_encoder/` and `folder/tokenizer/` as diffusers lays them out."""
        with atomic_folder(Path(folder) / "text_encoder") as tmp:
            # Without it transformers takes the file's dtype, and a stock pipeline mixes half with its own float32.
            write_json(tmp / "config.json", self._config() | {"dtype": "float32"})
            save_weights(self.named_tensors(), tmp / WEIGHTS, dtype)
        with atomic_folder(Path(folder) / "tokenizer") as tmp:
            save_tokenizer(self.tokenizer, tmp)

    def _config(self) -> dict[str, Any]:
        name = "CLIPTextModel" if self.projection is None else "CLIPTextModelWithProjection"
        values = {k: getattr(self.config, k) for k in CONFIG_KEYS}
        return values | {"architectures": [name], "eos_token_id": self.tokenizer.eos_token_id}

    @classmethod
    def load(cls, folder: Path, layer: int | None = None, dtype: torch.dtype | None = None) -> Self:
        """The encoder in a folder (see `find_folders`), read at `layer` (default -1, the last)."""
        weights, tokenizer = find_folders(folder)
        config = read_config(weights / "config.json")
        layers = config.num_hidden_layers
        layer = -1 if layer is None else layer
        if not -layers <= layer <= -1:
            raise ValueError(f"layer = {layer}: {weights} has {layers} layers; allowed are -1 (last) to {-layers}")
        config.num_hidden_layers = layers + layer + 1
        found = read_state(weights)
        state = {k: v for k, v in found.items() if not ignorable(k, config.num_hidden_layers, layers)}
        if layer != -1:
            state.pop(PROJECTION, None)
        with torch.device("meta"):
            model = CLIPTextModelWithProjection(config)
        projection = model.text_projection if PROJECTION in state else None
        encoder = cls(model.text_model, projection, load_tokenizer(tokenizer))
        check_keys(encoder.named_tensors(), state, weights)
        encoder.tower.load_state_dict(
            {k.removeprefix(PREFIX): v for k, v in state.items() if k != PROJECTION}, assign=True
        )
        if projection is not None:
            projection.load_state_dict({"weight": state[PROJECTION]}, assign=True)
        positions = torch.arange(config.max_position_embeddings)[None]  # a buffer that is in no file
        model.text_model.embeddings.register_buffer("position_ids", positions, persistent=False)
        encoder.ignored_keys = len(found) - len(state)
        return encoder.requires_grad_(False).to(dtype=dtype or torch.float32)


def find_folders(folder: Path) -> tuple[Path, Path]:
    """Where the weights and the tokenizer lie: `text_encoder/` and `tokenizer/`, or both in the folder itself."""
    weights = folder / "text_encoder"
    if weights.is_dir():
        return weights, folder / "tokenizer"
    sibling = folder.parent / "tokenizer"
    own = any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))
    return folder, folder if own or not sibling.is_dir() else sibling


def read_config(path: Path) -> CLIPTextConfig:
    """The text tower's config, also out of a whole CLIP's."""
    values = read_json(path)
    if "text_config" in values:
        values = values["text_config"] | {"projection_dim": values.get("projection_dim", 512)}
    return CLIPTextConfig(**{k: values[k] for k in CONFIG_KEYS if k in values and k != "model_type"})


def read_state(folder: Path) -> dict[str, Tensor]:
    """The tensors in `model.safetensors` or its shards, the text tower's named with the `text_model.` prefix."""
    index = folder / f"{WEIGHTS}.index.json"
    if index.is_file():
        state: dict[str, Tensor] = {}
        for shard in sorted(set(read_json(index)["weight_map"].values())):
            state |= read_safetensors(folder / shard)
    else:
        state = load_weights(folder, WEIGHTS)
    tower = ("embeddings.", "encoder.", "final_layer_norm.")
    return {PREFIX + k if k.startswith(tower) else k: v for k, v in state.items()}


def ignorable(key: str, first: int, layers: int) -> bool:
    """Whether a key is no weight of the tower: position ids, the image side, or layers `first`.. after the one read."""
    unread = tuple(f"{PREFIX}encoder.layers.{i}." for i in range(first, layers))
    return key.endswith(".position_ids") or key.startswith((*IMAGE_SIDE, *unread))
