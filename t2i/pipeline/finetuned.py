"""What a fine-tuning leaves in its run's folder: a pointer to the model, and the files to put on it."""

import os
from pathlib import Path
from typing import NamedTuple

from t2i.component import ComponentConfig
from t2i.files import write_json
from t2i.pipeline.folder import INDEX

POINTER, MODEL, EMBEDDINGS_FILE = "finetuned.json", "model", "learned_embeds.safetensors"


class Pointer(ComponentConfig):
    """`finetuned.json`: a model's folder, file or hub name, and files beside the pointer."""

    schema_version: int = 1
    model: str
    loras: tuple[str, ...] = ()
    embeddings: tuple[str, ...] = ()


class Finetuned(NamedTuple):
    """A pointer with its places found."""

    model: Path
    loras: list[Path]
    embeddings: list[Path]


def write_pointer(
    folder: Path, model: str | Path, loras: list[str] | None = None, embeddings: list[str] | None = None
) -> None:
    """Point from a run's folder to a model; one that is here by the way there, so that both can be moved together."""
    place = os.path.relpath(Path(model).resolve(), folder.resolve()) if Path(model).exists() else str(model)
    pointer = Pointer(model=place, loras=tuple(loras or ()), embeddings=tuple(embeddings or ()))
    write_json(folder / POINTER, pointer.model_dump(mode="json"))


def read_pointer(folder: Path) -> Finetuned | None:
    """What a run's folder points to; None where `folder` is none."""
    if not (folder / POINTER).is_file() or (folder / INDEX).is_file():
        return None
    found = Pointer.read(folder / POINTER)
    beside = Path(os.path.normpath(folder / found.model))
    if not beside.exists() and found.model.startswith("."):
        files = "".join(f" --lora {folder / name}" for name in found.loras)
        files += "".join(f" --embedding {folder / name}" for name in found.embeddings)
        raise ValueError(
            f"{folder / POINTER}: the model {beside} that was fine-tuned is not there: give it with -m MODEL{files}"
        )
    model = beside if beside.exists() else Path(found.model)
    return Finetuned(model, [folder / name for name in found.loras], [folder / name for name in found.embeddings])
