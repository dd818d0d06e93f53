"""The small towers that t2i trains itself: a CLIP pair (Radford et al. 2021), and T5 (Raffel et al. 2020)."""

import copy
import math
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer, T5Config, T5EncoderModel
from transformers.models.t5.modeling_t5 import T5Stack

from t2i.component import Component, ComponentConfig
from t2i.config import Section
from t2i.text.tokenizer import token_id

MAX_LOGIT_SCALE = 100.0  # as in CLIP


class Size(NamedTuple):
    """The numbers of a named size; 32 channels per head."""

    width: int
    layers: int
    heads: int


# With a vocabulary of about 650 each size has about three times the parameters of the one before, from 50 thousand to
# 5 million, as a CLIP-style tower and as a T5-style one.
SIZES = {
    "mini": Size(32, 2, 1),
    "tiny": Size(64, 2, 2),
    "small": Size(128, 2, 4),
    "base": Size(192, 3, 6),
    "large": Size(256, 6, 8),
}
SizeName = Literal["mini", "tiny", "small", "base", "large"]


class TowerSize(Section):
    """The size of a tower, by name or by numbers; vocabulary and length follow from the tokenizer."""

    size: SizeName | None = Field(default=None, description="stands for width, layers and heads")
    width: int = Field(default=160, gt=0, le=2**14)
    layers: int = Field(default=4, gt=0)
    heads: int = Field(default=5, gt=0)
    mlp_ratio: int = Field(default=4, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("size") not in SIZES:
            return values
        numbers = SIZES[values["size"]]._asdict()
        if other := [f"{k} = {values[k]}" for k, v in numbers.items() if values.get(k, v) != v]:
            stands = ", ".join(f"{k} = {v}" for k, v in numbers.items())
            raise ValueError(f"size = {values['size']} stands for {stands}, not {', '.join(other)}: remove one of them")
        return values | numbers

    @model_validator(mode="after")
    def _heads_fit(self) -> "TowerSize":
        if self.width % self.heads:
            raise ValueError(f"heads = {self.heads} does not divide width = {self.width}")
        return self


class TextTowerConfig(TowerSize):
    """A CLIP-style text tower."""

    embedding_std: float = Field(
        default=10.0, gt=0, description="std of the initial embeddings of tokens and positions; CLIP's is 0.02"
    )


class T5TowerConfig(TowerSize):
    """A T5-style encoder, and the decoder that only its training needs.

    The gated feed-forward layer has 2/3 of the width given by `mlp_ratio`, so that its three matrices have as many
    parameters as a CLIP layer's two (Shazeer 2020): a size has about as many in both families.
    """

    decoder_layers: int = Field(default=2, gt=0)


def text_tower(config: TextTowerConfig, tokenizer: CLIPTokenizer, projection_dim: int) -> CLIPTextModelWithProjection:
    """Returns a new text tower for a tokenizer, of transformers' class, so that CLIPTextModel loads it.

    Its embeddings start with ten times the norm of the layers' outputs. With CLIP's std of 0.02 and the contrastive
    loss alone, the first layer lets the context dominate every word, and a generator then learns an object together
    with its colours instead of composing the two.
    """
    tower = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.width,
            intermediate_size=config.width * config.mlp_ratio,
            projection_dim=projection_dim,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            max_position_embeddings=tokenizer.model_max_length,
            hidden_act="gelu",
            pad_token_id=token_id(tokenizer, tokenizer.pad_token),
            bos_token_id=token_id(tokenizer, tokenizer.bos_token),
            eos_token_id=token_id(tokenizer, tokenizer.eos_token),
        )
    )
    for embedding in tower.text_model.embeddings.children():
        assert isinstance(embedding, nn.Embedding)
        nn.init.normal_(embedding.weight, std=config.embedding_std)
    return tower


class ImageTowerConfig(ComponentConfig):
    """A patch stem, then stages of residual blocks, each but the first at half the resolution of the one before."""

    patch: int = Field(default=4, gt=0)
    channels: tuple[int, ...] = (64, 112, 160)
    blocks: tuple[int, ...] = (1, 1, 1)
    groups: int = Field(default=8, gt=0)
    projection_dim: int = Field(default=128, gt=0)

    @model_validator(mode="after")
    def _fits(self) -> "ImageTowerConfig":
        if len(self.blocks) != len(self.channels):
            raise ValueError(f"blocks = {self.blocks} and channels = {self.channels} must have the same length")
        if any(c % self.groups for c in self.channels):
            raise ValueError(f"groups = {self.groups} must divide each of channels = {self.channels}")
        return self


