"""Data sets of the Hugging Face hub."""

import re
from pathlib import Path

from huggingface_hub import snapshot_download

from t2i.data.data_config import HUB_NAME, DataConfig
from t2i.data.folder import IMAGE_SUFFIXES, METADATA, SIDECARS, FolderSource, Naming
from t2i.data.parquet import ParquetSource
from t2i.data.source import Source
from t2i.errors import ConfigError

SPLIT = re.compile(r"\b(train|training|test|valid|validation|val|dev|eval)\b")
TRAIN = {"train", "training"}
SUFFIXES = (*IMAGE_SUFFIXES, *SIDECARS)
FETCHED = ["*.parquet", *METADATA, *(f"**/{name}" for name in METADATA), *(f"*{suffix}" for suffix in SUFFIXES)]


def open_hub(config: DataConfig, naming: Naming) -> Source:
    """Returns the training part of a hub data set: its parquet files, or its folder of images; no code of it is run."""
    name = config.path
    if not isinstance(name, str) or not HUB_NAME.fullmatch(name):
        raise ConfigError("path", "is not the name of a hub data set, OWNER/NAME", name)
    try:
        place = snapshot_download(name, repo_type="dataset", revision=config.revision, allow_patterns=FETCHED)
    except (OSError, ValueError) as error:
        cause = str(error).splitlines()[0]
        raise ConfigError("path", f"no such folder or file here, and the hub did not give it ({cause})", name) from None
    folder = Path(place)
    if files := training_files(folder, name):
        if naming != Naming():
            raise ConfigError("path", "consists of parquet files: their captions are in the caption column only", name)
        return ParquetSource(files, config.image_column, config.caption_column, config.allow_empty_captions)
    if not any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.rglob("*")):
        raise ConfigError(
            "path",
            "holds neither parquet files nor images; the hub's own copy in parquet may be at revision "
            "refs/convert/parquet",
            name,
        )
    return FolderSource([folder], config.caption_column, config.allow_empty_captions, naming)


def training_files(folder: Path, name: str) -> list[Path]:
    """Returns the parquet files of the training split, or all without splits; refuses several configurations."""
    splits: dict[Path, str | None] = {}
    for path in sorted(folder.rglob("*.parquet")):
        marks = SPLIT.findall(path.relative_to(folder).as_posix().replace("_", " "))
        splits[path] = marks[-1] if marks else None
    train = [path for path, mark in splits.items() if mark in TRAIN]
    files = train or [path for path, mark in splits.items() if mark is None]
    if splits and not files:
        raise ConfigError(
            "path", f"has no training split: {', '.join(sorted({str(s) for s in splits.values()}))}", name
        )
    if len(folders := {path.parent for path in files}) > 1:
        names = ", ".join(sorted(place.relative_to(folder).as_posix() for place in folders))
        raise ConfigError(
            "path", f"has several configurations ({names}): download it, and give the folder of one of them", name
        )
    return files
