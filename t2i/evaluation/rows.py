"""The numbers of an evaluation: rows of metrics.json and results.csv, each with all that it depends on."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from t2i.config import explain
from t2i.evaluation.jackknife import Estimate
from t2i.evaluation.protocol import Protocol, check_alike
from t2i.files import read_json, write_text

SCHEMA = 1
OWN = ("metric", "label", "value", "se", "ci95", "bias", "value_inf", "method", "cfg")
Extra = str | bool | int | float | list[int] | None


class Row(BaseModel):
    """One number. `bias` is what n samples lift it by, `value_inf` the value without it; `extra`: k, judge flag, .."""

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

    @model_validator(mode="after")
    def _names_once(self) -> Self:
        if twice := sorted(self.extra.keys() & {*OWN, *Protocol.model_fields}):
            raise ValueError(f"extra.{twice[0]}: a row has a field of that name already")
        return self

    @classmethod
    def of(cls, metric: str, estimate: Estimate, protocol: Protocol, **extra: Extra) -> Self:
        """The row of an estimate by the group jackknife; a Fréchet distance also says where it tends to."""
        bias, infinite = (estimate.bias, estimate.debiased) if metric == "fd" else (None, None)
        return cls(
            metric=metric,
            value=estimate.value,
            protocol=protocol,
            se=estimate.se,
            ci95=estimate.ci95,
            bias=bias,
            value_inf=infinite,
            method="group jackknife",
            extra=extra,
        )

    @property
    def label(self) -> str:
        """What people read: FID, FD[..], or the metric's name with its features or judge."""
        if self.metric == "fd":
            return self.protocol.label
        if self.metric == "clip_score":
            return f"CLIP score[{self.protocol.judge}]"
        return self.metric if self.protocol.features is None else f"{self.metric}[{self.protocol.named}]"

    def flat(self) -> dict[str, Any]:
        """One level of keys, as in metrics.json; `cfg` is the guidance."""
        protocol = self.protocol.model_dump(mode="json")
        own = self.model_dump(mode="json", exclude={"protocol", "extra"})
        return own | {"label": self.label, "cfg": self.protocol.guidance} | protocol | self.extra

    @classmethod
    def read(cls, values: dict[str, Any], where: str) -> Self:
        """The inverse of `flat`."""
        own = {key: values[key] for key in values if key in OWN and key not in ("label", "cfg")}
        protocol = {key: values[key] for key in values if key in Protocol.model_fields}
        extra = {key: v for key, v in values.items() if key not in OWN and key not in Protocol.model_fields}
        try:
            return cls(**own, protocol=Protocol(**protocol), extra=extra)
        except (ValidationError, TypeError) as error:
            said = explain(error, cls) if isinstance(error, ValidationError) else str(error)
            raise ValueError(f"{where}: {said}") from None


def table(rows: Sequence[Row], varies: Sequence[str]) -> dict[str, list[Row]]:
    """The rows of each metric, which may differ in `varies` alone: else a ValueError names the field."""
    check_alike([row.protocol for row in rows], varies)
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.metric, []).append(row)
    return found


def write_rows(rows: Sequence[Row], folder: str | Path, **about: Any) -> None:
    """metrics.json and results.csv in `folder`, each whole or not at all; `about` goes to the head of the former."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    flat = [row.flat() for row in rows]
    values = {"schema_version": SCHEMA, **about, "rows": flat}
    write_text(folder / "metrics.json", json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in flat for key in _cells(row)))
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(_cells(row) for row in flat)
    write_text(folder / "results.csv", text.getvalue())


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a metrics.json (or of the folder that holds it)."""
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
