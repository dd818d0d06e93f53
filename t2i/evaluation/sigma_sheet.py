"""What `t2i study sigma` leaves in its folder: numbers, a table, a labelled picture and a page."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from t2i.errors import RunFailed
from t2i.files import write_png, write_text
from t2i.report import page
from t2i.report.grid import LabelledGrid

if TYPE_CHECKING:
    from t2i.evaluation.sigma import SigmaStudy

FILES = ("metrics.json", "results.csv", "sigma.png", "report.html")
SHOWN_PROMPTS, SHOWN_COPIES, SHOWN_SIDE = 8, 2, 128
TITLE = "Algorithm 2: the variance of a step, on the same noise"


def check_new(folder: str | Path) -> None:
    """Refuse a folder that holds a study, before any work."""
    if there := [name for name in FILES if (Path(folder) / name).exists()]:
        raise ValueError(f"{folder} holds {', '.join(there)} already: give another folder")


def write(study: "SigmaStudy", folder: str | Path, settings: Mapping[str, str], command: str) -> None:
    """metrics.json, results.csv, sigma.png and report.html."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFailed(f"{folder}: cannot hold the study ({error.strerror})") from None
    write_text(folder / FILES[0], json.dumps({"rows": study.rows}, indent=1, allow_nan=False) + "\n", new=True)
    write_text(folder / FILES[1], _csv(study.rows), new=True)
    sheet, pictures = lay_out(study.prompts, study.copies, study.pictures)
    write_png(folder / FILES[2], sheet.draw(pictures), new=True)
    head, *lines = table(study.rows)
    numbers = page.section("Numbers, ± their standard error", page.table(head, lines))
    parts = [sheet.tables(pictures), numbers, page.settings(settings, command)]
    write_text(folder / FILES[3], page.page(TITLE, "", *parts), new=True)


def lay_out(
    prompts: Sequence[str], copies: int, columns: Mapping[str, Sequence[Image.Image]]
) -> tuple[LabelledGrid, list[Image.Image]]:
    """A column a way; a row a prompt and noise, the first ones of each."""
    shown = [(p, c) for p in range(min(len(prompts), SHOWN_PROMPTS)) for c in range(min(copies, SHOWN_COPIES))]
    width, height = next(iter(columns.values()))[0].size
    times = max(1, round(SHOWN_SIDE / max(width, height)))
    size = (width * times, height * times)
    rows = tuple(f"{prompts[p]} ({c + 1})" if copies > 1 else prompts[p] for p, c in shown)
    pictures = [column[p * copies + c] for p, c in shown for column in columns.values()]
    return LabelledGrid(TITLE, size, tuple(columns), rows), [p.resize(size, Image.Resampling.NEAREST) for p in pictures]


def table(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A line a metric, a column a way."""
    plain = [row for row in rows if row["way"] is not None and row["against"] is None]
    ways = list(dict.fromkeys(row["way"] for row in plain))
    lines = [["", *ways]]
    for metric in dict.fromkeys(row["metric"] for row in plain):
        cells = {row["way"]: _cell(row) for row in plain if row["metric"] == metric}
        lines.append([metric, *(cells.get(way, "-") for way in ways)])
    return lines


def _cell(row: Mapping[str, Any]) -> str:
    return row["note"] if row["value"] is None else f"{row['value']:.3f} ± {row['se']:.3f}"


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: json.dumps(v) if isinstance(v, list | tuple) else v for k, v in row.items()} for row in rows)
    return text.getvalue()
