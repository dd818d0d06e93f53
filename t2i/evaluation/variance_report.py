"""The output folder of `t2i study sigma`: numbers, a labelled grid of images, and a page."""

import csv
import hashlib
import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from t2i.data.transforms import to_float, to_pixels
from t2i.errors import ConfigError
from t2i.evaluation.evaluate import evaluate
from t2i.evaluation.evaluation import Evaluation
from t2i.evaluation.features import LatentFeatures
from t2i.evaluation.generated import ModelSamples
from t2i.evaluation.reference import ReferenceImages
from t2i.evaluation.report import enlarged
from t2i.evaluation.rows import Row
from t2i.evaluation.store import Store
from t2i.evaluation.variance import DATA, NO_BOUND, spread, variance_table, way_of
from t2i.files import check_writable, write_png, write_text
from t2i.report import page as html
from t2i.report.grid import LabelledGrid

FILES = ("metrics.json", "results.csv", "sigma.png", "report.html")
SHOWN_PROMPTS, SHOWN_COPIES = 8, 2
TITLE = "Algorithm 2: the variance of a step, on the same noise"


def compare_variances(
    subject: ModelSamples,
    images: ReferenceImages | None,
    prompts: Sequence[str],
    captions: int,
    count: int,
    judged: int,
    draws: int,
    out: Path,
    command: str,
) -> list[list[str]]:
    """Samples `count` images a prompt with each variance, bounds `judged` images, and writes `out`; returns a table.

    Without `prompts` these are `captions` captions of the images, evenly spread.
    """
    rows = [] if images is None or prompts else spread(images, captions)
    prompts = prompts or [images.captions[i] for i in rows if images]
    subject.set_prompts([text for text in prompts for _ in range(count)])
    data = None if images is None else images.select(spread(images, max(judged, 3)))
    with tempfile.TemporaryDirectory() as cache:
        evaluation = Evaluation(
            data,
            ("vlb",) if images and judged else (),
            LatentFeatures(subject.pipeline.autoencoder, subject.size),
            None,
            Store(cache),
            subject.sampling.batch,
            baselines=False,
            shuffled=False,
            shown=0,
            bound_images=data,
            draws=draws,
            variance=True,
        )
        evaluation.check(subject)
        check_writable(out)
        results = evaluate(subject, evaluation)
    assert results is not None
    T, seed, columns = subject.pipeline.generator.schedule.T, subject.sampling.seed, evaluation.columns
    if images is not None and rows:
        columns = {DATA: [image for image in to_pixels(to_float(images.read(rows))) for _ in range(count)]} | columns
    steps, guidance = str(subject.sampling.steps or T), str(subject.guidances[0])
    settings = {"model": subject.name, "steps": steps, "guidance": guidance, "seed": str(seed)}
    shown = [(p, c) for p in range(min(len(prompts), SHOWN_PROMPTS)) for c in range(min(count, SHOWN_COPIES))]
    labels = [f"{prompts[p]} ({c + 1})" if count > 1 else prompts[p] for p, c in shown]
    grid = enlarged(TITLE, columns, labels, [p * count + c for p, c in shown])
    flat = flat_rows(results, prompts, data.captions if data else [], T, seed)
    write(results, flat, grid, out, settings, command)
    return variance_table(results)


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
