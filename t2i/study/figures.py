"""The report's curves as PNGs, and where on them each point lies, so that a page can link it to its row."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from scipy.spatial import ConvexHull, QhullError

from t2i.study.conclusions import named, number
from t2i.study.contrasts import EXACT, FD, INFO, Point, compared, metric_at, points, sensitive, slope
from t2i.study.results import Number, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DPI = 110
SKILLS = (EXACT, "binding", "shape", "colour", "count", "relation", "negation", "held_out_pairs", "held_out_words")
ANCHOR_STYLE = {"real": ("k", "--"), "vae": ("tab:gray", ":"), "shuffled": ("tab:red", ":")}


@dataclass
class Drawing:
    """A PNG and its points: (x, y) in its pixels, and the row of each."""

    png: bytes
    size: tuple[int, int]
    links: list[tuple[int, int, Number]] = field(default_factory=list)


class Sheet:
    """One figure with its linked points."""

    def __init__(self, columns: int, rows: int = 1, width: float = 6.0, height: float = 4.6) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.figure: Figure = Figure(figsize=(columns * width, rows * height), dpi=DPI, layout="constrained")
        self.canvas = FigureCanvasAgg(self.figure)
        self.axes: Any = self.figure.subplots(rows, columns, squeeze=False)
        self.links: list[tuple[Any, float, float, Number]] = []

    def link(self, transform: Any, x: float, y: float, row: Number) -> None:
        """Remember whose point is at (x, y) of a transform, as it will be when all is drawn."""
        self.links.append((transform, x, y, row))

    def finish(self) -> Drawing:
        """Draw it."""
        self.canvas.draw()
        height = int(self.figure.bbox.height)
        found = []
        for transform, x, y, row in self.links:
            px, py = transform.transform((x, y))
            found.append((round(px), round(height - py), row))
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
        return Drawing(small_png(Image.open(buffer)), (int(self.figure.bbox.width), height), found)


def small_png(picture: Image.Image) -> bytes:
    """Curves in a PNG of 256 colours, a third as large: a report is to be kept in a repository."""
    buffer = io.BytesIO()
    picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def colours(names: Sequence[str]) -> dict[str, Any]:
    """A colour a name, sizes of a ladder and controls alike."""
    import matplotlib

    table = matplotlib.colormaps["tab10" if len(names) <= 10 else "tab20"]
    return {name: table(i) for i, name in enumerate(names)}


def curves(results: Results) -> Drawing:
    """FD against alignment with guidance along each curve: encoders on the left, U-Nets on the right, same axes."""
    alignment, sheet = results.study["alignment"], Sheet(2, width=6.6, height=5.4)
    for axes, axis in zip(sheet.axes[0], ("encoder", "unet"), strict=True):
        names = list(dict.fromkeys(about[axis] for about in _on(results, axis).values()))
        for name, colour in colours(names).items():
            runs = [run for run, about in _on(results, axis).items() if about[axis] == name]
            _curve(sheet, axes, results, runs, name, colour)
        for anchor, (colour, dashes) in ANCHOR_STYLE.items():
            level = results.find(anchor, alignment)
            if level is not None:
                axes.axvline(level.value, color=colour, linestyle=dashes, linewidth=1, label=f"{anchor} pictures")
        axes.set(xlabel=_label(results, alignment), ylabel=_label(results, FD), yscale="log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.tick_params(axis="y", which="minor", labelsize=7)
        axes.set_title("text encoders, one U-Net" if axis == "encoder" else "U-Nets, one text encoder")
        axes.legend(fontsize=7)
    _share(sheet.axes[0])
    return sheet.finish()


def _on(results: Results, axis: str) -> dict[str, dict[str, Any]]:
    """The runs of an axis: controls, then families by size."""
    found = {run: about for run, about in results.runs.items() if axis in about.get("axes", "").split("+")}

    def place(about: dict[str, Any]) -> tuple[str, int]:
        family = (about["family"] or "") if axis == "encoder" else ""
        return family, about[f"{axis}_parameters"] if family or axis == "unet" else 0

    return dict(sorted(found.items(), key=lambda item: place(item[1])))


def _curve(sheet: Sheet, axes: "Axes", results: Results, runs: list[str], name: str, colour: Any) -> None:
    """The mean over seeds, w beside it; the seeds' envelope, piece by piece."""
    alignment = results.study["alignment"]
    scales = sorted({n.cfg for n in results.numbers if n.run == runs[0] and n.metric == FD and n.cfg is not None})
    clouds, middle = [], []
    for w in scales:
        pairs = [(results.find(run, alignment, w), results.find(run, FD, w)) for run in runs]
        cloud = [(a.value, b.value) for a, b in pairs if a is not None and b is not None]
        if not cloud:
            continue
        clouds.append(cloud)
        middle.append(np.mean(cloud, 0))
        for a, b in pairs:
            if a is not None and b is not None:
                axes.plot(a.value, b.value, ".", color=colour, markersize=3, alpha=0.6)
                sheet.link(axes.transData, a.value, b.value, b)
        axes.annotate(f"{w:g}", middle[-1], fontsize=6, color=colour, xytext=(3, 3), textcoords="offset points")
    line = np.array(middle)
    axes.plot(line[:, 0], line[:, 1], "-", color=colour, linewidth=1.4, label=f"{name} ({len(runs)})")
    for here, there in pairwise(clouds):
        _hull(axes, np.array([*here, *there]), colour)


