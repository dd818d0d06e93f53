"""Data sets of the Hugging Face hub."""

import re
from pathlib import Path

from huggingface_hub import snapshot_download

from t2i.data.data_config import HUB_NAME, DataConfig
from t2i.data.folder import IMAGE_SUFFIXES, METADATA, SIDECARS, FolderSource, Naming
from t2i.data.parquet import ParquetSource
from t2i.data.source import Source

SPLIT = re.compile(r"\b(train|training|test|valid|validation|val|dev|eval)\b")
TRAIN = {"train", "training"}
FETCHED = [
    "*.parquet",
    *METADATA,
    *(f"**/{name}" for name in METADATA),
    *(f"*{s}" for s in (*IMAGE_SUFFIXES, *SIDECARS)),
]


def open_hub(config: DataConfig, naming: Naming) -> Source:
    """A hub data set's training part: of its parquet files, else its pictures as a folder; no code of it is run."""
    if not isinstance(config.path, str) or not HUB_NAME.fullmatch(config.path):
        raise ValueError(f"data.path = {config.path!r} is no name of a hub's data set: OWNER/NAME is")
    try:
        place = snapshot_download(config.path, repo_type="dataset", revision=config.revision, allow_patterns=FETCHED)
    except (OSError, ValueError) as error:
        cause = str(error).splitlines()[0]
        raise ValueError(
            f"data {config.path!r}: no such folder or file here, and the hub did not give it ({cause})"
        ) from None
    folder = Path(place)
    if files := training_files(folder, config.path):
        if naming != Naming():
            raise ValueError(
                f"data {config.path!r}: is parquet files, whose captions stand in data.caption_column alone"
            )
        return ParquetSource(files, config.image_column, config.caption_column, config.allow_empty_captions)
    if not any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.rglob("*")):
        raise ValueError(
            f"data {config.path!r}: holds neither parquet files nor pictures; the hub's own copy of it in parquet may "
            "be at data.revision=refs/convert/parquet"
        )
    # The hub's cache links into its folder of blobs, beside the snapshots.
    root = folder.parent.parent
    return FolderSource([folder], config.caption_column, config.allow_empty_captions, naming, root)


def training_files(folder: Path, name: str) -> list[Path]:
    """The parquet files of the training split, or all where none is split; of several configurations none is taken."""
    splits: dict[Path, str | None] = {}
    for path in sorted(folder.rglob("*.parquet")):
        marks = SPLIT.findall(path.relative_to(folder).as_posix().replace("_", " "))
        splits[path] = marks[-1] if marks else None
    train = [path for path, split in splits.items() if split in TRAIN]
    files = train or [path for path, split in splits.items() if split is None]
    if splits and not files:
        raise ValueError(
            f"data {name!r}: has no training split: {', '.join(sorted({str(s) for s in splits.values()}))}"
        )
    if len(folders := {path.parent for path in files}) > 1:
        there = ", ".join(sorted(place.relative_to(folder).as_posix() for place in folders))
        raise ValueError(
            f"data {name!r}: has several configurations ({there}): download it, and give the folder of one"
        )
    return files
