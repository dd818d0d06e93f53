"""RUN/report.html of a fine-tuning run: the numbers of report.json with their images, in one file."""

import json
from pathlib import Path
from typing import Any

from t2i.files import write_text
from t2i.report.figures import Theme, canvas
from t2i.report.page import Html, element, figure, gallery, image, page, section, table

FEW = 4  # images below which an interval is hardly informative


def write_report(run: Path, report: dict[str, Any]) -> None:
    """Writes RUN/report.html from the images and the log of RUN and the numbers of `report`."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf8").splitlines()]
    summary = (
        f"{report['method']} of {report['model']}: {report['training_pictures']} images, "
        f"{report['trained_parameters']:,} trained parameters ({100 * report['trained_share']:.2f} %), "
        f"{report['train']['steps']} steps in {report['seconds']:.0f} s, peak memory {report['peak_memory_mib']:.0f} "
        "MiB."
    )
    light, dark = (curves(rows, report["loss"]["before"], theme) for theme in ("light", "dark"))
    old = report["old_prompts"]
    forgotten = "Not tested: give prompts of what the model could do before, sample.old_prompts=['a frog','a heart']."
    parts = [
        element("p", summary),
        section("Did it learn?", loss_table(report), image(light, "loss by step", dark=dark)),
        section("Before and after, from the same noise", pairs(run, "new", report["prompts"], report["new_change"])),
        section("Did it forget?", pairs(run, "old", old, report["old_change"]) if old else element("p", forgotten)),
        section("Did it copy?", *copies(run, report)),
    ]
    write_text(run / "report.html", page(f"Fine-tuned: {run.name}", verdict(report), *parts))


def verdict(report: dict[str, Any]) -> str:
    """Returns the change of the validation loss in one sentence."""
    loss, images = report["loss"], "training images" if report["held_out_are_training"] else "held-out images"
    if loss["interval"] is None:
        return f"There is one image for validation: loss {loss['before']:.4f} before, {loss['after']:.4f} after."
    low, high = loss["interval"]
    few = f" {loss['pictures']} images are few for a comparison: set held_out." if loss["pictures"] < FEW else ""
    outcome = "It learned" if high < 0 else "It got worse" if low > 0 else "The change is not significant"
    return (
        f"{outcome}: on {loss['pictures']} {images} the loss changed by {100 * loss['relative']:+.2f} %, from "
        f"{loss['before']:.5f} to {loss['after']:.5f}; 95 % interval of the paired difference (same image, t and "
        f"noise) [{low:+.5f}, {high:+.5f}].{few}"
    )


def loss_table(report: dict[str, Any]) -> Html:
    """Returns the loss before and after by timestep bin."""
    rows = []
    for name, row in [*report["bins"].items(), ("all", report["loss"])]:
        interval = "" if row["interval"] is None else "[{:+.5f}, {:+.5f}]".format(*row["interval"])
        figures = (f"{row['before']:.5f}", f"{row['after']:.5f}", f"{row['difference']:+.5f}")
        rows.append((name, *figures, interval))
    return table(("t", "before", "after", "difference", "95 % interval"), rows)


def curves(rows: list[dict[str, Any]], before: float, theme: Theme) -> bytes:
    """Returns the training and validation loss by step as a PNG."""
    with canvas(width=7, height=3.2, theme=theme) as figure:
        axes = figure.axes[0, 0]
        for key, label in (("loss", "training"), ("validation.loss", "held out")):
            points = [(row["step"], row[key]) for row in rows if key in row]
            points = [(0, before), *points] if key == "validation.loss" else points
            if points:
                marker = "o" if len(points) < 20 else None
                axes.plot(*zip(*points, strict=True), label=label, marker=marker, linewidth=1)
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        axes.legend()
        return figure.draw().png


def pairs(run: Path, name: str, prompts: list[str], changes: list[float]) -> Html:
    """Returns the images of each prompt before and after."""
    return gallery(
        figure(
            png(run / "before" / f"{name}_{k:02}.png", "before"),
            png(run / "after" / f"{name}_{k:02}.png", "after"),
            caption=f"{prompt}; changed by {change:.3f}",
        )
        for k, (prompt, change) in enumerate(zip(prompts, changes, strict=True))
    )


def copies(run: Path, report: dict[str, Any]) -> tuple[Html, Html]:
    """Returns an explanation, and each sample beside its nearest training image."""
    nearest = report["nearest"]
    median = nearest["held_out_median"]
    held_out = "" if median is None else f" The median distance of a held-out image to its nearest one is {median:.3f}."
    text = (
        f"Each sample with the nearest of {nearest['compared']} training images. The distance is the root mean square "
        f"difference of pixels at 32x32, in 0..1.{held_out} A far smaller distance is a copy."
    )
    rows = gallery(
        figure(
            png(run / "after" / f"new_{k:02}.png", "sample"),
            png(run / "nearest" / f"{k:02}.png", "nearest"),
            caption=f"{row['distance']:.3f}: {row['picture']}, {row['caption']}",
        )
        for k, row in enumerate(nearest["samples"])
    )
    return element("p", text), rows


def png(path: Path, alt: str) -> Html:
    """Returns an image of the run as an element."""
    return image(path.read_bytes(), alt)
