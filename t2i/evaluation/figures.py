"""The figures of an evaluation: metrics over guidance, distance against alignment, the bound by noise level."""

from collections.abc import Mapping, Sequence
from typing import Any

from t2i.evaluation.rows import Row
from t2i.report.figures import COLOURS, Drawing, Theme, canvas

TITLES = {
    "fd": "bias removed",
    "kid": "KID",
    "cmmd": "CMMD",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "clip_score": "CLIP score",
    "skill_exact": "whole scene right",
    "skill_binding": "binding",
}
BASELINES = {"real": "real images", "vae": "through the autoencoder", "shuffled captions": "shuffled captions"}
ALIGNMENT = ("skill_binding", "skill_exact", "clip_score")  # the first that was measured is compared with the distance
NOT_COMPARABLE = "Not comparable with published FID"


def debiased(row: Row) -> float:
    """Returns a row's value; of a Fréchet distance without the bias that the image counts of both sides add."""
    return row.value if row.value_inf is None else row.value_inf


def curves(rows: Sequence[Row], theme: Theme = "light") -> Drawing | None:
    """Draws each metric over guidance with its 95% interval and its baselines; None for a single guidance."""
    by_metric = sweep(rows)
    if not by_metric:
        return None
    columns = min(3, len(by_metric))
    with canvas(columns, -(-len(by_metric) // columns), width=3.6, height=2.9, theme=theme) as drawing:
        for axis in drawing.axes.flat[len(by_metric) :]:
            axis.set_axis_off()
        for axis, (metric, points) in zip(drawing.axes.flat, by_metric.items(), strict=False):
            _curve(axis, metric, points, baselines_of(rows, metric), theme)
        return drawing.draw(_note(rows))


def _curve(axis: Any, metric: str, points: list[Row], baselines: Mapping[str, float], theme: Theme) -> None:
    colours = COLOURS[theme]
    x, y = [row.protocol.guidance for row in points], [debiased(row) for row in points]
    axis.errorbar(x, y, _half(points), marker="o", markersize=4, color=colours.first, capsize=2)
    if metric == "fd":
        label = f"at n = {points[0].protocol.n}"
        axis.plot(x, [row.value for row in points], ":", color=colours.first, linewidth=1, label=label)
    for i, (name, value) in enumerate(baselines.items()):
        style = {"color": colours.second, "linewidth": 1, "linestyle": ("-", "--", ":")[i % 3]}
        axis.axhline(value, label=BASELINES[name], **style)
    label = points[0].protocol.label if metric == "fd" else ""
    axis.set_title(", ".join(filter(None, (label, TITLES.get(metric, metric.replace("_", " "))))), fontsize=9)
    axis.set_xlabel("guidance", fontsize=8)
    _finish(axis)


def trade(rows: Sequence[Row], theme: Theme = "light") -> Drawing | None:
    """Draws the distance against the alignment along the guidance; None without both, or for a single guidance."""
    by_metric, colours = sweep(rows), COLOURS[theme]
    alignment = next((metric for metric in ALIGNMENT if metric in by_metric), None)
    if alignment is None or "fd" not in by_metric:
        return None
    right, up = by_metric[alignment], by_metric["fd"]
    with canvas(width=5.4, height=4.2, theme=theme) as drawing:
        axis = drawing.axes[0][0]
        x, y = [row.value for row in right], [debiased(row) for row in up]
        axis.errorbar(x, y, _half(up), _half(right), marker="o", markersize=4, color=colours.first, capsize=2)
        for row, point in zip(right, zip(x, y, strict=True), strict=True):
            where = {"xytext": (5, 5), "textcoords": "offset points", "fontsize": 8}
            axis.annotate(f"{row.protocol.guidance:g}", point, color=colours.ink, **where)
        for name, value in baselines_of(rows, "fd").items():
            style = {"color": colours.second, "linewidth": 1, "linestyle": "--" if name == "vae" else "-"}
            axis.axhline(value, label=BASELINES[name], **style)
        label = right[0].label if alignment == "clip_score" else TITLES[alignment]
        axis.set_xlabel(f"{label} (right is better)", fontsize=8)
        axis.set_ylabel(f"{up[0].label}, bias removed (down is better)", fontsize=8)
        _finish(axis)
        return drawing.draw(_note(rows))


def bound_curve(rows: Sequence[Row], theme: Theme = "light") -> Drawing | None:
    """Draws the contribution of each noise level to the bound, and the information in captions there."""
    optimal = [row for row in rows if row.extra.get("variance") == "optimal"]
    bound = [r for r in optimal if r.metric == "vlb_t" and r.extra.get("conditioning") == "caption"]
    info = [r for r in optimal if r.metric == "caption_info_t"]
    if not (bound and info):
        return None
    titles = ("bound by t, nats a dimension", "information in captions by t, bits an image")
    with canvas(2, width=4.2, height=3.2, theme=theme) as drawing:
        for axis, points, title in zip(drawing.axes[0], (bound, info), titles, strict=True):
            spans = [row.extra["t"] for row in points]
            names = [f"{a}" if a == b else f"{a}-{b}" for a, b in spans]  # pyright: ignore
            axis.bar(names, [row.value for row in points], yerr=_half(points), color=COLOURS[theme].first, capsize=2)
            axis.set_title(title, fontsize=9)
            axis.tick_params(labelsize=7)
            axis.tick_params(axis="x", rotation=70)
        return drawing.draw()


def sweep(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Returns the rows of each metric over at least two guidances, ascending."""
    by_metric: dict[str, list[Row]] = {}
    for row in rows:
        if is_plain(row) and row.metric in TITLES and row.protocol.guidance is not None:
            by_metric.setdefault(row.metric, []).append(row)
    ordered = {m: sorted(part, key=lambda r: r.protocol.guidance or 0) for m, part in by_metric.items()}
    return {m: part for m, part in ordered.items() if len(part) > 1}


def is_plain(row: Row) -> bool:
    """Returns True for a number of the subject itself: no baseline, and no difference."""
    return "anchor" not in row.extra and "than_cfg" not in row.extra


def baselines_of(rows: Sequence[Row], metric: str) -> dict[str, float]:
    """Returns the value of each baseline that figures show as a line; the mean over guidances."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if row.metric == metric and (name := row.extra.get("anchor")) in BASELINES:
            values.setdefault(str(name), []).append(debiased(row))
    return {name: sum(each) / len(each) for name, each in values.items()}


def _half(rows: Sequence[Row]) -> list[float]:
    """Returns half the width of each 95% interval."""
    return [(row.ci95[1] - row.ci95[0]) / 2 if row.ci95 else 0 for row in rows]


def _finish(axis: Any) -> None:
    axis.tick_params(labelsize=8)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=7, frameon=False)


def _note(rows: Sequence[Row]) -> str:
    verified = any(row.metric == "fd" and row.protocol.verified for row in rows)
    return "bars: 95%" if verified else f"{NOT_COMPARABLE}; bars: 95%"
