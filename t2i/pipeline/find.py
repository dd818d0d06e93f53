"""Finds models and files by name: the shipped model, and what an image was made with. Torch is not needed."""

import glob
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from t2i.files import sha256
from t2i.pipeline.settings import LONGEST_NAME, SETTINGS

SHIPPED = Path("checkpoints/glyphs")


@dataclass(frozen=True)
class Reading:
    """Options of reading a model: which files of a folder or repository, and what a single file leaves out."""

    variant: str | None = None
    revision: str | None = None
    config: Path | None = None
    prediction: str | None = None


def find_model(model: Path | None) -> Path:
    """Returns the given model; otherwise the shipped one, in the current folder or next to the package."""
    if model is not None:
        return model
    import t2i

    for place in (SHIPPED, Path(t2i.__file__).parent.parent / SHIPPED):
        if place.is_dir():
            return place
    raise ValueError(f"no model: {SHIPPED} is neither here nor next to the package; give one with -m FOLDER")


def local_model(name: str) -> Path | None:
    """Returns the model of that name in the current folder; an image can give names only, no paths."""
    bare = Path(name).name == name not in ("", ".", "..") and len(name.encode()) <= LONGEST_NAME
    return Path(name) if bare and Path(name).exists() else None


def find_file(
    image: Path, setting: str, name: str, digest: str, files: Callable[[Path], list[Path]] | None = None
) -> Path:
    """Returns a file that an image was made with: in the current folder or beside the image, identified by its hash.

    `files` returns the files of a place that are hashed; by default those of `weights_of`.
    """
    for place in (Path(name), image.parent / name, *sorted(Path().glob(f"*/{glob.escape(name)}"))):
        if (place.is_file() or place.is_dir()) and sha256(*(files or weights_of)(place)) == digest:
            return place
    raise ValueError(
        f"{image}: was made with {name!r} (sha256 {digest[:12]}...), which is neither here, nor in a "
        f"folder here, nor beside it; give {SETTINGS[setting].flag} FILE"
    )


def weights_of(path: Path) -> list[Path]:
    """Returns the files whose hash identifies a component: itself, or its weights if it is a folder."""
    if not path.is_dir():
        return [path]
    from t2i.component import Component, weight_files

    return list(weight_files(path, Component.weights_name).files)
