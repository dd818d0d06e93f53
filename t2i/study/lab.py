"""What every run of a study is measured with, opened once a process: captions, reference, features, judge."""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32, Int, UInt8
from torch import Tensor

from t2i import randomness
from t2i.autoencoder.kl import AutoencoderKL
from t2i.data.data_config import DataConfig
from t2i.data.dataset import ImageDataset
from t2i.data.transforms import TRANSFORM
from t2i.evaluation.clip_score import Judge, open_judge
from t2i.evaluation.features import Features, open_features, pixels_hash
from t2i.evaluation.frechet import Moments, Reference
from t2i.evaluation.jackknife import group_by
from t2i.evaluation.protocol import Protocol, prompts_hash
from t2i.evaluation.reading import extract, to_uint8
from t2i.evaluation.scene_parser import MEANING, VERSION, Part, Skills, score_all
from t2i.study.recipe import StudyRecipe
from t2i.training.distributed import process_state
from t2i.training.images import open_images

PARTS = list(MEANING)


class Lab:
    """The measuring side of a recipe; its `key` names what an evaluation depends on beside the model."""

    def __init__(self, recipe: StudyRecipe) -> None:
        self.recipe, self.ask = recipe, recipe.evaluate
        self.device = process_state().device
        said = recipe.evaluate.model_dump(mode="json", exclude={"at", "at_fd", "guidance", "shown"}) | {
            "size": recipe.size,
            "parser": VERSION,
        }
        self.key = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:10]

    @cached_property
    def vae(self) -> AutoencoderKL:
        """The study's autoencoder."""
        folder = Path(self.recipe.vae)
        return AutoencoderKL.load(folder / "vae" if (folder / "vae").is_dir() else folder).to(self.device)

    @cached_property
    def features(self) -> Features:
        """The frozen features."""
        size = (self.recipe.size, self.recipe.size)
        return open_features(self.ask.features, self.vae, size).to(self.device)

    @cached_property
    def judge(self) -> Judge | None:
        """The judge of the CLIP score."""
        return None if self.ask.judge is None else open_judge(self.ask.judge).to(self.device)

    @cached_property
    def test(self) -> ImageDataset:
        """The captions to draw, with their pictures."""
        return self.open(self.ask.test, "test pictures")

    def open(self, config: DataConfig, label: str) -> ImageDataset:
        """Pictures at the study's size."""
        return open_images(config, self.recipe.size, label, quiet=True)

    @cached_property
    def rows(self) -> list[int]:
        """Which test pictures are used."""
        return self.test.usable.tolist()[: self.ask.n]

    @cached_property
    def captions(self) -> list[str]:
        """The captions of the test."""
        texts = self.test.texts()
        return [texts[i] for i in self.rows]

    @cached_property
    def prompts(self) -> list[tuple[str, str]]:
        """(the skill that it is drawn for alone, or "", caption), in the order of the noise."""
        more = [(name, self.open(config, name).texts()) for name, config in self.ask.only.items()]
        return [("", text) for text in self.captions] + [(name, text) for name, texts in more for text in texts]

    @cached_property
    def groups(self) -> Int[Tensor, " n"]:
        """The test's captions in groups, for the jackknife."""
        return group_by(self.captions)

    def noise(self, rows: Sequence[int], shape: tuple[int, ...]) -> Tensor:
        """The noise to draw prompts from: the same for every run and every guidance."""
        return torch.stack([randomness.normal(shape, self.ask.seed, "study", i) for i in rows])

    def pixels(self, pictures: ImageDataset, rows: Sequence[int]) -> UInt8[Tensor, "n 3 h w"]:
        """Pictures as 8-bit pixels."""
        return to_uint8(pictures.batch(list(rows)))

    def vectors(self, pixels: UInt8[Tensor, "n 3 h w"]) -> Float32[Tensor, "n d"]:
        """The features of pictures."""
        return extract(self.features, lambda rows: pixels[list(rows)], len(pixels))

    def skills(self, pixels: UInt8[Tensor, "n 3 h w"], captions: list[str]) -> Int[Tensor, "n k 2"]:
        """(hits, n) of every skill of every picture."""
        found = [score_all(pixels[a : a + 256], captions[a : a + 256]) for a in range(0, len(captions), 256)]
        return torch.tensor([[skill.get(name, (0, 0)) for name in PARTS] for part in found for skill in part])

    @cached_property
    def _reference(self) -> tuple[Reference, str, Tensor]:
        pictures = self.open(self.ask.reference, "reference pictures")
        rows = pictures.usable.tolist()
        digest, found = hashlib.sha256(), []
        for a in range(0, len(rows), 256):
            pixels = self.pixels(pictures, rows[a : a + 256])
            digest.update(pixels_hash(pixels).encode())
            found.append(self.vectors(pixels))
        vectors = torch.cat(found)
        return Reference.of(Moments.of(vectors)), digest.hexdigest(), vectors

    @property
    def reference(self) -> Reference:
        """What a Frechet distance is from."""
        return self._reference[0]

    def protocol(self, n: int, features: bool = False, **more: Any) -> Protocol:
        """What a number depends on; `more` is of the model."""
        found: dict[str, Any] = {"n": n, "prompts": prompts_hash(text for _, text in self.prompts), **more}
        if features:
            network, (reference, digest, _) = self.features, self._reference
            found |= {"features": network.name, "fingerprint": network.fingerprint, "resize": network.resize}
            found |= {"n_ref": reference.n, "reference": digest, "verified": network.verified}
            found |= {"size": (self.recipe.size,) * 2, "preparation": TRANSFORM}
        return Protocol(**found)


def skills_of(parts: Int[Tensor, "n k 2"]) -> list[Skills]:
    """The inverse of `Lab.skills`."""
    return [{name: Part(*pair) for name, pair in zip(PARTS, row, strict=True) if pair[1]} for row in parts.tolist()]
