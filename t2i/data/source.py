"""`data:` of a recipe, and the source that it names."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from PIL import ImageColor
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from t2i.data.folder import FolderSource
from t2i.data.record import Record, Report, Source, fingerprint
from t2i.data.scenes import LEAST_PIXELS, PIXELS, ScenesSource, ScenesSubset
from t2i.randomness import permutation

__all__ = ["DataConfig", "Record", "Report", "Source", "Subset", "open_source", "split"]

MIN_SPLIT = 4
ONLY_FOR = {
    "count": ("scenes",),
    "seed": ("scenes",),
    "subset": ("scenes",),
    "pixels": ("scenes",),
    "image_column": ("parquet",),
    "caption_column": ("parquet", "folder"),
    "path": ("parquet", "folder"),
}


class DataConfig(BaseModel):
    """Where the captioned pictures come from, and what is left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Literal["folder", "parquet", "scenes"] = "scenes"
    path: str | list[str] | None = None
    image_column: str = "image"
    caption_column: str = "text"
    count: int = Field(4096, ge=1, description="scenes: how many")
    seed: int = Field(0, ge=0, description="scenes: which")
    subset: ScenesSubset = Field("train", description="scenes: of which part of the grammar")
    pixels: int = Field(PIXELS, ge=LEAST_PIXELS, description="scenes: side of a picture before it is resized")
    background: str = Field("white", description="colour under transparent pictures")
    max_bad_share: float = Field(0.01, ge=0, le=1, description="unreadable pictures past this share stop the run")
    exclude: str | None = Field(None, description="text file, one caption a line: these rows are left out")
    allow_empty_captions: bool = False

    @model_validator(mode="before")
    @classmethod
    def _null_is_the_default(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if value is not None}

    @field_validator("background")
    @classmethod
    def _colour(cls, name: str) -> str:
        ImageColor.getrgb(name)  # raises a ValueError that names the colour
        return name

    @model_validator(mode="after")
    def _keys_fit_source(self) -> "DataConfig":
        if self.source != "scenes" and not self.path:
            raise ValueError(f"data.path is needed for data.source={self.source}: a {self.source}, or a list of them")
        for key, sources in ONLY_FOR.items():
            if self.source not in sources and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(
                    f"data.{key} means nothing for data.source={self.source} (only {', '.join(sources)}): "
                    f"leave it out, or set data.{key}=null"
                )
        return self


class Subset:
    """The rows `kept` of a source, in its order; `why` is the entry of the report that counts the others."""

    def __init__(self, source: Source, kept: list[int], why: Literal["excluded", "apart"] = "excluded"):
        self._source, self._kept = source, kept
        self.report = replace(source.report, **{why: getattr(source.report, why) + len(source) - len(kept)})

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, i: int) -> Record:
        return self._source[self._kept[i]]

    def texts(self) -> list[str]:
        texts = self._source.texts()
        return [texts[i] for i in self._kept]

    def fingerprint(self) -> str:
        return fingerprint(["subset", self._source.fingerprint()], map(str, self._kept))


def split(source: Source, seed: int) -> tuple[Source, Source]:
    """A source without a validation set in two: training rows, and every 20th (2 to 512 rows) set apart."""
    n = len(source)
    if n < MIN_SPLIT:
        raise ValueError(f"{n} pictures are too few to set some apart for validation: name others with validation.path")
    rows = permutation(n, seed, "validation").tolist()
    held = min(max(2, n // 20), 512)
    return Subset(source, sorted(rows[held:]), "apart"), Subset(source, sorted(rows[:held]), "apart")


def open_source(config: DataConfig, recipe_folder: str | Path | None = None) -> Source:
    """The source that `config` names; relative paths start in the current folder, then in the recipe's."""
    source = _open(config, recipe_folder)
    if config.exclude is None:
        return source
    listed = _captions_listed(_find(config.exclude, "exclude", recipe_folder))
    texts = source.texts()
    if strange := sorted(listed - set(texts)):
        raise ValueError(
            f"data.exclude = {config.exclude}: {len(strange)} lines match no caption of the data, "
            f"first {strange[0]!r}: each line is one whole caption, exactly as in the data"
        )
    kept = [i for i, text in enumerate(texts) if text not in listed]
    if not kept:
        raise ValueError(f"data.exclude = {config.exclude} leaves no row")
    return Subset(source, kept)


def _open(config: DataConfig, recipe_folder: str | Path | None) -> Source:
    if config.source == "scenes":
        return ScenesSource(config.count, config.seed, config.subset, config.pixels)
    assert config.path
    names = [config.path] if isinstance(config.path, str) else config.path
    paths = [_find(name, "path", recipe_folder) for name in names]
    if config.source == "folder":
        return FolderSource(paths, config.caption_column, config.allow_empty_captions)
    from t2i.data.parquet import ParquetSource  # pyarrow takes half a second to import

    files = [file for path in paths for file in (sorted(path.glob("*.parquet")) if path.is_dir() else [path])]
    if not files:
        raise ValueError(f"data.path = {config.path}: no *.parquet in that folder")
    return ParquetSource(files, config.image_column, config.caption_column, config.allow_empty_captions)


def _find(name: str, key: str, recipe_folder: str | Path | None) -> Path:
    places = [Path(name).expanduser(), *([Path(recipe_folder, name)] if recipe_folder is not None else [])]
    for place in places:
        if place.exists():
            return place
    tried = ", ".join(str(place.absolute()) for place in places)
    raise ValueError(f"data.{key} = {name!r} does not exist (looked at {tried}): set data.{key}=PATH")


def _captions_listed(path: Path) -> set[str]:
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return {line for line in lines if line and not line.startswith("#")}
