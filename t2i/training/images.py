"""What tasks on pictures share: opening and scanning a source, and the order of its usable rows."""

import sys

from jaxtyping import Int
from torch import Tensor

from t2i.data.data_config import DataConfig
from t2i.data.dataset import ImageDataset, batch_indices
from t2i.data.open import open_source
from t2i.data.source import Source, split
from t2i.progress import progress
from t2i.training.recipes import Recipe


def open_both(recipe: Recipe, quiet: bool = False) -> tuple[ImageDataset, ImageDataset]:
    """The training and the validation pictures; without `validation` some of `data` are set apart for it."""
    source = open_source(recipe.data)
    if recipe.validation is None:
        config, (source, held_out) = recipe.data, split(source, recipe.seed)
    else:
        config = recipe.validation
        try:
            held_out = open_source(config)
        except ValueError as error:  # the source speaks of its keys as those of `data`
            raise ValueError(str(error).replace("data.", "validation.")) from None
    return (
        read(source, recipe.data, recipe.size, "training pictures", quiet),
        read(held_out, config, recipe.size, "validation pictures", quiet),
    )


def open_pictures(config: DataConfig, size: int, label: str, quiet: bool = False) -> ImageDataset:
    """The pictures of a source, every one decoded once; what was left out is printed."""
    return read(open_source(config), config, size, label, quiet)


def read(source: Source, config: DataConfig, size: int, label: str, quiet: bool) -> ImageDataset:
    """Decode every picture of a source once."""
    pictures = ImageDataset(source, size, config.background, config.max_bad_share)
    with progress(f"reading {label}", len(source), quiet=quiet) as report:
        found = pictures.scan(report)
    if not quiet:
        print(f"{label}: {source.report}; {found}", file=sys.stderr, flush=True)
    return pictures


def order(usable: Int[Tensor, " n"], step: int, global_batch: int, seed: int) -> Int[Tensor, " b"]:
    """The usable rows of optimiser step `step`."""
    return usable[batch_indices(len(usable), global_batch, step, seed)]
