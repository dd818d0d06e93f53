"""The small CLIP pair (Radford et al. 2021) that the project trains itself: a stock text tower and a small conv net."""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from t2i.component import Component, ComponentConfig
from t2i.config import Section
from t2i.text.tokenizer import token_id

LARGEST_SCALE = 100.0  # CLIP clips the logit scale here


class TextTowerConfig(Section):
    """The size of the text tower; what the tokenizer fixes is not here."""

    width: int = Field(default=160, gt=0)
    layers: int = Field(default=4, gt=0)
    heads: int = Field(default=5, gt=0)
    mlp_ratio: int = Field(default=4, gt=0)
    embedding_std: float = Field(default=10.0, gt=0, description="of the untrained embeddings of tokens and positions")

    @model_validator(mode="after")
    def _heads_fit(self) -> "TextTowerConfig":
        if self.width % self.heads:
            raise ValueError(f"heads = {self.heads} does not divide width = {self.width}")
        return self


def text_tower(config: TextTowerConfig, tokenizer: CLIPTokenizer, projection_dim: int) -> CLIPTextModelWithProjection:
    """A fresh text tower for a tokenizer, of transformers' own class: stock CLIPTextModel loads it.

    Its embeddings begin ten times as loud as what the layers add to them. From CLIP's 0.02, contrast alone lets the
    first layer drown every word in its context, and a generator then learns a thing together with its colours.
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
            raise ValueError(f"blocks = {self.blocks} and channels = {self.channels} must be of one length")
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
    """Pictures to one feature vector each, and to the space shared with the text."""

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
        """The global feature vector: the last stage's mean over positions."""
        return F.silu(self.norm(self.stages(pixels))).mean((2, 3))

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b p"]:
        """The picture in the shared space, not normalised."""
        return self.projection(self.features(pixels))


class ContrastivePair(nn.Module):
    """Both towers and the logit scale in one forward pass, which data parallelism can wrap."""

    def __init__(self, image: ImageTower, text: CLIPTextModelWithProjection) -> None:
        super().__init__()
        self.image, self.text = image, text
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(
        self, pixels: Float[Tensor, "b 3 h w"], ids: Int[Tensor, "m n"]
    ) -> tuple[Float[Tensor, "b p"], Float[Tensor, "m p"], Float[Tensor, ""]]:
        """Unit vectors of the pictures and of the texts, and the logit scale."""
        image = F.normalize(self.image(pixels).float(), dim=-1)
        text = F.normalize(self.text(ids).text_embeds.float(), dim=-1)
        return image, text, self.scale()

    def scale(self) -> Float[Tensor, ""]:
        """What multiplies the cosines to make logits."""
        return self.logit_scale.clamp(max=math.log(LARGEST_SCALE)).exp()
