"""RUN/report.html of a fine-tuning: one file without links, the numbers of report.json with their pictures."""

import base64
import io
import json
from html import escape
from pathlib import Path
from typing import Any

from t2i.files import write_text

FEW = 4  # pictures, whose interval says next to nothing
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse}td,th{padding:.2rem .7rem;text-align:right;border-bottom:1px solid #ddd}
td:first-child,th:first-child{text-align:left}figure{display:inline-block;margin:.4rem;vertical-align:top}
img{image-rendering:auto;min-width:96px;max-width:100%}figcaption{font-size:.8rem;max-width:200px}.bad{color:#a00}"""


def write_report(run: Path, found: dict[str, Any]) -> None:
    """Write RUN/report.html from RUN's pictures, its log and the numbers."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf8").splitlines()]
    body = [
        f"<h1>Fine-tuned: {escape(run.name)}</h1>",
        f"<p>{escape(found['method'])} of {escape(found['model'])}: {found['training_pictures']} pictures, "
        f"{found['trained_parameters']:,} trained parameters ({100 * found['trained_share']:.2f} %), "
        f"{found['train']['steps']} steps in {found['seconds']:.0f} s, at most {found['peak_memory_mib']:.0f} MiB.</p>",
        "<h2>Did it learn?</h2>",
        verdict(found),
        loss_table(found),
        f"<h3>Loss</h3><img alt='loss by step' src='{curves(rows, found['loss']['before'])}'>",
        "<h3>Before and after, of the same noise</h3>",
        pairs(run, "new", found["prompts"], found["new_change"]),
        "<h2>Did it forget?</h2>",
        pairs(run, "old", found["old_prompts"], found["old_change"])
        or "<p>Not looked at: name prompts of what the model knew before, sample.old_prompts=['a frog','a heart'].</p>",
        "<h2>Did it copy?</h2>",
        copies(run, found),
    ]
    page = "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
    page += f"<title>{escape(run.name)}</title><style>{STYLE}</style>{''.join(body)}</html>\n"
    write_text(run / "report.html", page)


def verdict(found: dict[str, Any]) -> str:
    """The held-out loss in a sentence."""
    loss = found["loss"]
    what = "training pictures themselves" if found["held_out_are_training"] else "held-out pictures"
    if loss["interval"] is None:
        return f"<p>One picture to judge by: {loss['before']:.4f} before, {loss['after']:.4f} after.</p>"
    low, high = loss["interval"]
    few = f" {loss['pictures']} are few to judge by: set held_out." if loss["pictures"] < FEW else ""
    said = "It learnt" if high < 0 else "It got worse" if low > 0 else "Nothing is shown either way"
    return (
        f"<p><b>{said}</b>: on {loss['pictures']} {what} the loss changed by {100 * loss['relative']:+.2f} %, from "
        f"{loss['before']:.5f} to {loss['after']:.5f}; 95 % interval of the paired difference (same picture, t and "
        f"noise) [{low:+.5f}, {high:+.5f}].{few}</p>"
    )


def loss_table(found: dict[str, Any]) -> str:
    """Before and after by timestep bin."""
    lines = ["<table><tr><th>t<th>before<th>after<th>difference<th>95 % interval</tr>"]
    for name, row in [*found["bins"].items(), ("all", found["loss"])]:
        interval = "" if row["interval"] is None else "[{:+.5f}, {:+.5f}]".format(*row["interval"])
        lines.append(
            f"<tr><td>{name}<td>{row['before']:.5f}<td>{row['after']:.5f}<td>{row['difference']:+.5f}<td>{interval}</tr>"
        )
    return "".join(lines) + "</table>"


def curves(rows: list[dict[str, Any]], before: float) -> str:
    """The training and held-out loss by step as a picture in a URL."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for key, label in (("loss", "training"), ("validation.loss", "held out")):
        points = [(row["step"], row[key]) for row in rows if key in row]
        points = [(0, before), *points] if key == "validation.loss" else points
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker="o" if len(points) < 20 else None, linewidth=1)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return url(buffer.getvalue())


def pairs(run: Path, name: str, prompts: list[str], changes: list[float]) -> str:
    """Each prompt's picture before and after."""
    return "".join(
        f"<figure>{picture(run / 'before' / f'{name}_{k:02}.png', 'before')}"
        f"{picture(run / 'after' / f'{name}_{k:02}.png', 'after')}"
        f"<figcaption>{escape(prompt)}; changed by {change:.3f}</figcaption></figure>"
        for k, (prompt, change) in enumerate(zip(prompts, changes, strict=True))
    )


def copies(run: Path, found: dict[str, Any]) -> str:
    """Each sample beside its nearest training picture."""
    nearest = found["nearest"]
    median = nearest["held_out_median"]
    said = "" if median is None else f" A held-out picture is {median:.3f} from its nearest one (median)."
    lines = [
        f"<p>Each sample with the nearest of {nearest['compared']} training pictures; the distance is the root mean "
        f"square difference of pixels at 32x32, in 0..1.{said} Far smaller distances than that are copies.</p>"
    ]
    for k, row in enumerate(nearest["samples"]):
        lines.append(
            f"<figure>{picture(run / 'after' / f'new_{k:02}.png', 'sample')}"
            f"{picture(run / 'nearest' / f'{k:02}.png', 'nearest')}"
            f"<figcaption>{row['distance']:.3f}: {escape(row['picture'])}, {escape(row['caption'])}</figcaption>"
            "</figure>"
        )
    return "".join(lines)


def picture(path: Path, alt: str) -> str:
    """A picture inside the page."""
    return f"<img alt='{alt}' src='{url(path.read_bytes())}'>"


def url(data: bytes) -> str:
    """PNG bytes as a URL."""
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"
