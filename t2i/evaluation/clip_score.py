"""CLIP score (Hessel et al. 2021): the cosine of picture and prompt under a named judge; no judge of its own family."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from t2i.component import fingerprint
from t2i.data.transforms import to_float
from t2i.evaluation.features import open_features
from t2i.evaluation.jackknife import Replicates, mean_of
from t2i.evaluation.reading import BATCH, Read, deal, gather
from t2i.text.base import TextEncoder
from t2i.text.clip import CLIPTextEncoder
from t2i.text.encoder import load_text_encoder
from t2i.text.towers import ImageTower

FORMS = "clip:ID, openclip:ARCH/PRETRAINED, local:IMAGE_TOWER+TEXT_ENCODER (two folders of one trained pair)"


class Judge(nn.Module):
    """A picture tower and a text tower into one space."""

    def __init__(self, name: str, pictures: nn.Module, encoder: TextEncoder) -> None:
        super().__init__()
        self.name, self.pictures, self.encoder = name, pictures, encoder
        self.fingerprint = fingerprint(pictures.state_dict(), encoder.fingerprint())

    @torch.inference_mode()
    def cosines(self, pixels: UInt8[Tensor, "n 3 h w"], prompts: list[str]) -> tuple[Float[Tensor, " n"], int]:
        """The cosine of each picture and its prompt, and how many prompts did not fit the text tower."""
        encoded, device = self.encoder(prompts), self.encoder.device
        texts = encoded.conditioning.pooled
        assert texts is not None
        images = self.pictures(pixels.to(device)).to(device)
        found = (F.normalize(images.float(), dim=-1) * F.normalize(texts.float(), dim=-1)).sum(-1)
        return found.cpu(), sum(map(bool, encoded.truncated))


class Tower(nn.Module):
    """An image tower trained here, fed 8-bit pictures."""

    def __init__(self, tower: ImageTower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixels: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n p"]:
        """Pictures in the shared space."""
        return self.tower(to_float(pixels))


def open_judge(name: str) -> Judge:
    """A judge by name: see FORMS."""
    kind, _, where = name.partition(":")
    if kind == "local":
        image, plus, text = where.partition("+")
        if not (image and plus and text):
            raise ValueError(f"judge {name!r}: write {FORMS}")
        tower, encoder = ImageTower.load(image), load_text_encoder(text)
        pictures, width = Tower(tower), tower.config.projection_dim
    elif kind in ("clip", "openclip") and where:
        vision, encoder = open_features(name), load_text_encoder(name)
        pictures, width = vision, vision.dim
    else:
        raise ValueError(f"judge {name!r}: write {FORMS}")
    projection = getattr(encoder, "projection", None)
    if projection is None or projection.out_features != width:
        other = "none" if projection is None else str(projection.out_features)
        raise ValueError(
            f"judge {name!r}: pictures come out in {width} dimensions, texts in {other}: they were not trained together"
        )
    return Judge(name, pictures, encoder)


def own_family(judge: Judge, contestant: TextEncoder) -> str | None:
    """Why a judge may favour a model with this text encoder; None: it is of another kind."""
    if judge.encoder.fingerprint() == contestant.fingerprint():
        return "the judge's text tower is the model's own text encoder"
    if isinstance(contestant, CLIPTextEncoder) and contestant.config.num_hidden_layers:  # else a control
        return "the judge and the model's text encoder are both CLIPs"
    return None


def clip_score(
    judge: Judge, read: Read, prompts: Sequence[str], groups: Int[Tensor, " n"], batch: int = BATCH
) -> tuple[Replicates, int]:
    """The mean cosine of pictures and their prompts (not times 100), and how many prompts were cut to fit."""
    mine = {k: judge.cosines(read(rows), [prompts[i] for i in rows]) for k, rows in deal(len(prompts), batch)}
    found = gather(mine)
    return mean_of(torch.cat([cosines for cosines, _ in found]), groups), sum(cut for _, cut in found)
