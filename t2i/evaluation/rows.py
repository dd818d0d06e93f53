"""The rows of an evaluation, one number each with all that it depends on, in metrics.json and results.csv."""

import csv
import io
import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from t2i.config import explain
from t2i.evaluation.jackknife import Estimate, Replicates
from t2i.evaluation.protocol import Protocol, check_alike
from t2i.files import read_json, write_text

SCHEMA = 1
FIELDS = ("metric", "label", "value", "se", "ci95", "bias", "value_inf", "method", "cfg")
Extra = str | bool | int | float | list[int] | None


class Row(BaseModel):
    """One number. `bias` is what n samples add to it, `value_inf` the value without it; `extra`: k, judge flag, ..

    `replicates` are in memory only: paired differences are made of them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    metric: str
    value: float
    protocol: Protocol
    se: float | None = None
    ci95: tuple[float, float] | None = None
    bias: float | None = None
    value_inf: float | None = None
    method: str | None = None
    extra: dict[str, Extra] = {}
    replicates: Replicates | None = Field(default=None, exclude=True, repr=False)

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        if twice := sorted(self.extra.keys() & {*FIELDS, *Protocol.model_fields}):
            raise ValueError(f"extra.{twice[0]}: a row already has a field of that name")
        return self

    @classmethod
    def of(cls, metric: str, statistic: Estimate | Replicates, protocol: Protocol, **extra: Extra) -> Self:
        """Returns the row of a statistic by the group jackknife; a Fréchet distance also has its limit for n → ∞."""
        replicates = statistic if isinstance(statistic, Replicates) else None
        estimate = statistic.estimate() if isinstance(statistic, Replicates) else statistic
        return cls(
            metric=metric,
            value=estimate.value,
            protocol=protocol,
            se=estimate.se,
            ci95=estimate.ci95,
            bias=estimate.bias if metric == "fd" else None,
            value_inf=estimate.debiased if metric == "fd" else None,
            method="group jackknife",
            extra=extra,
            replicates=replicates,
        )

    def minus(self, other: "Row", **extra: Extra) -> "Row":
        """Returns the row of the paired difference from a row of the same prompts and noise."""
        assert self.replicates is not None and other.replicates is not None
        return Row.of(f"{self.metric}_difference", self.replicates.minus(other.replicates), self.protocol, **extra)

    @property
    def label(self) -> str:
        """The name in tables and figures: FID, FD[..], or the metric's name with its features or judge."""
        if self.metric == "fd":
            return self.protocol.label
        if self.metric == "clip_score":
            return f"CLIP score[{self.protocol.judge}]"
        return self.metric if self.protocol.features is None else f"{self.metric}[{self.protocol.named}]"

    def flat(self) -> dict[str, Any]:
        """Returns the row as one level of keys, as in metrics.json; `cfg` is the guidance."""
        protocol = self.protocol.model_dump(mode="json")
        fields = self.model_dump(mode="json", exclude={"protocol", "extra"})
        return fields | {"label": self.label, "cfg": self.protocol.guidance} | protocol | self.extra

    @classmethod
    def read(cls, values: dict[str, Any], where: str) -> Self:
        """Inverts `flat`; raises ValueError that names `where` and the key."""
        fields = {key: values[key] for key in values if key in FIELDS and key not in ("label", "cfg")}
        protocol = {key: values[key] for key in values if key in Protocol.model_fields}
        extra = {key: v for key, v in values.items() if key not in FIELDS and key not in Protocol.model_fields}
        try:
            return cls(**fields, protocol=Protocol(**protocol), extra=extra)
        except (ValidationError, TypeError) as error:
            problem = explain(error, cls) if isinstance(error, ValidationError) else str(error)
            raise ValueError(f"{where}: {problem}") from None


def differences(rows: Sequence[Row], **extra: Extra) -> list[Row]:
    """Returns the paired differences of every two guidances, metric by metric, of rows that have replicates."""
    guidances = list(dict.fromkeys(row.protocol.guidance for row in rows))
    by_key = {(row.metric, row.protocol.guidance): row for row in rows}
    return [
        row.minus(by_key[row.metric, a], than_cfg=a, **extra)
        for a, b in combinations(guidances, 2)
        for row in rows
        if row.protocol.guidance == b
    ]


def table(rows: Sequence[Row], varies: Sequence[str]) -> dict[str, list[Row]]:
    """Groups rows by metric; raises ValueError that names the field where they differ in more than `varies`."""
    check_alike([row.protocol for row in rows], varies)
    columns: dict[str, list[Row]] = {}
    for row in rows:
        columns.setdefault(row.metric, []).append(row)
    return columns


def write_rows(rows: Sequence[Row], folder: str | Path, **head: Any) -> None:
    """Writes metrics.json and results.csv in `folder`, each atomically; `head` goes to the top of metrics.json."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    flat = [row.flat() for row in rows]
    values = {"schema_version": SCHEMA, **head, "rows": flat}
    write_text(folder / "metrics.json", json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in flat for key in _cells(row)))
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(_cells(row) for row in flat)
    write_text(folder / "results.csv", text.getvalue())


def read_rows(path: str | Path) -> list[Row]:
    """Reads the rows of a metrics.json, or of the folder that holds it."""
    path = Path(path)
    path = path / "metrics.json" if path.is_dir() else path
    values = read_json(path)
    if values.get("schema_version") != SCHEMA:
        raise ValueError(f"{path}: schema_version = {values.get('schema_version')}, this version reads {SCHEMA}")
    if not isinstance(rows := values.get("rows"), list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: has no list `rows`")
    return [Row.read(row, f"{path}: rows[{i}]") for i, row in enumerate(rows)]


def _cells(row: dict[str, Any]) -> dict[str, Any]:
    low, high = row["ci95"] or (None, None)
    cells = {key: value for key, value in row.items() if key not in ("ci95", "size")}
    size = None if row["size"] is None else "x".join(map(str, row["size"]))
    compares = row["metric"] == "fd" and row["verified"]
    return cells | {"ci_low": low, "ci_high": high, "size": size, "comparable_to_published": compares}
