"""Files that are there whole or not at all: that they are there says that a stage is done."""

from pathlib import Path
from typing import Any

from torch import Tensor

from t2i.component import save_weights, sync_files, write_json

REPORT = "report"  # the folder in a study's that holds its rows, pictures and page
REAL, VAE, SHUFFLED = "real", "vae", "shuffled"
ANCHORS = {
    REAL: "the test's own pictures",
    VAE: "the same through the autoencoder: no generator of its latents does better",
    SHUFFLED: "the same with each other's captions: drawing perfectly without reading",
}


def sheet_name(run: str, guidance: float) -> str:
    """The file of a run's sample sheet."""
    return f"{run}-cfg{guidance:g}.png"


def save_json(value: dict[str, Any], path: Path) -> None:
    """Write JSON."""
    partial = _partial(path)
    write_json(partial, value)
    _finish(partial, path)


def save_text(text: str, path: Path) -> None:
    """Write text."""
    partial = _partial(path)
    partial.write_text(text, encoding="utf8")
    _finish(partial, path)


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write safetensors."""
    partial = _partial(path)
    save_weights(tensors, partial)
    _finish(partial, path)


def _partial(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.partial")


def _finish(partial: Path, path: Path) -> None:
    sync_files([partial])
    partial.replace(path)