def _hull(axes: "Axes", cloud: np.ndarray, colour: Any) -> None:
    if len(cloud) < 3:
        return
    try:
        corners = cloud[ConvexHull(cloud).vertices]
    except QhullError:  # all on one line
        return
    axes.fill(corners[:, 0], corners[:, 1], color=colour, alpha=0.15, linewidth=0)


def sizes(results: Results) -> Drawing:
    """Metrics against log10 parameters, encoders beside U-Nets on the same axes, with slopes and intervals."""
    metrics = [m for m in (*compared(results), INFO) if any(n.metric == m for n in results.numbers)]
    sheet = Sheet(2, len(metrics), width=6.4, height=4.0)
    for row, metric in zip(sheet.axes, metrics, strict=True):
        for axes, axis in zip(row, ("encoder", "unet"), strict=True):
            groups = points(results, axis, metric)
            names = [name for name in groups if name]
            for name, colour in colours(names).items():
                found = slope(groups[name]) if sensitive(results) else None
                label = name if found is None else f"{name}: {number(found)} a decade"
                _ladder(sheet, axes, groups[name], label, colour)
            for control in groups.get("", []):
                mean = control.mean
                style = {"color": "0.4", "linewidth": 0.8, "linestyle": "--"}
                axes.axhline(mean.value, **style)
                axes.annotate(
                    control.name, (0.995, mean.value), xycoords=("axes fraction", "data"), fontsize=6, ha="right"
                )
                sheet.link(axes.get_yaxis_transform(), 0.5, mean.value, next(iter(control.numbers.values())))
            w = metric_at(results, metric)
            axes.set(xscale="log", xlabel=f"parameters of the {'text encoder' if axis == 'encoder' else 'U-Net'}")
            axes.set_ylabel(_label(results, metric) + ("" if w is None else f" at guidance {w:g}"))
            axes.legend(fontsize=7)
        _share(row)
    return sheet.finish()


def _ladder(sheet: Sheet, axes: "Axes", group: list[Point], label: str, colour: Any) -> None:
    for point in group:
        for one in point.numbers.values():
            axes.plot(point.parameters, one.value, ".", color=colour, markersize=4, alpha=0.6)
            sheet.link(axes.transData, point.parameters, one.value, one)
    means = [point.mean for point in group]
    at = [point.parameters for point in group]
    axes.plot(at, [mean.value for mean in means], "-", color=colour, linewidth=1.2, label=label)
    for x, mean in zip(at, means, strict=True):
        if mean.half is not None:
            axes.errorbar(x, mean.value, yerr=mean.half, color=colour, capsize=3, linewidth=1)


def skills(results: Results) -> Drawing | None:
    """Every skill of every encoder at the guidance of comparison, all seeds together; ceilings as ticks."""
    names = [s for s in SKILLS if any(n.metric == s for n in results.numbers)]
    encoders = list(dict.fromkeys(about["encoder"] for about in _on(results, "encoder").values()))
    if not names or not encoders:
        return None
    sheet = Sheet(1, width=max(8.0, 1.5 * len(names)), height=4.4)
    axes, thick = sheet.axes[0][0], 0.8 / len(encoders)
    for i, (encoder, colour) in enumerate(colours(encoders).items()):
        runs = [run for run, about in _on(results, "encoder").items() if about["encoder"] == encoder]
        for k, skill in enumerate(names):
            found = [results.find(run, skill, results.study["at"]) for run in runs]
            found = [n for n in found if n is not None]
            if not found:
                continue
            mean, x = float(np.mean([n.value for n in found])), k - 0.4 + (i + 0.5) * thick
            axes.bar(x, mean, thick, color=colour, label=encoder if k == 0 else None)
            low, high = (float(np.mean([n.ci95[side] for n in found if n.ci95])) for side in (0, 1))
            axes.errorbar(x, mean, yerr=[[max(0.0, mean - low)], [max(0.0, high - mean)]], color="k", linewidth=0.6)
            sheet.link(axes.transData, x, mean, found[0])
    for anchor, (colour, dashes) in ANCHOR_STYLE.items():
        levels = [(k, found) for k, s in enumerate(names) if (found := results.find(anchor, s)) is not None]
        for j, (k, found) in enumerate(levels):
            label = f"{anchor} pictures" if j == 0 else None
            axes.hlines(found.value, k - 0.42, k + 0.42, color=colour, linestyle=dashes, linewidth=1, label=label)
    axes.set_xticks(range(len(names)), [name.replace("_", " ") for name in names], fontsize=8)
    axes.set(ylim=(0, 1.05), ylabel=f"rate at guidance {results.study['at']:g}")
    axes.legend(fontsize=7, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    return sheet.finish()


def _label(results: Results, metric: str) -> str:
    """A metric beside an axis: features by their last name, the page has the whole of it."""
    name, bracket, features = named(results, metric).partition("[")
    return name + bracket + features.rpartition("/")[2]


def _share(row: Any) -> None:
    """The same y axis, and where both show the same quantity the same x axis, side by side."""
    low = min(axes.get_ylim()[0] for axes in row)
    high = max(axes.get_ylim()[1] for axes in row)
    left, right = min(axes.get_xlim()[0] for axes in row), max(axes.get_xlim()[1] for axes in row)
    for axes in row:
        axes.set_ylim(low, high)
        axes.set_xlim(left, right)
