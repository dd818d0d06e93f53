"""What is evaluated: a model that draws prompts at several guidances on the same noise, or pictures that are there."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from t2i.data.folder import IMAGE_SUFFIXES
from t2i.diffusion.guidance import Guidance
from t2i.errors import RunFailed
from t2i.evaluation.picture_sets import PictureSet, batches, stored
from t2i.evaluation.reading import to_uint8
from t2i.evaluation.reference import ReferencePictures, open_reference
from t2i.evaluation.store import Store, Task, digest
from t2i.pipeline import Pipeline, Request
from t2i.pipeline.job import Job
from t2i.pipeline.outputs import METADATA
from t2i.text.base import TextEncoder
from t2i.text.tokenizer import tokenize

STAGE = "pictures"
ENCODED_AT = 2.0  # the guidance that texts are encoded for: with the null, and the same for every one that is asked
DRAWN = ("solver", "steps", "cfg", "size", "model_sha256", "dtype")  # of a finished folder's settings


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn; None: as the model has it."""

    guidances: tuple[float, ...] | None = None
    solver: str | None = None
    steps: int | None = None
    seed: int = 0
    size: tuple[int, int] | None = None
    batch: int = 32


class Model:
    """A pipeline and its prompts: picture i is of prompt i, from the noise of seed + i, at every guidance."""

    def __init__(self, pipeline: Pipeline, name: str, sampling: Sampling, dtype: str) -> None:
        self.pipeline, self.name, self.sampling, self.dtype = pipeline, name, sampling, dtype
        self.vae = pipeline.autoencoder.fingerprint()
        self.text_encoder = pipeline.text_encoder.fingerprint()
        scheduler = pipeline.scheduler.model_dump_json()
        self.fingerprint = digest(pipeline.generator.unet.fingerprint(), self.vae, self.text_encoder, scheduler)
        first = sampling.guidances or (pipeline.defaults.guidance,)
        for scale in first:
            found = pipeline.resolve(self._request(["a"], [0], scale))
        self.guidances = tuple(dict.fromkeys(first))
        self.solver, self.steps, self.size = found.solver, found.steps, (found.width, found.height)
        self.prompts: list[str] = []
        self._last: tuple[range, Job] | None = None

    def _request(self, prompts: Sequence[str], seeds: Sequence[int], guidance: float) -> Request:
        width, height = self.sampling.size or (None, None)
        return Request(
            prompts=list(prompts),
            seeds=list(seeds),
            guidance_scale=guidance,
            solver=self.sampling.solver,
            num_inference_steps=self.sampling.steps,
            width=width,
            height=height,
            batch_size=len(prompts),
        )

    def ask(self, prompts: Sequence[str]) -> None:
        """The prompts, one a picture; those that do not fit the text encoder are counted and said."""
        self.prompts, encoder = list(prompts), self.pipeline.text_encoder
        if cut := cut_off(encoder, self.prompts):
            warnings.warn(
                f"{len(cut)} of {len(prompts)} prompts are longer than the text encoder's {encoder.max_tokens} tokens: "
                f"cut off, for example {cut[0]!r}",
                stacklevel=2,
            )

    @cached_property
    def evaluations(self) -> int:
        """How often the U-Net runs on one picture for all that is asked."""
        return len(self.prompts) * sum(self.steps * (1 if g == 1 else 2) for g in self.guidances)

    def sets(self, store: Store) -> dict[float | None, PictureSet]:
        """The pictures at each guidance; those that are not in the store yet come from `tasks`."""
        parts = batches(len(self.prompts), self.sampling.batch)
        return {g: stored(store, STAGE, parts, tuple(self._key(part, g) for part in parts)) for g in self.guidances}

    def tasks(self, first: int | None = None) -> list[Task]:
        """All that is to be drawn, batch by batch; or the batches of the first pictures alone."""
        every = batches(len(self.prompts), self.sampling.batch)
        parts = [part for part in every if first is None or part.start < first]
        return [
            Task(self._key(part, g), len(part), lambda part=part, g=g: {"pixels": self.draw(part, g).numpy()})
            for part in parts
            for g in self.guidances
        ]

    def _key(self, part: range, guidance: float) -> str:
        asked = [self.prompts[i] for i in part]
        where = (self.dtype, self.pipeline.device.type)
        return digest(
            self.fingerprint, asked, self._seeds(part), guidance, self.solver, self.steps, list(self.size), *where
        )

    def _seeds(self, part: range) -> list[int]:
        return [self.sampling.seed + i for i in part]

    @property
    def seeds(self) -> str:
        """All of them, in words."""
        return f"{self.sampling.seed}..{self.sampling.seed + len(self.prompts) - 1}"

    def draw(self, part: range, guidance: float) -> UInt8[Tensor, "b 3 h w"]:
        """One batch at one guidance; its texts are encoded once for all guidances."""
        try:
            if self._last is None or self._last[0] != part:
                texts = [self.prompts[i] for i in part]
                self._last = part, self.pipeline.prepare(self._request(texts, self._seeds(part), ENCODED_AT))
            job = replace(self._last[1], guidance=Guidance(guidance))
            [latents] = self.pipeline.run(job, "latent")
            return to_uint8(self.pipeline.decode(latents))
        except torch.OutOfMemoryError as error:
            raise RunFailed(f"out of memory: lower --batch-size or --size ({str(error).splitlines()[0]})") from None


