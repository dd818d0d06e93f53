"""The pictures of a fine-tuning: opened, split, cached as latents; the class pictures of prior preservation."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from t2i.data.cache import Cache
from t2i.data.data_config import DataConfig
from t2i.data.dataset import ImageDataset
from t2i.data.folder import IMAGE_SUFFIXES
from t2i.data.open import open_source
from t2i.data.source import MIN_SPLIT, Source, Subset, fingerprint, split
from t2i.files import write_png
from t2i.pipeline import Pipeline
from t2i.progress import progress
from t2i.text.tokenizer import tokenize
from t2i.training.finetune.recipe import FinetuneRecipe, Prior
from t2i.training.images import read
from t2i.training.precompute import Frozen, captions_of, open_or_build

DRAWN_AT_ONCE = 8
SHOWN = 60  # letters of a prompt in a message


@dataclass(frozen=True)
class Sources:
    """Training and held-out rows; `same` where there were too few to set any apart."""

    train: Source
    held: Source
    config: DataConfig
    held_config: DataConfig
    same: bool


def apart(source: Source, data: DataConfig, validation: DataConfig | None, held_out: int | None, seed: int) -> Sources:
    """The rows of `source` to train on, and those to judge by: of `validation`, or set apart of it."""
    if validation is not None:
        try:
            return Sources(source, open_source(validation), data, validation, False)
        except ValueError as error:
            raise ValueError(str(error).replace("data.", "validation.")) from None
    n = len({source[i].key for i in range(len(source))})
    if held_out is not None and not held_out < n >= MIN_SPLIT:
        raise ValueError(f"held_out = {held_out}: it has to be less than the number of pictures, {n}, of at least 4")
    if n < MIN_SPLIT:
        return Sources(source, source, data, data, True)
    return Sources(*split(source, seed, held_out or max(2, min(n // 5, 8), min(n // 20, 512))), data, data, False)


class MirroredSource(Subset):
    """All rows of a source, whose pictures are mirrored when they are read."""

    def fingerprint(self) -> str:
        return fingerprint(["mirrored", super().fingerprint()])


class Mirrored(ImageDataset):
    """Pictures that were scanned, each mirrored left to right."""

    def __init__(self, pictures: ImageDataset) -> None:
        vars(self).update(vars(pictures))
        self.source = MirroredSource(pictures.source, list(range(len(pictures))))

    def batch(self, indices: Int[Tensor, " b"] | list[int]) -> Float[Tensor, "b 3 h w"]:
        return super().batch(indices).flip(-1)


class Material:
    """Pictures, captions and caches of a recipe."""

    def __init__(self, recipe: FinetuneRecipe, pipeline: Pipeline, found: Sources, quiet: bool) -> None:
        self.same = found.same
        self.train = read(found.train, found.config, recipe.size, "training pictures", quiet)
        self.held = (
            self.train if found.same else read(found.held, found.held_config, recipe.size, "held-out pictures", quiet)
        )
        if found.same and not quiet:
            print(
                f"{len(found.train)} pictures are too few to hold any out: the validation loss is measured on the "
                "training pictures themselves, and says nothing of other pictures",
                flush=True,
            )
        self.captions, self.held_captions = captions_of(self.train), captions_of(self.held)
        folder = recipe.cache or str(recipe.run / "cache")
        frozen = Frozen(pipeline.text_encoder, pipeline.autoencoder, None)

        def cached(pictures: ImageDataset, label: str) -> Cache:
            return open_or_build(folder, frozen, pictures, label, quiet)

        self.cache = cached(self.train, "training pictures")
        self.mirrored = cached(Mirrored(self.train), "mirrored pictures") if recipe.flip else None
        self.held_cache = self.cache if found.same else cached(self.held, "held-out pictures")
        self.prior: Cache | None = None
        if recipe.prior is not None:
            pictures = class_pictures(recipe.prior, recipe, pipeline, quiet)
            self.prior = cached(pictures, "class pictures")


def class_pictures(prior: Prior, recipe: FinetuneRecipe, pipeline: Pipeline, quiet: bool) -> ImageDataset:
    """The class pictures; those that their folder lacks are drawn by the pipeline as it is, and stay there."""
    folder = Path(prior.folder) if prior.folder else recipe.run / "class"
    folder.mkdir(parents=True, exist_ok=True)
    there = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES]
    missing = [k for k in range(prior.count) if not (folder / f"class-{k:05}.png").exists()]
    missing = missing[: max(prior.count - len(there), 0)]
    sampling = recipe.sample
    with progress("drawing class pictures", len(missing), quiet=quiet) as report:
        for begin in range(0, len(missing), DRAWN_AT_ONCE):
            rows = missing[begin : begin + DRAWN_AT_ONCE]
            images = pipeline(
                [prior.prompt] * len(rows),
                seeds=[recipe.seed + k for k in rows],
                solver=sampling.solver,
                num_inference_steps=sampling.steps,
                guidance_scale=sampling.guidance,
                height=recipe.size,
                width=recipe.size,
            ).images
            for k, image in zip(rows, images, strict=True):
                write_png(folder / f"class-{k:05}.png", image)
            report(begin + len(rows))
    config = DataConfig.model_validate({"source": "folder", "path": str(folder), "instance_prompt": prior.prompt})
    return read(open_source(config), config, recipe.size, "class pictures", quiet)


def check_prompts(pipeline: Pipeline, prompts: dict[str, str | None]) -> None:
    """Refuse a prompt, given by its key, that the text encoder would cut."""
    text = pipeline.text_encoder
    for key, prompt in prompts.items():
        if prompt is not None and (cut := tokenize(text.tokenizer, [prompt], text.max_tokens).truncated[0]):
            shown = prompt if len(prompt) <= SHOWN else f"{prompt[:SHOWN]}..."
            raise ValueError(
                f"{key} = {shown!r} is longer than the text encoder's {text.max_tokens} tokens: {cut[:SHOWN]!r} would "
                "be cut off; shorten it"
            )


def pixels(pictures: ImageDataset, rows: Tensor, side: int) -> Float[Tensor, "n d"]:
    """Small copies of pictures, flat, in [0, 1]."""
    return torch.cat([small(pictures.batch(part), side) for part in rows.split(256)])


def small(images: Float[Tensor, "b 3 h w"], side: int) -> Float[Tensor, "b d"]:
    """Pictures in [-1, 1] at `side` x `side`, flat, in [0, 1]."""
    return torch.nn.functional.interpolate(images / 2 + 0.5, (side, side), mode="area").flatten(1)
