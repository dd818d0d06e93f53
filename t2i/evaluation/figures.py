"""The figures of an evaluation: curves over guidance, the trade of distance for alignment, samples on one noise."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from t2i.evaluation.rows import Row

TITLES = {
    "fd": "bias taken out",
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
ANCHORS = {"real": "real pictures", "vae": "through the autoencoder", "shuffled captions": "shuffled captions"}
ALIGNMENT = ("skill_binding", "skill_exact", "clip_score")  # the first that was measured is the other axis
INK = {"light": ("white", "#1b1f24", "#0b63b0", "#b3541e"), "dark": ("#16191d", "#e6e8ea", "#6db3f2", "#f0a070")}
NOT_COMPARABLE = "Not comparable with published FID"


def shown(row: Row) -> float:
    """What a figure shows of a row: a distance without what the numbers of pictures of both sides add to it."""
    return row.value if row.value_inf is None else row.value_inf


def curves(rows: Sequence[Row], theme: str = "light") -> Image.Image | None:
    """Every metric over guidance with its 95% interval and its anchors; None for one guidance."""
    by_metric = sweep(rows)
    if not by_metric:
        return None
    plt = _pyplot()
    metrics = list(by_metric)
    columns = min(3, len(metrics))
    lines = -(-len(metrics) // columns)
    with plt.rc_context(_style(theme)):
        figure, axes = plt.subplots(lines, columns, figsize=(3.6 * columns, 2.9 * lines), squeeze=False)
        for axis in axes.flat[len(metrics) :]:
            axis.set_axis_off()
        for axis, metric in zip(axes.flat, metrics, strict=False):
            _curve(axis, metric, by_metric[metric], anchors_of(rows, metric), theme)
        return _finish(plt, figure, rows)


def _curve(axis: Any, metric: str, points: list[Row], lines: Mapping[str, float], theme: str) -> None:
    _, _, line, other = INK[theme]
    x, y = [row.protocol.guidance for row in points], [shown(row) for row in points]
    half = [(row.ci95[1] - row.ci95[0]) / 2 if row.ci95 else 0 for row in points]
    axis.errorbar(x, y, half, marker="o", markersize=4, color=line, capsize=2)
    if metric == "fd":
        axis.plot(
            x, [row.value for row in points], ":", color=line, linewidth=1, label=f"at n = {points[0].protocol.n}"
        )
    for i, (name, value) in enumerate(lines.items()):
        axis.axhline(value, color=other, linewidth=1, linestyle=("-", "--", ":")[i % 3], label=ANCHORS[name])
    label = points[0].protocol.label if metric == "fd" else ""
    axis.set_title(", ".join(filter(None, (label, TITLES.get(metric, metric.replace("_", " "))))), fontsize=9)
    axis.set_xlabel("guidance", fontsize=8)
    axis.tick_params(labelsize=8)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=7, frameon=False)


def trade(rows: Sequence[Row], theme: str = "light") -> Image.Image | None:
    """The distance against the alignment along the guidance; None without both, or for one guidance."""
    by_metric = sweep(rows)
    aligned = next((metric for metric in ALIGNMENT if metric in by_metric), None)
    if aligned is None or "fd" not in by_metric:
        return None
    plt = _pyplot()
    with plt.rc_context(_style(theme)):
        _, ink, line, other = INK[theme]
        figure, axis = plt.subplots(figsize=(5.4, 4.2))
        pairs = list(zip(by_metric[aligned], by_metric["fd"], strict=True))
        across = [[(r.ci95[1] - r.ci95[0]) / 2 if r.ci95 else 0 for r in part] for part in zip(*pairs, strict=True)]
        x, y = [a.value for a, _ in pairs], [shown(b) for _, b in pairs]
        axis.errorbar(x, y, across[1], across[0], marker="o", markersize=4, color=line, capsize=2)
        for (a, b), right in zip(pairs, x, strict=True):
            text = f"{a.protocol.guidance:g}"
            axis.annotate(text, (right, shown(b)), xytext=(5, 5), textcoords="offset points", color=ink, fontsize=8)
        for name, value in anchors_of(rows, "fd").items():
            axis.axhline(value, color=other, linewidth=1, linestyle="--" if name == "vae" else "-", label=ANCHORS[name])
        named = by_metric[aligned][0].label
        axis.set_xlabel(f"{TITLES[aligned] if aligned != 'clip_score' else named} (right is better)", fontsize=8)
        axis.set_ylabel(f"{by_metric['fd'][0].label}, bias taken out (down is better)", fontsize=8)
        axis.tick_params(labelsize=8)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=7, frameon=False)
        return _finish(plt, figure, rows)


def bound_curve(rows: Sequence[Row], theme: str = "light") -> Image.Image | None:
    """What every noise level adds to the bound, and what the captions tell there."""
    found = {
        metric: [r for r in rows if r.metric == metric and r.extra.get("variance") == "optimal"]
        for metric in ("vlb_t", "caption_info_t")
    }
    found["vlb_t"] = [r for r in found["vlb_t"] if r.extra.get("conditioning") == "caption"]
    if not all(found.values()):
        return None
    plt = _pyplot()
    titles = {"vlb_t": "bound by t, nats a dimension", "caption_info_t": "what captions tell by t, bits a picture"}
    with plt.rc_context(_style(theme)):
        figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.2))
        for axis, (metric, points) in zip(axes, found.items(), strict=True):
            spans = [r.extra["t"] for r in points]
            names = [f"{a}" if a == b else f"{a}-{b}" for a, b in spans]  # pyright: ignore
            half = [(r.ci95[1] - r.ci95[0]) / 2 if r.ci95 else 0 for r in points]
            axis.bar(names, [r.value for r in points], yerr=half, color=INK[theme][2], capsize=2)
            axis.set_title(titles[metric], fontsize=9)
            axis.tick_params(labelsize=7)
            axis.tick_params(axis="x", rotation=70)
        figure.tight_layout()
        return _picture(plt, figure)


def sweep(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each metric over at least two guidances, ascending."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if plain(row) and (row.metric in TITLES) and row.protocol.guidance is not None:
            found.setdefault(row.metric, []).append(row)
    ordered = {m: sorted(part, key=lambda r: r.protocol.guidance or 0) for m, part in found.items()}
    return {m: part for m, part in ordered.items() if len(part) > 1}


def plain(row: Row) -> bool:
    """Whether a row is a number of the contestant itself, and no difference."""
    return "anchor" not in row.extra and "than_cfg" not in row.extra


def anchors_of(rows: Sequence[Row], metric: str) -> dict[str, float]:
    """The value of each anchor that is a line in a figure; of several guidances' the mean."""
    found: dict[str, list[float]] = {}
    for row in rows:
        name = row.extra.get("anchor")
        if row.metric == metric and name in ANCHORS:
            found.setdefault(str(name), []).append(shown(row))
    return {name: sum(values) / len(values) for name, values in found.items()}


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _style(theme: str) -> dict[str, Any]:
    back, ink, _, _ = INK[theme]
    keys = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    faces = dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), back)
    return dict.fromkeys(keys, ink) | faces | {"axes.spines.top": False, "axes.spines.right": False}


def _finish(plt: Any, figure: Any, rows: Sequence[Row]) -> Image.Image:
    note = "" if any(r.metric == "fd" and r.protocol.verified for r in rows) else f"{NOT_COMPARABLE}; bars: 95%"
    figure.tight_layout(rect=(0, 0.035, 1, 1))
    figure.text(0.01, 0.008, note or "bars: 95%", fontsize=7)
    return _picture(plt, figure)


def _picture(plt: Any, figure: Any) -> Image.Image:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=150)
    plt.close(figure)
    data.seek(0)
    with Image.open(data) as picture:
        return picture.convert("RGB")