class Finished:
    """Pictures in a folder with their prompts, as `t2i generate` leaves them; all are of one size and one setting."""

    def __init__(self, folder: Path, n: int | None) -> None:
        sizes, settings = native_sizes(folder), _settings(folder)
        if len(sizes) != 1:
            some = ", ".join(f"{w}x{h}" for w, h in sorted(sizes)[:4])
            raise ValueError(f"{folder}: pictures of {len(sizes)} sizes ({some}): evaluate those of one size")
        [self.size] = sizes
        try:
            found = open_reference(folder, self.size)
        except ValueError as error:
            raise ValueError(str(error).replace("reference", "--model", 1)) from None
        assert isinstance(found, ReferencePictures)
        if n is not None and n > len(found):
            raise ValueError(f"--n {n}: {folder} holds {len(found)} pictures")
        self.pictures, self.name, self.prompts = found, folder.resolve().name, found.captions[:n]
        self.guidance, self.steps, self.solver = settings["cfg"], settings["steps"], settings["solver"]
        self.fingerprint, self.dtype = settings["model_sha256"], settings["dtype"]
        self.text_encoder, self.vae, self.seeds = None, None, None

    def sets(self, batch: int) -> dict[float | None, PictureSet]:
        """The pictures, at the guidance that they say."""
        found = PictureSet.of(len(self.prompts), batch, self.pictures.read, "finished", self.pictures.hash)
        return {self.guidance: found}


def cut_off(encoder: TextEncoder, prompts: list[str]) -> list[str]:
    """What is left out of prompts that are longer than a text encoder's tokens."""
    return [rest for rest in tokenize(encoder.tokenizer, prompts, encoder.max_tokens).truncated if rest]


def native_sizes(folder: Path) -> set[tuple[int, int]]:
    """(width, height) of the pictures that a folder lists, or holds."""
    rows = _lines(folder)
    if rows:
        paths = [folder / row["file_name"] for row in rows]
    else:
        paths = [path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES]
    found = set()
    for path in paths:
        try:
            with Image.open(path) as picture:
                found.add(picture.size)
        except OSError as error:
            raise ValueError(f"{path}: unreadable ({error})") from None
    return found


def is_finished(path: Path) -> bool:
    """Whether a folder holds pictures, and no model."""
    if not path.is_dir() or (path / "model_index.json").exists():
        return False
    return (path / METADATA).is_file() or any(p.suffix.lower() in IMAGE_SUFFIXES for p in path.iterdir())


def _lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of metadata.jsonl whose pictures are there."""
    path = folder / METADATA
    if not path.is_file():
        return []
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf8").splitlines() if line.strip()]
        return [row for row in rows if (folder / row["file_name"]).is_file()]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: a line is no object with a file_name ({error})") from None


def _settings(folder: Path) -> dict[str, Any]:
    """What all pictures of a folder were drawn with; unlike settings are refused, unknown ones are None."""
    found, rows = {}, _lines(folder)
    for key in DRAWN:
        values = {row.get(key) for row in rows}
        if len(values) > 1:
            some = ", ".join(map(str, sorted(values, key=str)[:4]))
            raise ValueError(f"{folder}: its pictures were drawn with {key} = {some}: evaluate those of one setting")
        found[key] = values.pop() if values else None
    return found
