"""The result of a fine-tuning in its run's folder: a pointer to the base model, and the learnt files."""

import os
from pathlib import Path
from typing import NamedTuple

from t2i.component import ComponentConfig
from t2i.files import write_json
from t2i.pipeline.folder import INDEX

POINTER, MODEL, EMBEDDINGS_FILE = "finetuned.json", "model", "learned_embeds.safetensors"


class Pointer(ComponentConfig):
    """`finetuned.json`: the base model's folder, file or hub name, and files beside the pointer."""

    schema_version: int = 1
    model: str
    loras: tuple[str, ...] = ()
    embeddings: tuple[str, ...] = ()


class Finetuned(NamedTuple):
    """A pointer with its paths resolved."""

    model: Path
    loras: list[Path]
    embeddings: list[Path]


def write_pointer(
    folder: Path, model: str | Path, loras: list[str] | None = None, embeddings: list[str] | None = None
) -> None:
    """Writes a run's pointer to its base model; a local one by relative path, so that both can be moved together."""
    place = os.path.relpath(Path(model).resolve(), folder.resolve()) if Path(model).exists() else str(model)
    pointer = Pointer(model=place, loras=tuple(loras or ()), embeddings=tuple(embeddings or ()))
    write_json(folder / POINTER, pointer.model_dump(mode="json"))


def read_pointer(folder: Path) -> Finetuned | None:
    """Returns the target of a run's pointer; None if `folder` is not a fine-tuned run."""
    if not (folder / POINTER).is_file() or (folder / INDEX).is_file():
        return None
    pointer = Pointer.read(folder / POINTER)
    for name in (*pointer.loras, *pointer.embeddings):
        if Path(name).name != name:
            raise ValueError(f"{folder / POINTER}: {name!r} is not the name of a file beside it")
    beside = Path(os.path.normpath(folder / pointer.model))
    if beside.resolve() == folder.resolve():
        raise ValueError(f"{folder / POINTER}: its model is the run itself: give the model with -m MODEL")
    if not beside.exists() and pointer.model.startswith("."):
        files = "".join(f" --lora {folder / name}" for name in pointer.loras)
        files += "".join(f" --embedding {folder / name}" for name in pointer.embeddings)
        raise ValueError(
            f"{folder / POINTER}: the model {beside} that was fine-tuned does not exist: give it with -m MODEL{files}"
        )
    model = beside if beside.exists() else Path(pointer.model)
    return Finetuned(model, [folder / name for name in pointer.loras], [folder / name for name in pointer.embeddings])
