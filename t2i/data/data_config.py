"""The section `data:` of a recipe, and the same for a path or a hub name."""

import re
from pathlib import Path
from typing import Any, Literal

from PIL import ImageColor
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from t2i.config import explain
from t2i.data.scenes import LEAST_PIXELS, PIXELS, ScenesSubset

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
ONLY_FOR = {
    "count": ("scenes",),
    "seed": ("scenes",),
    "subset": ("scenes",),
    "pixels": ("scenes",),
    "image_column": ("parquet", "hub"),
    "caption_column": ("parquet", "folder", "hub"),
    "path": ("parquet", "folder", "hub"),
    "revision": ("hub",),
    "file_name_captions": ("folder", "hub"),
    "kohya_folders": ("folder", "hub"),
    "instance_prompt": ("folder", "hub"),
}


class DataConfig(BaseModel):
    """The source of captioned images, and which of its rows are left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Literal["folder", "parquet", "hub", "scenes"] = "scenes"
    path: str | list[str] | None = None
    image_column: str = "image"
    caption_column: str = "text"
    revision: str | None = Field(None, description="hub: a branch, tag or commit")
    file_name_captions: bool = Field(False, description="folder: red_frog_001.png, if nothing else, is 'red frog'")
    kohya_folders: bool | None = Field(
        None, description="folder: N_name holds images N times, captioned 'name'; by default if all are in such folders"
    )
    instance_prompt: str | None = Field(None, pattern=r"\S", description="folder: caption of images without one")
    count: int = Field(4096, ge=1, le=10**8, description="scenes: their number")
    seed: int = Field(0, ge=0, description="scenes: seed")
    subset: ScenesSubset = Field("train", description="scenes: part of the grammar")
    pixels: int = Field(PIXELS, ge=LEAST_PIXELS, le=2**14, description="scenes: side of an image before it is resized")
    background: str = Field("white", description="colour under transparent images")
    max_bad_share: float = Field(0.01, ge=0, le=1, description="a larger fraction of unreadable images stops the run")
    exclude: str | None = Field(None, description="text file, one caption a line: these rows are left out")
    only: str | None = Field(None, description="text file, one caption a line: all other rows are left out")
    allow_empty_captions: bool = False

    @model_validator(mode="before")
    @classmethod
    def _null_is_the_default(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {key: value for key, value in values.items() if value is not None}

    @field_validator("background")
    @classmethod
    def _colour(cls, name: str) -> str:
        ImageColor.getrgb(name)  # raises a ValueError that names the colour
        return name

    @model_validator(mode="after")
    def _keys_fit_source(self) -> "DataConfig":
        if self.source != "scenes" and not self.path:
            raise ValueError(f"path is needed for source={self.source}: a {self.source}, or a list of them")
        for key, sources in ONLY_FOR.items():
            if self.source not in sources and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(
                    f"{key} means nothing for source={self.source} (only {', '.join(sources)}): leave it out, or set "
                    f"it to null"
                )
        return self


def config_for(name: str | Path, **keys: Any) -> DataConfig:
    """Returns the config, with `keys`, of a folder of images or parquet files, a parquet file or a hub name."""
    path = Path(name).expanduser()
    if path.is_dir():
        source = "parquet" if any(path.glob("*.parquet")) else "folder"
    elif path.suffix == ".parquet" and path.is_file():
        source = "parquet"
    elif path.exists():
        raise ValueError(f"{path}: is no parquet file; give a folder of images, FILE.parquet or OWNER/NAME on the hub")
    elif HUB_NAME.fullmatch(str(name)) and not str(name).startswith("."):
        source = "hub"
    else:
        raise ValueError(f"{name}: no such folder or file, and not the name of a hub data set, OWNER/NAME")
    try:
        return DataConfig(source=source, path=str(name if source == "hub" else path), **keys)
    except ValidationError as error:
        raise ValueError(f"{name}: {explain(error, DataConfig)}") from None
