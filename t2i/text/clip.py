"""CLIP's text tower (Radford et al. 2021) as a frozen text encoder, in diffusers-style folders."""

import copy
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from t2i.component import check_keys, few_tensors
from t2i.conditioning import Conditioning
from t2i.files import read_json
from t2i.nn.lora import check_no_lora
from t2i.text.base import TextEncoder, find_folders, make_config, read_tensors, split_ignored
from t2i.text.tokenizer import load_tokenizer, token_id

PREFIX, PROJECTION = "text_model.", "text_projection.weight"
IGNORED = (
    (r".+\.position_ids", "position ids, a buffer"),
    (r"(vision_model|visual_projection)\..+", "CLIP's image side"),
    (r"logit_scale.*", "the scale of CLIP's contrastive loss"),
)
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


class CLIPTextEncoder(TextEncoder):
    """Maps prompts to the states of CLIP's text tower after its final layer norm.

    An earlier layer (-2: the penultimate) is read by leaving out the layers after it, so a saved folder gives the
    same states in transformers. `pooled` is the projected state of the first end token, None without a projection.
    """

    classes: ClassVar[dict[str, list[str]]] = {
        # CLIPTextModel even if the file holds a projection: diffusers takes the named class's first output.
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    config: CLIPTextConfig
    tokenizer: CLIPTokenizer

    def __init__(
        self, tower: nn.Module, projection: nn.Linear | None, tokenizer: CLIPTokenizer, max_tokens: int | None = None
    ) -> None:
        positions: int = tower.config.max_position_embeddings  # pyright: ignore
        if max_tokens is not None and not 2 < max_tokens <= positions:
            raise ValueError(f"max_tokens = {max_tokens}: this text encoder takes 3 to {positions} tokens")
        super().__init__(tower, tokenizer, max_tokens or min(tokenizer.model_max_length, positions))
        self.projection = None if projection is None else projection.requires_grad_(False)

    @property
    def width(self) -> int:
        return self.config.hidden_size

    def states(self, ids: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"]) -> Conditioning:
        """Returns the tower's states; no mask is needed, since each token attends only to those before it."""
        ids, mask = ids.to(self.device), mask.to(self.device)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            states: Float[Tensor, "b n d"] = self.tower(ids).last_hidden_state
            pooled = None if self.projection is None else self.projection(self._end_state(states, ids))
        return Conditioning(states, mask, pooled)

    def _end_state(self, states: Float[Tensor, "b n d"], ids: Int[Tensor, "b n"]) -> Float[Tensor, "b d"]:
        # Not tower(ids).pooler_output: old configs have eos_token_id 2, for which transformers takes the highest id.
        first = (ids == token_id(self.tokenizer, self.tokenizer.eos_token)).int().argmax(-1)
        return states[torch.arange(len(ids), device=ids.device), first]

    def with_clip_skip(self, n: int) -> "CLIPTextEncoder":
        """Returns the encoder without its last n - 1 layers but with the final layer norm; 2 is the penultimate layer.

        The weights are shared, not copied; later changes of this encoder's layers do not affect the returned one.
        """
        layers = self.config.num_hidden_layers
        if n == 1:
            return self
        if not 1 <= n <= layers:
            raise ValueError(f"clip skip = {n}: the text encoder has {layers} layers; allowed are 1 (none) to {layers}")
        check_no_lora(self.tower, "clip skip needs an encoder without one; merge the LoRA, or leave clip skip out")
        config = copy.deepcopy(self.config)
        state = shallow(config, self.named_tensors(), layers - n + 1)
        return self.build(config, state, copy.deepcopy(self.tokenizer), "clip skip", self.max_tokens)

    def named_tensors(self) -> dict[str, Tensor]:
        """Returns the weights by their names in a file, always with the `text_model.` prefix."""
        state = {PREFIX + k: v for k, v in self.tower.state_dict().items()}
        if self.projection is not None:
            state[PROJECTION] = self.projection.weight
        return state

    def file_config(self) -> dict[str, Any]:
        name = "CLIPTextModel" if self.projection is None else "CLIPTextModelWithProjection"
        values = {k: getattr(self.config, k) for k in CONFIG_KEYS}
        return values | {"architectures": [name], "eos_token_id": self.tokenizer.eos_token_id}

    @classmethod
    def load(
        cls,
        folder: Path,
        layer: int | None = None,
        dtype: torch.dtype | None = None,
        max_tokens: int | None = None,
        variant: str | None = None,
    ) -> Self:
        """Loads the encoder in a folder (see `find_folders`), read at `layer` (default -1, the last)."""
        weights, tokenizer = find_folders(folder)
        config = read_config(weights / "config.json")
        tower = ("embeddings.", "encoder.", "final_layer_norm.")
        tensors = {PREFIX + k if k.startswith(tower) else k: v for k, v in read_tensors(weights, variant).items()}
        state, ignored = split_ignored(tensors, IGNORED)
        state = shallow(config, state, count_layers(layer, config.num_hidden_layers, weights))
        encoder = cls.build(config, state, load_tokenizer(tokenizer), weights, max_tokens)
        encoder.ignored = ignored
        return encoder.to(dtype=dtype or torch.float32)

    @classmethod
    def build(
        cls,
        config: CLIPTextConfig,
        state: dict[str, Tensor],
        tokenizer: CLIPTokenizer,
        where: str | Path,
        max_tokens: int | None = None,
    ) -> Self:
        """Returns an encoder that uses the tensors of `state` itself; a missing or unexpected one is a ValueError."""
        with few_tensors(where), torch.device("meta"):
            model = CLIPTextModelWithProjection(config)
        projection = model.text_projection if PROJECTION in state else None
        encoder = cls(model.text_model, projection, tokenizer, max_tokens)
        check_keys(encoder.named_tensors(), state, where)
        encoder.tower.load_state_dict(
            {k.removeprefix(PREFIX): v for k, v in state.items() if k != PROJECTION}, assign=True
        )
        if projection is not None:
            projection.load_state_dict({"weight": state[PROJECTION]}, assign=True)
        positions = torch.arange(config.max_position_embeddings, device=encoder.device)[None]  # a buffer, not in files
        model.text_model.embeddings.register_buffer("position_ids", positions, persistent=False)
        return encoder.requires_grad_(False)


def read_config(path: Path) -> CLIPTextConfig:
    """Reads the config of a text tower, or that of the text tower in the config of a whole CLIP."""
    values = read_json(path)
    if "text_config" in values:
        if not isinstance(values["text_config"], dict):
            raise ValueError(f"{path}: `text_config` = {values['text_config']!r} is not an object")
        values = values["text_config"] | {"projection_dim": values.get("projection_dim", 512)}
    return make_config(CLIPTextConfig, {k: values[k] for k in CONFIG_KEYS if k in values and k != "model_type"}, path)


def count_layers(layer: int | None, layers: int, where: str | Path) -> int:
    """Returns the number of layers to keep so that `layer` (-1, the default, is the last) is the last one."""
    layer = -1 if layer is None else layer
    if layers == 0 and layer == -1:  # embeddings alone
        return 0
    if not -layers <= layer <= -1:
        raise ValueError(f"layer = {layer}: {where} has {layers} layers; allowed are -1 (last) to {-layers}")
    return layers + layer + 1


def shallow(config: CLIPTextConfig, state: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Returns the weights of the first `layers` layers, and sets their number in `config`.

    Without the last layer the projection is dropped too, since it was trained on that layer.
    """
    if layers == config.num_hidden_layers:
        return state
    unread = tuple(f"{PREFIX}encoder.layers.{i}." for i in range(layers, config.num_hidden_layers))
    config.num_hidden_layers = layers
    return {k: v for k, v in state.items() if k != PROJECTION and not k.startswith(unread)}
