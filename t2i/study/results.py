"""A study's results as small files to keep in a repository: results.csv, and study.json with what rows share."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2i.evaluation.protocol import Protocol
from t2i.evaluation.rows import Row
from t2i.files import read_json, write_text

SCHEMA = 1
REPORT = "report"  # the folder of a study that holds its results, sheets and page
REAL, VAE, SHUFFLED = "real", "vae", "shuffled"
BASELINES = {
    REAL: "the test's own images",
    VAE: "the same through the autoencoder, a bound for every generator of its latents",
    SHUFFLED: "the same with each other's captions: perfect images that ignore their prompts",
}
COLUMNS = ("run", "metric", "cfg", "value", "se", "ci_low", "ci_high", "n", "hits", "protocol")
RUN_FIELDS = {"model", "text_encoder", "seeds", "guidance", "n"}  # of a protocol; all others are shared


@dataclass(frozen=True)
class Results:
    """Everything that a report is made of; a row's `extra` has its `run`, `line` in results.csv, and `protocol`."""

    rows: tuple[Row, ...]
    protocols: list[dict[str, Any]]
    runs: dict[str, dict[str, Any]]  # settings, cost and hashes of each
    study: dict[str, Any]

    def find(self, run: str, metric: str, cfg: float | None = None) -> Row | None:
        """Returns the row of a run and metric, at a guidance if it has one."""
        key = (run, metric, cfg)
        return next((r for r in self.rows if (r.extra["run"], r.metric, r.protocol.guidance) == key), None)


def sheet_name(run: str, guidance: float) -> str:
    """Returns the file name of a run's sheet of samples."""
    return f"{run}-cfg{guidance:g}.png"


def write_results(rows: Sequence[Row], runs: dict[str, dict[str, Any]], study: dict[str, Any], folder: Path) -> None:
    """Writes results.csv and study.json, each atomically."""
    protocols: list[dict[str, Any]] = []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    runs = {name: dict(about) for name, about in runs.items()}
    for row in rows:
        name = str(row.extra["run"])
        shared = row.protocol.model_dump(mode="json", exclude=RUN_FIELDS, exclude_none=True)
        if shared not in protocols:
            protocols.append(shared)
        about = runs.setdefault(name, {"anchor": row.extra.get("anchor"), "commit": row.extra.get("commit")})
        about |= {key: value for key in ("model", "text_encoder", "seeds") if (value := getattr(row.protocol, key))}
        low, high = row.ci95 or (None, None)
        cells = [name, row.metric, row.protocol.guidance, row.value, row.se, low, high, row.protocol.n]
        writer.writerow([_cell(c) for c in (*cells, row.extra.get("hits"), protocols.index(shared))])
    write_text(folder / "results.csv", text.getvalue())
    head = {"schema_version": SCHEMA, "protocols": protocols, "runs": runs, "study": study}
    write_text(folder / "study.json", _lines(head, 2) + "\n")


def _lines(value: Any, depth: int) -> str:
    """Formats JSON with a line for each entry of the outermost mappings: a run is one line."""
    if depth and isinstance(value, dict):
        entries = (f"{json.dumps(str(key))}: {_lines(entry, depth - 1)}" for key, entry in value.items())
        return "{\n" + ",\n".join(entries) + "\n}"
    return json.dumps(value, allow_nan=False)


def _cell(value: Any) -> Any:
    return "" if value is None else f"{value:.7g}" if isinstance(value, float) else value


def read_results(folder: str | Path) -> Results:
    """Reads the results in a folder; raises ValueError for one metric under two protocols."""
    folder = Path(folder)
    head = read_json(folder / "study.json")
    if head.get("schema_version") != SCHEMA:
        raise ValueError(f"{folder / 'study.json'}: schema_version = {head.get('schema_version')}, not {SCHEMA}")
    path = folder / "results.csv"
    if not path.is_file():
        raise ValueError(f"{path}: no such file: a study writes it beside study.json")
    try:
        table = csv.DictReader(io.StringIO(path.read_text(encoding="utf8")))
        if missing := set(COLUMNS) - set(table.fieldnames or ()):
            raise ValueError(f"no column {min(missing)}")
        rows = tuple(_row(k, line, head["protocols"]) for k, line in enumerate(table, 1))
        order = {name: k for k, name in enumerate(head["study"]["planned"])}
        runs = dict(sorted(head["runs"].items(), key=lambda item: order.get(item[0], len(order))))
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder}: study.json and results.csv do not belong together ({error!r})") from None
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{path}: not a table of a study's rows ({error})") from None
    _check_alike(rows, path)
    if missing := sorted({str(row.extra["run"]) for row in rows} - runs.keys()):
        raise ValueError(f"{folder}: study.json lacks the run {missing[0]} of results.csv")
    _check_steps(runs, folder)
    return Results(rows, head["protocols"], runs, head["study"])


def _check_steps(runs: dict[str, dict[str, Any]], folder: Path) -> None:
    """Raises for runs of unlike lengths, which must not share a figure."""
    trained = {about["steps"]: name for name, about in runs.items() if "steps" in about}
    if len(trained) > 1:
        (a, one), (b, other) = list(trained.items())[:2]
        raise ValueError(f"{folder}: {one} was trained for {a} steps, {other} for {b}: they do not share a figure")


def _row(k: int, line: dict[str, str], protocols: list[dict[str, Any]]) -> Row:
    def number(name: str) -> float | None:
        return float(line[name]) if line[name] else None

    index, low, high = int(line["protocol"]), number("ci_low"), number("ci_high")
    return Row(
        metric=line["metric"],
        value=float(line["value"]),
        protocol=Protocol(**protocols[index], n=int(line["n"]), guidance=number("cfg")),
        se=number("se"),
        ci95=None if low is None or high is None else (low, high),
        extra={"run": line["run"], "line": k, "protocol": index},
    )


def _check_alike(rows: Sequence[Row], path: Path) -> None:
    """Raises for rows of unlike protocols, which must not share a figure; baselines have no solver."""
    first: dict[tuple[str, bool], Protocol] = {}
    for row in rows:
        other = first.setdefault((row.metric, row.protocol.guidance is None), row.protocol)
        for name in sorted(Protocol.model_fields.keys() - RUN_FIELDS):
            if (ours := getattr(row.protocol, name)) != (theirs := getattr(other, name)):
                raise ValueError(
                    f"{path}: {row.metric} of {row.extra['run']} has {name} = {ours}, others {theirs}: they do not "
                    "share a figure"
                )
