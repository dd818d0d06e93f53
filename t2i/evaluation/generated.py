"""The subjects of an evaluation: a model that generates images at several guidances, or images saved in a folder."""

import json
import warnings
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from t2i.data.folder import IMAGE_SUFFIXES
from t2i.diffusion.guidance import Guidance
from t2i.errors import ConfigError, RunFailed
from t2i.evaluation.image_sets import ImageSet, batches, stored, to_uint8
from t2i.evaluation.protocol import prompts_hash
from t2i.evaluation.reference import ReferenceImages, open_reference
from t2i.evaluation.store import Arrays, Store, Task, digest
from t2i.files import MOST_BYTES, check_regular
from t2i.pipeline import Pipeline, Request
from t2i.pipeline.outputs import METADATA
from t2i.pipeline.resolved import PreparedRequest
from t2i.text.base import TextEncoder
from t2i.text.tokenizer import tokenize

STAGE = "pictures"  # of the store
ENCODED_AT = 2.0  # texts are encoded for this guidance, with the unconditional text, whichever guidances are asked for
SETTINGS = ("solver", "steps", "cfg", "size", "model_sha256", "dtype")  # of the lines of METADATA

Noise = Callable[[Sequence[int], tuple[int, ...]], Tensor]  # (image numbers, shape) -> latents to start from


@runtime_checkable
class Subject(Protocol):
    """The subject of an evaluation: images of `prompts` at one or several guidances.

    `extra` maps a skill to prompts that only this skill is read from; their images follow those of `prompts`.
    """

    name: str
    size: tuple[int, int]
    prompts: list[str]
    extra: dict[str, list[str]]

    @property
    def fingerprint(self) -> str | None:
        """The hash of the model, if it is known."""
        ...

    def image_sets(self, store: Store, batch: int) -> dict[float | None, ImageSet]:
        """Returns the images of all prompts by guidance."""
        ...

    def identity(self, guidance: float | None) -> dict[str, Any]:
        """Returns the fields of a protocol that describe the images."""
        ...


@dataclass(frozen=True)
class Sampling:
    """Sampling settings; None: the model's default."""

    guidances: tuple[float, ...] | None = None
    solver: str | None = None
    steps: int | None = None
    seed: int = 0
    size: tuple[int, int] | None = None
    batch: int = 32


