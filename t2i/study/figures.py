"""The figures of a study, with each point linked to its row: curves over guidance, sizes, skills."""

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.spatial import ConvexHull, QhullError

from t2i.report.figures import Canvas, Drawing, canvas
from t2i.study.conclusions import format_interval, label_of
from t2i.study.contrasts import EXACT, FD, INFO, Point, compared, guidance_of, is_sensitive, points, slope
from t2i.study.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AXES = ("encoder", "unet")  # encoders with one U-Net, U-Nets with one encoder
SKILLS = (EXACT, "binding", "shape", "colour", "count", "relation", "negation", "held_out_pairs", "held_out_words")
BASELINE_STYLE = {"real": ("k", "--"), "vae": ("tab:gray", ":"), "shuffled": ("tab:red", ":")}


def colours(names: list[str]) -> dict[str, Any]:
    """Returns a colour for each name."""
    import matplotlib

    table = matplotlib.colormaps["tab10" if len(names) <= 10 else "tab20"]
    return {name: table(i) for i, name in enumerate(names)}


def curves(results: Results) -> Drawing:
    """Draws distance against alignment with guidance along each curve: encoders left, U-Nets right, on equal axes."""
    alignment = results.study["alignment"]
    runs_on = {axis: by_run for axis in AXES if (by_run := _runs_on(results, axis))}
    with canvas(max(1, len(runs_on)), width=6.6, height=5.4) as drawing:
        for axes, (axis, by_run) in zip(drawing.axes[0], runs_on.items(), strict=False):
            for name, colour in colours(list(dict.fromkeys(about[axis] for about in by_run.values()))).items():
                runs = [run for run, about in by_run.items() if about[axis] == name]
                _curve(drawing, axes, results, runs, name, colour)
            for baseline, (colour, dashes) in BASELINE_STYLE.items():
                if (level := results.find(baseline, alignment)) is not None:
                    axes.axvline(level.value, color=colour, linestyle=dashes, linewidth=1, label=f"{baseline} images")
            axes.set(xlabel=_axis_label(results, alignment), ylabel=_axis_label(results, FD), yscale="log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("{x:g}")
            axes.tick_params(axis="y", which="minor", labelsize=7)
            axes.set_title("text encoders, one U-Net" if axis == "encoder" else "U-Nets, one text encoder")
            _legend(axes)
        _equalise(drawing.axes[0])
        return drawing.draw()


def _runs_on(results: Results, axis: str) -> dict[str, dict[str, Any]]:
    """Returns the runs of an axis ("encoder" or "unet"): controls first, then families by size."""

    def place(about: dict[str, Any]) -> tuple[str, int]:
        family = (about["family"] or "") if axis == "encoder" else ""
        return family, about[f"{axis}_parameters"] if family or axis == "unet" else 0

    runs = {run: about for run, about in results.runs.items() if axis in about.get("axes", "").split("+")}
    return dict(sorted(runs.items(), key=lambda item: place(item[1])))


def _curve(drawing: Canvas, axes: "Axes", results: Results, runs: list[str], name: str, colour: Any) -> None:
    """Draws the mean over seeds, annotated with the guidance, and the seeds' envelope."""
    alignment = results.study["alignment"]
    protocols = [row.protocol for row in results.rows if row.extra["run"] == runs[0] and row.metric == FD]
    scales = sorted({one.guidance for one in protocols if one.guidance is not None})
    clouds, means = [], []
    for w in scales:
        pairs = [(results.find(run, alignment, w), results.find(run, FD, w)) for run in runs]
        cloud = []
        for a, b in pairs:
            if a is not None and b is not None:
                cloud.append((a.value, b.value))
                axes.plot(a.value, b.value, ".", color=colour, markersize=3, alpha=0.6)
                drawing.link(axes.transData, a.value, b.value, b)
        if not cloud:
            continue
        clouds.append(cloud)
        means.append(np.mean(cloud, 0))
        axes.annotate(f"{w:g}", means[-1], fontsize=6, color=colour, xytext=(3, 3), textcoords="offset points")
    if not means:
        return
    line = np.array(means)
    axes.plot(line[:, 0], line[:, 1], "-", color=colour, linewidth=1.4, label=f"{name} ({len(runs)})")
    for one, other in pairwise(clouds):
        cloud = np.array([*one, *other])
        try:
            corners = cloud[ConvexHull(cloud).vertices] if len(cloud) > 2 else cloud
        except QhullError:  # all points lie on a line
            continue
        axes.fill(corners[:, 0], corners[:, 1], color=colour, alpha=0.15, linewidth=0)


def sizes(results: Results) -> Drawing | None:
    """Draws metrics against log10 parameters, encoders beside U-Nets on equal axes, with slopes and intervals.

    Axes without a family of two sizes are left empty or out; returns None if there is none at all.
    """

    def has_sizes(axis: str, metric: str) -> bool:
        return any(name and len(group) > 1 for name, group in points(results, axis, metric).items())

    metrics = [m for m in (*compared(results), INFO) if has_sizes("encoder", m) or has_sizes("unet", m)]
    if not metrics:
        return None
    columns = [axis for axis in AXES if any(has_sizes(axis, metric) for metric in metrics)]
    with canvas(len(columns), len(metrics), width=6.4, height=4.0) as drawing:
        for row, metric in zip(drawing.axes, metrics, strict=True):
            for axes, axis in zip(row, columns, strict=True):
                if not has_sizes(axis, metric):
                    axes.set_axis_off()
                    continue
                groups = points(results, axis, metric)
                for name, colour in colours([name for name in groups if name]).items():
                    interval = slope(groups[name]) if is_sensitive(results) else None
                    label = name if interval is None else f"{name}: {format_interval(interval)} a decade"
                    _ladder(drawing, axes, groups[name], label, colour)
                controls: dict[float, list[Point]] = {}
                for control in groups.get("", []):
                    controls.setdefault(control.mean.value, []).append(control)
                for mean, equal in controls.items():
                    axes.axhline(mean, color="0.4", linewidth=0.8, linestyle="--")
                    where = {"xycoords": ("axes fraction", "data"), "fontsize": 6, "ha": "right"}
                    axes.annotate(", ".join(point.name for point in equal), (0.995, mean), **where)
                    drawing.link(axes.get_yaxis_transform(), 0.5, mean, next(iter(equal[0].numbers.values())))
                w = guidance_of(results, metric)
                axes.set(xscale="log", xlabel=f"parameters of the {'text encoder' if axis == 'encoder' else 'U-Net'}")
                axes.set_ylabel(_axis_label(results, metric) + ("" if w is None else f" at guidance {w:g}"))
                _legend(axes)
            _equalise(row)
        return drawing.draw()


def _ladder(drawing: Canvas, axes: "Axes", group: list[Point], label: str, colour: Any) -> None:
    for point in group:
        for number in point.numbers.values():
            axes.plot(point.parameters, number.value, ".", color=colour, markersize=4, alpha=0.6)
            drawing.link(axes.transData, point.parameters, number.value, number)
        if point.mean.half is not None:
            style = {"color": colour, "capsize": 3, "linewidth": 1}
            axes.errorbar(point.parameters, point.mean.value, yerr=point.mean.half, **style)
    x, y = [point.parameters for point in group], [point.mean.value for point in group]
    axes.plot(x, y, "-", color=colour, linewidth=1.2, label=label)


def skills(results: Results) -> Drawing | None:
    """Draws every skill of every encoder at the guidance of comparison, seeds together; baselines as ticks."""
    names = [s for s in SKILLS if any(n.metric == s for n in results.rows)]
    by_run = _runs_on(results, "encoder")
    encoders = list(dict.fromkeys(about["encoder"] for about in by_run.values()))
    if not names or not encoders:
        return None
    with canvas(width=max(8.0, 1.5 * len(names)), height=4.4) as drawing:
        axes, thickness = drawing.axes[0][0], 0.8 / len(encoders)
        for i, (encoder, colour) in enumerate(colours(encoders).items()):
            runs = [run for run, about in by_run.items() if about["encoder"] == encoder]
            for k, skill in enumerate(names):
                rates = [n for run in runs if (n := results.find(run, skill, results.study["at"])) is not None]
                if not rates:
                    continue
                mean, x = float(np.mean([n.value for n in rates])), k - 0.4 + (i + 0.5) * thickness
                axes.bar(x, mean, thickness, color=colour, label=encoder if k == 0 else None)
                low, high = (float(np.mean([n.ci95[side] for n in rates if n.ci95])) for side in (0, 1))
                bars = [[max(0.0, mean - low)], [max(0.0, high - mean)]]
                axes.errorbar(x, mean, yerr=bars, color="k", linewidth=0.6)
                drawing.link(axes.transData, x, mean, rates[0])
        for baseline, (colour, dashes) in BASELINE_STYLE.items():
            levels = [(k, n) for k, s in enumerate(names) if (n := results.find(baseline, s)) is not None]
            for j, (k, n) in enumerate(levels):
                style = {"color": colour, "linestyle": dashes, "linewidth": 1}
                axes.hlines(n.value, k - 0.42, k + 0.42, label=f"{baseline} images" if j == 0 else None, **style)
        axes.set_xticks(range(len(names)), [name.replace("_", " ") for name in names], fontsize=8)
        axes.set(ylim=(0, 1.05), ylabel=f"rate at guidance {results.study['at']:g}")
        axes.legend(fontsize=7, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.1))
        return drawing.draw()


def _axis_label(results: Results, metric: str) -> str:
    """Returns a metric's label with the last part of its features' name; the page has the whole name."""
    name, bracket, features = label_of(results, metric).partition("[")
    return name + bracket + features.rpartition("/")[2]


def _legend(axes: "Axes") -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7)


def _equalise(row: Any) -> None:
    """Gives axes side by side equal limits, apart from those that are left out."""
    row = [axes for axes in row if axes.axison]
    if not row:
        return
    low, high = min(axes.get_ylim()[0] for axes in row), max(axes.get_ylim()[1] for axes in row)
    first, last = min(axes.get_xlim()[0] for axes in row), max(axes.get_xlim()[1] for axes in row)
    for axes in row:
        axes.set_ylim(low, high)
        axes.set_xlim(first, last)
