"""Data by name: a folder of pictures, parquet files, or a data set of the hub."""

import re
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from pydantic import ValidationError

from t2i.config import explain
from t2i.data.data_config import DataConfig
from t2i.data.folder import METADATA, PICTURES, SIDECARS, FolderSource, Naming
from t2i.data.parquet import ParquetSource
from t2i.data.record import Source

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
SPLIT = re.compile(r"\b(train|training|test|valid|validation|val|dev|eval)\b")
TRAIN = {"train", "training"}
FETCHED = ["*.parquet", *METADATA, *(f"**/{name}" for name in METADATA), *(f"*{s}" for s in (*PICTURES, *SIDECARS))]


def config_for(name: str | Path, **keys: Any) -> DataConfig:
    """`data:` for a folder of pictures or of parquet files, a parquet file or OWNER/NAME on the hub, with `keys`."""
    path = Path(name).expanduser()
    if path.is_dir():
        source = "parquet" if any(path.glob("*.parquet")) else "folder"
    elif path.suffix == ".parquet" and path.is_file():
        source = "parquet"
    elif path.exists():
        raise ValueError(f"{path}: is no parquet file; data is a folder of pictures, FILE.parquet or a hub's name")
    elif HUB_NAME.fullmatch(str(name)) and not str(name).startswith("."):
        source = "hub"
    else:
        raise ValueError(f"{name}: no such folder or file, and no name of a hub's data set, which is OWNER/NAME")
    try:
        return DataConfig(source=source, path=str(name if source == "hub" else path), **keys)
    except ValidationError as error:
        raise ValueError(f"{name}: {explain(error, DataConfig, 'data.')}") from None


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
    if not any(path.suffix.lower() in PICTURES for path in folder.rglob("*")):
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