class ModelSamples:
    """Images that a pipeline generates: image i shows prompt i, from the noise of seed + i, at every guidance.

    With `noise` the starting latents are its values, and each guidance encodes the texts anew.
    """

    def __init__(
        self, pipeline: Pipeline, name: str, sampling: Sampling, dtype: str, noise: Noise | None = None
    ) -> None:
        self.pipeline, self.name, self.sampling, self.dtype, self.noise = pipeline, name, sampling, dtype, noise
        self.vae = pipeline.autoencoder.fingerprint()
        self.text_encoder = pipeline.text_encoder.fingerprint()
        scheduler = pipeline.scheduler.model_dump_json()
        self.fingerprint = digest(pipeline.generator.unet.fingerprint(), self.vae, self.text_encoder, scheduler)
        guidances = sampling.guidances or (pipeline.defaults.guidance,)
        for scale in guidances:
            resolved = pipeline.resolve(self.request(["a"], [0], scale))
        self.guidances = tuple(dict.fromkeys(guidances))
        self.solver, self.steps, self.size = resolved.plan.solver, resolved.steps, (resolved.width, resolved.height)
        self.prompts: list[str] = []
        self.extra: dict[str, list[str]] = {}
        self.all_prompts: list[str] = []  # the prompt of each image, those of `extra` included
        self._last: tuple[range, PreparedRequest] | None = None

    def request(self, prompts: Sequence[str], rows: Sequence[int], guidance: float) -> Request:
        """Returns the request of some images at one guidance; image k has the seed of its row."""
        width, height = self.sampling.size or (None, None)
        latents = None
        if self.noise is not None:
            h, w = (side // self.pipeline.autoencoder.factor for side in (self.pipeline.default_size() or (0, 0)))
            latents = self.noise(rows, (self.pipeline.generator.unet.config.out_channels, h, w))
        return Request(
            prompt=list(prompts),
            seeds=[self.sampling.seed + i for i in rows],
            latents=latents,
            guidance_scale=guidance,
            solver=self.sampling.solver,
            num_inference_steps=self.sampling.steps,
            width=width,
            height=height,
            batch_size=len(prompts) if self.noise is None else self.sampling.batch,
        )

    def at(self, guidance: float) -> "ModelSamples":
        """Returns the same samples at one guidance only."""
        subject = copy(self)
        subject.guidances = (guidance,)
        return subject

    def set_prompts(self, prompts: Sequence[str], extra: dict[str, list[str]] | None = None) -> None:
        """Sets the prompt of each image; warns of prompts that the text encoder truncates."""
        self.prompts, self.extra, encoder = list(prompts), extra or {}, self.pipeline.text_encoder
        self.all_prompts = [*self.prompts, *(text for texts in self.extra.values() for text in texts)]
        if cut := truncated(encoder, self.prompts):
            warnings.warn(
                f"{len(cut)} of {len(prompts)} prompts are longer than the text encoder's {encoder.max_tokens} tokens: "
                f"cut off, for example {cut[0]!r}",
                stacklevel=2,
            )

    @property
    def evaluations(self) -> int:
        """The number of U-Net evaluations of single images for all prompts and guidances."""
        return len(self.all_prompts) * sum(self.steps * (1 if g == 1 else 2) for g in self.guidances)

    def image_sets(self, store: Store, batch: int) -> dict[float | None, ImageSet]:
        """Returns the images at each guidance; those that are not in the store yet are generated."""
        parts = batches(len(self.all_prompts), self.sampling.batch)
        return {g: stored(store, STAGE, parts, [self._task(part, g) for part in parts]) for g in self.guidances}

    def tasks(self, first: int | None = None) -> list[Task]:
        """Returns one task a batch and guidance that generates its images; with `first` for the first images alone."""
        parts = batches(len(self.all_prompts), self.sampling.batch)
        return [self._task(part, g) for part in parts if first is None or part.start < first for g in self.guidances]

    def _task(self, part: range, guidance: float) -> Task:
        return Task(self._key(part, guidance), len(part), lambda: self._arrays(self.draw(part, guidance)))

    def _arrays(self, pixels: UInt8[Tensor, "b 3 h w"]) -> Arrays:
        if self.noise is None:
            return {"pixels": pixels.numpy()}
        # The layout is part of the last bits of features, which a study computes on what the decoder returns.
        last = pixels.is_contiguous(memory_format=torch.channels_last)
        return {"pixels": pixels.numpy(), "channels_last": np.array(last)}

    def _key(self, part: range, guidance: float) -> str:
        prompts = [self.all_prompts[i] for i in part]
        seeds = [self.sampling.seed + i for i in part]
        where = (self.dtype, self.pipeline.device.type, *(() if self.noise is None else ("given noise",)))
        return digest(self.fingerprint, prompts, seeds, guidance, self.solver, self.steps, list(self.size), *where)

    def identity(self, guidance: float | None) -> dict[str, Any]:
        """Returns the fields of a protocol that describe the images."""
        return {
            "prompts": prompts_hash(self.all_prompts),
            "model": self.fingerprint,
            "text_encoder": self.text_encoder,
            "solver": self.solver,
            "steps": self.steps,
            "guidance": guidance,
            "seeds": f"{self.sampling.seed}..{self.sampling.seed + len(self.all_prompts) - 1}",
            "dtype": self.dtype,
        }

    def draw(self, part: range, guidance: float) -> UInt8[Tensor, "b 3 h w"]:
        """Generates one batch at one guidance; without `noise` its texts are encoded once for all guidances."""
        try:
            if self._last is None or self._last[0] != part or self.noise is not None:
                prompts = [self.all_prompts[i] for i in part]
                encoded_at = ENCODED_AT if self.noise is None else guidance
                self._last = part, self.pipeline.prepare(self.request(prompts, part, encoded_at))
            job = replace(self._last[1], guidance=Guidance(guidance))
            [latents] = self.pipeline.run(job, "latent")
            return to_uint8(self.pipeline.decode(latents))
        except torch.OutOfMemoryError as error:
            raise RunFailed(f"out of memory: lower --batch-size or --size ({str(error).splitlines()[0]})") from None


class SavedSamples:
    """Images in a folder with their prompts, as `t2i generate` writes them; all of one size and of equal settings."""

    def __init__(self, folder: Path, n: int | None) -> None:
        sizes, settings = native_sizes(folder), _settings(folder)
        if len(sizes) != 1:
            some = ", ".join(f"{w}x{h}" for w, h in sorted(sizes)[:4])
            raise ConfigError("model", f"holds images of {len(sizes)} sizes ({some}): evaluate one size", str(folder))
        [self.size] = sizes
        try:
            images = open_reference(folder, self.size)
        except ConfigError as error:
            raise error.under("model") from None
        assert isinstance(images, ReferenceImages)
        if n is not None and n > len(images):
            raise ConfigError("n", f"{folder} holds {len(images)} images", n)
        self.images, self.name, self.prompts = images, folder.resolve().name, images.captions[:n]
        self.extra: dict[str, list[str]] = {}
        self.guidance, self.steps, self.solver = settings["cfg"], settings["steps"], settings["solver"]
        self.fingerprint, self.dtype = settings["model_sha256"], settings["dtype"]

    def image_sets(self, store: Store, batch: int) -> dict[float | None, ImageSet]:
        """Returns the images, at the guidance that their metadata records."""
        return {self.guidance: ImageSet.of(len(self.prompts), batch, self.images.read, "finished", self.images.hash)}

    def identity(self, guidance: float | None) -> dict[str, Any]:
        """Returns the fields of a protocol that describe the images."""
        drawn = {"model": self.fingerprint, "solver": self.solver, "steps": self.steps, "dtype": self.dtype}
        return {"prompts": prompts_hash(self.prompts), "guidance": guidance, **drawn}


def truncated(encoder: TextEncoder, prompts: list[str]) -> list[str]:
    """Returns the text that is cut off, of each prompt that is longer than the text encoder's tokens."""
    return [text for text in tokenize(encoder.tokenizer, prompts, encoder.max_tokens).truncated if text]


def native_sizes(folder: Path) -> set[tuple[int, int]]:
    """Returns the (width, height) of the images that a folder's metadata lists, or that it holds."""
    lines = _lines(folder)
    if lines:
        paths = [folder / line["file_name"] for line in lines]
    else:
        paths = [path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES]
    sizes = set()
    for path in paths:
        check_regular(path, MOST_BYTES)
        try:
            with Image.open(path) as image:
                sizes.add(image.size)
        except OSError as error:
            raise ValueError(f"{path}: unreadable ({error})") from None
    return sizes


def is_saved(path: Path) -> bool:
    """Returns True if a folder holds images and no model."""
    if not path.is_dir() or (path / "model_index.json").exists():
        return False
    return (path / METADATA).is_file() or any(p.suffix.lower() in IMAGE_SUFFIXES for p in path.iterdir())


def _lines(folder: Path) -> list[dict[str, Any]]:
    """Returns the lines of metadata.jsonl whose images exist."""
    path = folder / METADATA
    if not path.is_file():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf8").splitlines() if line.strip()]
        return [line for line in lines if (folder / line["file_name"]).is_file()]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: a line is not an object with a file_name ({error})") from None


def _settings(folder: Path) -> dict[str, Any]:
    """Returns the settings that all images of a folder share, None where unrecorded; raises where they differ."""
    settings, lines = {}, _lines(folder)
    for key in SETTINGS:
        values = {line.get(key) for line in lines}
        if len(values) > 1:
            some = ", ".join(map(str, sorted(values, key=str)[:4]))
            raise ConfigError(
                "model", f"its images were generated with {key} = {some}: evaluate images of one setting", str(folder)
            )
        settings[key] = values.pop() if values else None
    return settings
