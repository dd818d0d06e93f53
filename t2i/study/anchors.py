"""Floors and ceilings, which need no generator: real pictures, the autoencoder's, real ones with others' captions."""

from pathlib import Path

import torch

from t2i.evaluation.anchors import shuffled
from t2i.evaluation.rows import Extra, Row, write_rows
from t2i.evaluation.scene_parser import reconstructed
from t2i.files import read_json
from t2i.study.files import REAL, SHUFFLED, VAE
from t2i.study.lab import Lab
from t2i.study.measure import commit, measured, rows_of


def folder_of(lab: Lab) -> Path:
    """Where floors and ceilings lie."""
    return lab.recipe.folder / f"anchors-{lab.key}"


def is_anchored(lab: Lab) -> bool:
    """Whether they are there."""
    path = folder_of(lab) / "metrics.json"
    return path.is_file() and "rows" in read_json(path)


def anchor(lab: Lab) -> None:
    """Measure the test's pictures as if a run had drawn them."""
    only = [lab.open(config, name) for name, config in lab.ask.only.items()]
    real = torch.cat([lab.pixels(lab.test, lab.rows), *(lab.pixels(p, p.usable.tolist()) for p in only)])
    captions, count = [text for _, text in lab.prompts], len(lab.captions)
    parts = [reconstructed(lab.vae, part).cpu() for part in real.split(lab.ask.batch)]
    shown = {
        REAL: (real, captions),
        VAE: (torch.cat(parts), captions),
        SHUFFLED: (real[:count], shuffled(captions[:count])),
    }
    rows: list[Row] = []
    for name, (pixels, wanted) in shown.items():
        about: dict[str, Extra] = {"run": name, "anchor": name, "commit": commit()}
        rows += rows_of(lab, measured(lab, pixels, wanted), {}, about)
    write_rows(rows, folder_of(lab))