class Residual(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))))))  (He et al. 2016, pre-activation)."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, channels), nn.GroupNorm(groups, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class ImageTower(Component):
    """Maps images to a feature vector each, and to the embedding space shared with the text."""

    Config: ClassVar[type[ComponentConfig]] = ImageTowerConfig
    diffusers_class: ClassVar[str] = "ImageTower"
    config: ImageTowerConfig

    def __init__(self, config: ImageTowerConfig) -> None:
        super().__init__(config)
        widths = config.channels
        stages: list[nn.Module] = []
        for i, (width, blocks) in enumerate(zip(widths, config.blocks, strict=True)):
            stem = nn.Conv2d(3, width, config.patch, stride=config.patch)
            enter = stem if i == 0 else nn.Conv2d(widths[i - 1], width, 3, stride=2, padding=1)
            stages.append(nn.Sequential(enter, *[Residual(width, config.groups) for _ in range(blocks)]))
        self.stages = nn.Sequential(*stages)
        self.norm = nn.GroupNorm(config.groups, widths[-1])
        self.projection = nn.Linear(widths[-1], config.projection_dim, bias=False)

    def features(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b f"]:
        """Returns the global feature vector: the last stage's mean over positions."""
        return F.silu(self.norm(self.stages(pixels))).mean((2, 3))

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b p"]:
        """Returns the images' embeddings in the shared space, not normalized."""
        return self.projection(self.features(pixels))


class ContrastivePair(nn.Module):
    """Both towers and the logit scale in one module with one forward pass, which DDP can wrap."""

    def __init__(self, image: ImageTower, text: CLIPTextModelWithProjection) -> None:
        super().__init__()
        self.image, self.text = image, text
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(
        self, pixels: Float[Tensor, "b 3 h w"], ids: Int[Tensor, "m n"]
    ) -> tuple[Float[Tensor, "b p"], Float[Tensor, "m p"], Float[Tensor, ""]]:
        """Returns the unit embeddings of the images and of the texts, and the logit scale."""
        image = F.normalize(self.image(pixels).float(), dim=-1)
        text = F.normalize(self.text(ids).text_embeds.float(), dim=-1)
        return image, text, self.scale()

    def scale(self) -> Float[Tensor, ""]:
        """Returns the factor from cosines to logits."""
        return self.logit_scale.clamp(max=math.log(MAX_LOGIT_SCALE)).exp()


class T5Pair(nn.Module):
    """T5 1.1: an encoder, a decoder with the same embedding, and a separate output layer.

    transformers' stacks are given embeddings, so that the shared table has a single name in a checkpoint.
    """

    def __init__(self, size: T5TowerConfig, tokenizer: CLIPTokenizer, sentinels: int) -> None:
        super().__init__()
        end = token_id(tokenizer, tokenizer.eos_token)
        self.config = T5Config(
            vocab_size=len(tokenizer) + sentinels,  # the sentinels' embeddings are rows beyond the tokenizer's ids
            d_model=size.width,
            d_kv=size.width // size.heads,
            d_ff=max(8, round(size.width * size.mlp_ratio * 2 / 3 / 8) * 8),
            num_layers=size.layers,
            num_decoder_layers=size.decoder_layers,
            num_heads=size.heads,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            pad_token_id=token_id(tokenizer, tokenizer.pad_token),
            eos_token_id=end,
        )
        self.shared = nn.Embedding(self.config.vocab_size, size.width)
        self.encoder = T5Stack(self._half(size.layers, is_decoder=False))
        self.decoder = T5Stack(self._half(size.decoder_layers, is_decoder=True))
        self.encoder.embed_tokens = self.decoder.embed_tokens = None
        self.lm_head = nn.Linear(size.width, self.config.vocab_size, bias=False)
        nn.init.normal_(self.lm_head.weight, std=size.width**-0.5)

    def _half(self, layers: int, is_decoder: bool) -> T5Config:
        config = copy.deepcopy(self.config)
        config.num_layers, config.is_decoder, config.use_cache = layers, is_decoder, False
        return config

    def forward(
        self, ids: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"], before: Int[Tensor, "b m"]
    ) -> Float[Tensor, "b m v"]:
        """Returns the logits of each target token, given the corrupted text and the target tokens `before` it."""
        states = self.encoder(inputs_embeds=self.shared(ids), attention_mask=mask.long()).last_hidden_state
        decoded = self.decoder(
            inputs_embeds=self.shared(before),
            encoder_hidden_states=states,
            encoder_attention_mask=mask.long(),
        ).last_hidden_state
        return self.lm_head(decoded)

    def encoder_alone(self) -> T5EncoderModel:
        """Returns a copy of the encoder as transformers' T5EncoderModel, on the CPU."""
        model = T5EncoderModel(self._half(self.config.num_layers, is_decoder=False))
        state = {f"encoder.{k}": v for k, v in self.encoder.state_dict().items()}
        shared = self.shared.weight.detach()
        model.load_state_dict(state | {"shared.weight": shared, "encoder.embed_tokens.weight": shared})
        return model
