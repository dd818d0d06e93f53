"""CLIP score (Hessel et al. 2021): the cosine of image and prompt under a named judge, flagged if it is biased."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from t2i.component import fingerprint
from t2i.data.transforms import to_float
from t2i.errors import ConfigError
from t2i.evaluation.features import open_features
from t2i.text.base import TextEncoder
from t2i.text.clip import CLIPTextEncoder
from t2i.text.encoder import load_text_encoder
from t2i.text.towers import ImageTower

FORMS = "clip:ID, openclip:ARCH/PRETRAINED, local:IMAGE_TOWER+TEXT_ENCODER (two folders of one trained pair)"


class Judge(nn.Module):
    """An image tower and a text tower with one output space."""

    def __init__(self, name: str, images: nn.Module, encoder: TextEncoder) -> None:
        super().__init__()
        self.name, self.images, self.encoder = name, images, encoder
        self.fingerprint = fingerprint(images.state_dict(), encoder.fingerprint())

    @torch.inference_mode()
    def cosines(self, pixels: UInt8[Tensor, "n 3 h w"], prompts: list[str]) -> tuple[Float[Tensor, " n"], int]:
        """Returns the cosine of each image and its prompt, and the number of prompts that the text tower truncated."""
        encoded, device = self.encoder(prompts), self.encoder.device
        texts = encoded.conditioning.pooled
        assert texts is not None
        images = self.images(pixels.to(device)).to(device)
        cosines = (F.normalize(images.float(), dim=-1) * F.normalize(texts.float(), dim=-1)).sum(-1)
        return cosines.cpu(), sum(map(bool, encoded.truncated))


class Tower(nn.Module):
    """An image tower of `t2i train text-encoder`, applied to 8-bit images."""

    def __init__(self, tower: ImageTower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixels: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n p"]:
        """Returns the images in the shared space."""
        return self.tower(to_float(pixels))


def open_judge(name: str) -> Judge:
    """Opens a judge by name (see FORMS); raises ConfigError under `judge`."""
    kind, _, where = name.partition(":")
    if kind == "local":
        image, plus, text = where.partition("+")
        if not (image and plus and text):
            raise ConfigError("judge", f"write {FORMS}", name)
        tower, encoder = ImageTower.load(image), load_text_encoder(text)
        images, width = Tower(tower), tower.config.projection_dim
    elif kind in ("clip", "openclip") and where:
        vision, encoder = open_features(name), load_text_encoder(name)
        images, width = vision, vision.dim
    else:
        raise ConfigError("judge", f"write {FORMS}", name)
    projection = getattr(encoder, "projection", None)
    if projection is None or projection.out_features != width:
        other = "none" if projection is None else str(projection.out_features)
        raise ConfigError(
            "judge", f"maps images to {width} dimensions, texts to {other}: they were not trained together", name
        )
    return Judge(name, images, encoder)


def own_family(judge: Judge, encoder: TextEncoder) -> str | None:
    """Returns the reason why a judge may favour a model with this text encoder; None if the two are of unlike kinds."""
    if judge.encoder.fingerprint() == encoder.fingerprint():
        return "the judge's text tower is the model's own text encoder"
    if isinstance(encoder, CLIPTextEncoder) and encoder.config.num_hidden_layers:  # else a control
        return "the judge and the model's text encoder are both CLIPs"
    return None
