"""Protocols that may stand in one table, and rows in files, there and back."""

import csv
import json

import pytest

from t2i.evaluation.jackknife import Estimate
from t2i.evaluation.protocol import Protocol, check_alike, prompts_hash
from t2i.evaluation.rows import Row, read_rows, table, write_rows

BASE = Protocol(
    features="local:x", fingerprint="9f3c" * 16, resize="none", size=(64, 32), preparation="crop", reference="ab",
    n=100, n_ref=500, prompts="cd", model="m", solver="ddim", steps=25, guidance=2.0, seeds="0..99", ema=True,
)  # fmt: skip
ESTIMATE = Estimate(3.25, 0.5, (2.2, 4.3), 0.75)


def test_rows_come_back(tmp_path):
    rows = [
        Row.of("fd", ESTIMATE, BASE),
        Row.of("precision", ESTIMATE, BASE, nearest=5),
        Row(metric="vlb", value=1.5, protocol=Protocol(n=3), extra={"unit": "nats/dim", "t": [2, 3]}),
    ]
    write_rows(rows, tmp_path / "out", commit="abc")
    assert read_rows(tmp_path / "out") == rows
    values = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert values["commit"] == "abc"
    first = values["rows"][0]
    keys = {"metric", "value", "se", "ci95", "n", "features", "cfg", "label", "bias", "value_inf", "fingerprint"}
    assert keys <= first.keys()
    assert (first["cfg"], first["value_inf"], first["label"]) == (2.0, 2.5, "FD[local:x@9f3c9f3c]")
    assert values["rows"][1]["bias"] is None
    with (tmp_path / "out" / "results.csv").open() as file:
        cells = list(csv.DictReader(file))
    assert (cells[0]["ci_low"], cells[0]["size"], cells[0]["comparable_to_published"]) == ("2.2", "64x32", "False")
    assert cells[1]["nearest"] == "5" and cells[0]["nearest"] == ""
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["metrics.json", "results.csv"]


def test_only_verified_weights_are_fid():
    assert Row.of("fd", ESTIMATE, BASE.model_copy(update={"verified": True})).label == "FID"
    assert "FID" not in Row.of("fd", ESTIMATE, BASE).label
    assert Row.of("kid", ESTIMATE, BASE).label == "kid[local:x@9f3c9f3c]"
    judged = BASE.model_copy(update={"judge": "clip:y"})
    assert Row.of("clip_score", ESTIMATE, judged).label == "CLIP score[clip:y]"


@pytest.mark.parametrize(
    ("field", "value"),
    [("fingerprint", "77"), ("n", 50), ("n_ref", 10), ("reference", "zz"), ("size", (32, 32)), ("resize", "bicubic"),
     ("preparation", "none"), ("prompts", "other"), ("verified", True)],
)  # fmt: skip
def test_unlike_numbers_share_no_table(field, value):
    other = Row.of("fd", ESTIMATE, BASE.model_copy(update={field: value, "guidance": 3.0}))
    with pytest.raises(ValueError, match=f"^{field} = .* do not share a table"):
        table([Row.of("fd", ESTIMATE, BASE), other], varies=("guidance",))
    with pytest.raises(ValueError, match=f"{field} cannot vary"):
        check_alike([BASE], varies=(field,))


def test_a_sweep_stands_in_one_table():
    sweep = [Row.of(m, ESTIMATE, BASE.model_copy(update={"guidance": w})) for m in ("fd", "kid") for w in (1.0, 2.0)]
    found = table(sweep, varies=("guidance",))
    assert {metric: [row.protocol.guidance for row in rows] for metric, rows in found.items()} == {
        "fd": [1.0, 2.0],
        "kid": [1.0, 2.0],
    }
    with pytest.raises(ValueError, match=r"^guidance = 1\.0 and guidance = 2\.0"):
        table(sweep, varies=("steps",))


def test_bad_rows_and_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"extra\.steps"):
        Row(metric="x", value=1, protocol=BASE, extra={"steps": 3})
    with pytest.raises(ValueError, match="finite"):
        Row(metric="x", value=float("nan"), protocol=BASE)
    path = tmp_path / "metrics.json"
    for text, message in (
        ("{}", "schema_version = None"),
        ('{"schema_version": 1}', "no list `rows`"),
        ('{"schema_version": 1, "rows": [{"metric": "fd", "value": "much", "n": 3}]}', r"rows\[0\]"),
        ('{"schema_version": 1, "rows": [{"metric": "fd", "value": 1}]}', r"rows\[0\].*\n?.*n"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_rows(path)


def test_prompts_have_an_order_and_borders():
    assert prompts_hash(["ab", "c"]) != prompts_hash(["a", "bc"])
    assert prompts_hash(["a", "b"]) != prompts_hash(["b", "a"])
    assert prompts_hash(["a", "b"]) == prompts_hash(["a", "b"])
