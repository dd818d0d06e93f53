"""Opens, splits and scans the images of a recipe."""

import sys

from t2i.data.data_config import DataConfig
from t2i.data.dataset import ImageDataset
from t2i.data.open import open_source
from t2i.data.source import Source, split
from t2i.errors import ConfigError
from t2i.progress import progress
from t2i.training.recipes import Recipe


def open_both(recipe: Recipe, quiet: bool = False) -> tuple[ImageDataset, ImageDataset]:
    """Returns the training and the validation images; without `validation` some of `data` are held out."""
    train, held_out = open_sources(recipe)
    section = "data" if recipe.validation is None else "validation"
    return (
        read(train, recipe.data, recipe.size, "training images", quiet),
        read(held_out, recipe.validation or recipe.data, recipe.size, "validation images", quiet, section),
    )


def open_sources(recipe: Recipe) -> tuple[Source, Source]:
    """Returns the training and the validation source; without `validation` rows of `data` are held out."""
    source = open_source(recipe.data)
    if recipe.validation is None:
        return split(source, recipe.seed)
    return source, open_source(recipe.validation, section="validation")


def open_images(config: DataConfig, size: int, label: str, quiet: bool = False) -> ImageDataset:
    """Returns the images of a source, each decoded once; unusable ones are counted and reported."""
    return read(open_source(config), config, size, label, quiet)


def read(source: Source, config: DataConfig, size: int, label: str, quiet: bool, section: str = "data") -> ImageDataset:
    """Decodes every image of a source once, to count and report the unusable ones; errors name keys of `section`."""
    images = ImageDataset(source, size, config.background, config.max_bad_share)
    with progress(f"reading {label}", len(source), quiet=quiet) as report:
        try:
            summary = images.scan(report)
        except ConfigError as error:
            raise error.under(f"{section}.max_bad_share") from None
    if not quiet:
        print(f"{label}: {source.report}; {summary}", file=sys.stderr, flush=True)
    return images
