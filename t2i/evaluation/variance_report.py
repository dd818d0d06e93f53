"""The output folder of `t2i study sigma`: numbers, a labelled grid of images, and a page."""

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from t2i.errors import ConfigError
from t2i.evaluation.rows import Row
from t2i.evaluation.variance import DATA, NO_BOUND, variance_table, way_of
from t2i.files import write_png, write_text
from t2i.report import page as html
from t2i.report.grid import LabelledGrid

FILES = ("metrics.json", "results.csv", "sigma.png", "report.html")
SHOWN_PROMPTS, SHOWN_COPIES, SHOWN_SIDE = 8, 2, 128
TITLE = "Algorithm 2: the variance of a step, on the same noise"


def check_new(folder: Path) -> None:
    """Raises ConfigError if a folder already holds results."""
    if names := [name for name in FILES if (folder / name).exists()]:
        raise ConfigError("out", f"holds {', '.join(names)} already: give another folder", str(folder))


def flat_rows(
    rows: Sequence[Row], prompts: Sequence[str], captions: Sequence[str], steps: int, seed: int
) -> list[dict[str, Any]]:
    """Returns the rows of metrics.json: statistics of samples and of data, then the bound of `captions`' images."""
    ordered = [row for row in rows if "way" in row.extra] + [row for row in rows if "way" not in row.extra]
    flat = []
    for row in ordered:
        sampled = "way" in row.extra and row.extra["way"] != DATA
        common = {"cfg": row.protocol.guidance if sampled else None, "seed": seed}
        common["prompts_sha256"] = _sha256(prompts if sampled else captions)
        number = {"metric": row.metric, "value": row.value, "se": row.se, "ci95": row.ci95, "n": row.protocol.n}
        if "way" in row.extra:
            extra = row.extra | {"steps": row.protocol.steps if sampled else None}
        else:
            extra = row.extra | {"way": way_of(row), "against": None, "steps": steps}
        flat.append(number | {"features": None} | extra | common)
    if any(row.metric == "vlb" for row in rows):
        n = next(row.protocol.n for row in rows if row.metric == "vlb")
        empty = {"value": None, "se": None, "ci95": None, "n": n, "features": None, "against": None}
        common = {"steps": None, "cfg": None, "seed": seed, "prompts_sha256": _sha256(captions)}
        flat += [{"metric": "vlb", **empty, "way": way, "note": note} | common for way, note in NO_BOUND.items()]
    return flat


def _sha256(texts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def write(
    rows: Sequence[Row],
    flat: Sequence[Mapping[str, Any]],
    grid: tuple[LabelledGrid, list[Image.Image]],
    folder: Path,
    settings: Mapping[str, str],
    command: str,
) -> None:
    """Writes metrics.json, results.csv, sigma.png and report.html."""
    write_text(folder / FILES[0], json.dumps({"rows": flat}, indent=1, allow_nan=False) + "\n", new=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in flat for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: json.dumps(v) if isinstance(v, list | tuple) else v for k, v in row.items()} for row in flat)
    write_text(folder / FILES[1], text.getvalue(), new=True)
    labels, images = grid
    write_png(folder / FILES[2], labels.draw(images), new=True)
    head, *lines = variance_table(rows)
    numbers = html.section("Numbers, ± their standard error", html.table(head, lines))
    page = html.page(TITLE, "", labels.tables(images), numbers, html.settings(settings, command))
    write_text(folder / FILES[3], page, new=True)


def image_grid(
    prompts: Sequence[str], copies: int, columns: Mapping[str, Sequence[Image.Image]]
) -> tuple[LabelledGrid, list[Image.Image]]:
    """Returns a grid with a column a variance and a row a prompt and noise, the first ones of each."""
    shown = [(p, c) for p in range(min(len(prompts), SHOWN_PROMPTS)) for c in range(min(copies, SHOWN_COPIES))]
    width, height = next(iter(columns.values()))[0].size
    times = max(1, round(SHOWN_SIDE / max(width, height)))
    size = (width * times, height * times)
    rows = tuple(f"{prompts[p]} ({c + 1})" if copies > 1 else prompts[p] for p, c in shown)
    images = [column[p * copies + c] for p, c in shown for column in columns.values()]
    grid = LabelledGrid(TITLE, size, tuple(columns), rows)
    return grid, [image.resize(size, Image.Resampling.NEAREST) for image in images]
