"""`t2i study report DIR`: one page that holds everything, and its figures, from the rows alone."""

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from t2i.files import write_bytes, write_png, write_text
from t2i.study import figures
from t2i.study.conclusions import conclusion, named, number
from t2i.study.contrasts import FD, Apart, apart, compared, metric_at, points, sensitive, shared_sizes, slope
from t2i.study.figures import Drawing
from t2i.study.results import BASELINES, REPORT, Number, Results, read_results, sheet_name

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1500px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; font-size: 13px; } td, th { padding: 2px 9px; text-align: right; }
th:first-child, td:first-child { text-align: left; } tr:nth-child(even) { background: #f4f4f4; }
:target { outline: 2px solid #d60; } .said { border-left: 4px solid #36c; padding: .3em 1em; font-size: 17px; }
.not { border-left: 4px solid #d60; padding: .3em 1em; } img { display: block; } .hash { font-family: monospace; }
"""
NOT_WEB = (
    "Not a statement about web-scale encoders: these encoders learnt a small grammar of captions and know nothing "
    "that a larger corpus would teach (rare words, facts, styles). What can be read here is what a frozen encoder's "
    "capacity and training do to exact binding under one latent diffusion model, and whether a distance follows."
)
NOT_FID = "Not comparable with published FIDs: distances are in features of their own, named at every figure."
NOT_THIS = (
    "Not a scaling law: every U-Net was trained for the same steps, not to convergence nor for equal compute, on one "
    "training of each encoder. An interval holds what other seeds of the U-Net, and for rates and distances other "
    "captions, would change; not what another training of an encoder would.",
    "Not a choice of the best guidance: comparisons are at the scales that the recipe names; the curves show all.",
    "Not one test: each interval is of 95% on its own, and of several one may miss.",
)
BARS = (
    "Bars: 95%, over seeds and, but for what captions tell, over captions. A slope is over the sizes that all of its "
    "seeds have. Dashed: controls."
)
SKILL_BARS = "Bars: 95% (Wilson) of one seed's captions, the mean of all seeds; what seeds change is not in them."
NOT_PHOTOS = "The skills' parser knows the renderer: it judges these scenes and no other pictures."


def write(folder: str | Path) -> list[str]:
    """report.html and PNGs beside the rows of a study's folder, or of its rows' alone; returns what it concludes."""
    folder = Path(folder)
    if not (folder / "study.json").is_file() and (folder / REPORT / "study.json").is_file():
        folder /= REPORT
    results = read_results(folder)
    drawn = {"curves": figures.curves(results), "sizes": figures.sizes(results), "skills": figures.skills(results)}
    sheet = sheets(results, folder)
    if sheet is not None:
        write_png(folder / "sheets.png", sheet.quantize(256, dither=Image.Dither.NONE), optimize=True)
    images = {name: found for name, found in drawn.items() if found is not None}
    for name, found in images.items():
        write_bytes(folder / f"{name}.png", found.png)
    write_text(folder / "report.html", page(results, images, folder / "sheets.png" if sheet is not None else None))
    return [*conclusion(results), f"{folder}: report.html, {', '.join(f'{name}.png' for name in images)}"]


def page(results: Results, images: dict[str, Drawing], sheet: Path | None) -> str:
    """The whole page; before any word of size, whether the set-up can see one."""
    study, done = results.study, [run for run in results.study["planned"] if run in results.runs]
    parts = [f"<h1>Text encoders and U-Nets of many sizes</h1><p>{len(done)} of {len(study['planned'])} runs.</p>"]
    parts += ["<h2>Can this set-up see an effect?</h2>", _sensitivity(results)]
    parts += ["<h2>What was found</h2>", *(f"<p class=said>{html.escape(line)}</p>" for line in conclusion(results))]
    if sensitive(results):
        parts += ["<h2>Slopes per decade of parameters</h2>", _slopes(results)]
    parts += ["<h2>Distance against alignment, guidance along each curve</h2>", _image("curves", images)]
    parts += ["<p>Seeds in brackets; the shaded part is their envelope. Every point leads to its row.</p>"]
    flagged = {about["encoder"]: why for about in results.runs.values() if (why := about.get("own_family"))}
    parts += [f"<p class=not>{html.escape(name)}: {html.escape(why)}</p>" for name, why in flagged.items()]
    parts += ["<h2>Size</h2>", _image("sizes", images), f"<p>{BARS}</p>"]
    if "skills" in images:
        parts += ["<h2>Skills</h2>", _image("skills", images), f"<p>{SKILL_BARS}</p>"]
    parts += ["<h2>Floors and ceilings</h2>", _anchors(results)]
    if sheet is not None:
        shown = "".join(f"<li>{html.escape(text)}" for text in study["captions"])
        source = base64.b64encode(sheet.read_bytes()).decode()
        parts += [f"<h2>Samples, on the same noise, at guidance {study['at']:g}</h2>"]
        parts += [f'<img src="data:image/png;base64,{source}" alt="samples"><ol>{shown}</ol>']
    parts += ["<h2>Cost</h2>", _costs(results), "<h2>What this is not</h2>"]
    parts += [f"<p class=not>{html.escape(text)}</p>" for text in _not_this(results)]
    parts += ["<h2>Runs</h2>", _runs(results), "<h2>Rows</h2>", _rows(results)]
    return f"<!doctype html><meta charset=utf-8><title>t2i study</title><style>{STYLE}</style>" + "\n".join(parts)


def _not_this(results: Results) -> list[str]:
    """What the page does not say, for what was measured here."""
    scenes = results.study["alignment"] != "clip_score"
    verified = any(protocol.get("verified") for protocol in results.protocols)
    own = [NOT_WEB] if scenes else []
    return [*own, *([] if verified else [NOT_FID]), *NOT_THIS, *([NOT_PHOTOS] if scenes else [])]


def table(head: Sequence[str], lines: Iterable[Sequence[Any]], ids: Sequence[str] = ()) -> str:
    """A table; cells are escaped."""
    cells = [[html.escape(str(cell)) for cell in line] for line in lines]
    marks = [f' id="{html.escape(name)}"' for name in ids] or [""] * len(cells)
    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join(
        f"<tr{mark}>" + "".join(f"<td>{cell}</td>" for cell in line) + "</tr>"
        for mark, line in zip(marks, cells, strict=True)
    )
    return f"<table><tr>{top}</tr>{body}</table>"


def _sensitivity(results: Results) -> str:
    pair = results.study["sensitivity"]
    found = [apart(results, metric) for metric in (results.study["alignment"], FD)]
    lines = [_check(results, check) for check in found if check is not None]
    return table(
        ["metric", pair["sees"], pair["blind"], "standard error of the difference", "apart by", "seeds"], lines
    )


def _check(results: Results, check: Apart) -> list[Any]:
    values = [f"{check.sees:.4g}", f"{check.blind:.4g}", f"{check.se:.2g}", f"{check.ratio:.1f} standard errors"]
    return [named(results, check.metric), *values, check.seeds]


def _slopes(results: Results) -> str:
    lines = []
    for metric in (*compared(results), "caption_info", "caption_margin"):
        for axis in ("encoder", "unet"):
            for family, group in points(results, axis, metric).items():
                found = slope(group) if family else None
                if found is not None:
                    w, sizes = metric_at(results, metric), ", ".join(f"{p.parameters:,}" for p in shared_sizes(group))
                    at = "-" if w is None else f"{w:g}"
                    over = "seeds and captions" if found.captions else "seeds"
                    lines.append([named(results, metric), family, sizes, at, number(found), found.seeds, over])
    return table(
        ["metric", "sizes of", "parameters", "guidance", "a decade [95%]", "seeds", "the interval is over"], lines
    )


def _anchors(results: Results) -> str:
    names = [name for name, about in results.runs.items() if about.get("anchor")]
    pair = list(results.study["sensitivity"].values())
    metrics = list(dict.fromkeys(n.metric for n in results.numbers if n.run in names))
    lines = []
    for metric in metrics:
        found = [results.find(name, metric) for name in names]
        ends = [_mean(results, encoder, metric) for encoder in pair]
        lines.append([named(results, metric), *("-" if n is None else f"{n.value:.4g}" for n in found), *ends])
    note = "; ".join(f"{name}: {text}" for name, text in BASELINES.items() if name in names)
    commits = ", ".join(sorted({str(results.runs[name].get("commit") or "unknown") for name in names}))
    return table(["metric", *names, *pair], lines) + f"<p>{html.escape(note)}. Measured at commit {commits}.</p>"


def _mean(results: Results, encoder: str, metric: str) -> str:
    for group in points(results, "encoder", metric).values():
        for point in group:
            if point.name == encoder:
                return number(point.mean)
    return "-"


def _costs(results: Results) -> str:
    lines = []
    for name, known in results.study["encoders"].items():
        runs = [about for about in results.runs.values() if about.get("encoder") == name and "train_seconds" in about]
        base = [about["train_seconds"] for about in runs if about["unet"] == results.study["base"]]
        seconds = f"{sum(base) / len(base):.0f}" if base else "-"
        projector = runs[0]["projector_parameters"] if runs else "-"
        cells = [f"{known['parameters']:,}", known["width"], known["tokens"], known["milliseconds_a_caption"]]
        lines.append([name, known["family"] or "control", *cells, projector, seconds, known["cut"]])
    head = ["encoder", "family", "parameters", "width", "tokens", "ms a caption", "projector", "s to train a U-Net"]
    return table([*head, "captions cut"], lines)


def _runs(results: Results) -> str:
    names = [name for name in results.runs if "train_seconds" in results.runs[name]]
    sizes = ("encoder_parameters", "unet_parameters")
    keys = (*sizes, "seeds", "steps", "train_seconds", "validation_loss", "commit", "device")
    lines = []
    for name in names:
        about = results.runs[name]
        cells = [f"{v:.4g}" if isinstance(v := about[key], float) else v for key in keys]
        hashes = [str(about.get(key, ""))[:16] for key in ("model", "text_encoder")]
        lines.append([name, *cells, *hashes])
    head = ["run", *(key.replace("_", " ") for key in keys), "sha256 of the U-Net", "sha256 of the encoder"]
    protocols = "".join(
        f"<li value={k}><span class=hash>{html.escape(str(p))}</span>" for k, p in enumerate(results.protocols)
    )
    return table(head, lines, [f"run-{name}" for name in names]) + f"<p>Protocols:</p><ol>{protocols}</ol>"


def _rows(results: Results) -> str:
    """All rows, as they are in results.csv; a point of a figure leads to one of them, and that to its run."""
    lines = []
    for n in results.numbers:
        interval = "" if n.ci95 is None else f"[{n.ci95[0]:.4g}, {n.ci95[1]:.4g}]"
        cfg, se = ("" if v is None else f"{v:.3g}" for v in (n.cfg, n.se))
        run = f'<a href="#run-{html.escape(n.run)}">{html.escape(n.run)}</a>'
        cells = [run, n.metric, cfg, f"{n.value:.5g}", se, interval, n.n, n.protocol]
        lines.append(f"<tr id=row-{n.row}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{name}</th>" for name in ("run", "metric", "cfg", "value", "se", "95%", "n", "protocol"))
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _image(name: str, images: dict[str, Drawing]) -> str:
    """A figure whose points lead to their rows."""
    found = images[name]
    areas = "".join(_area(x, y, row) for x, y, row in found.links)
    source, (width, height) = base64.b64encode(found.png).decode(), found.size
    image = f'<img src="data:image/png;base64,{source}" width={width} height={height} usemap="#{name}" alt="{name}">'
    return f'{image}<map name="{name}">{areas}</map>'


def _area(x: int, y: int, row: Number) -> str:
    at = "" if row.cfg is None else f" at guidance {row.cfg:g}"
    title = html.escape(f"{row.run}{at}: {row.metric} {row.value:.4g}, row {row.row}")
    return f'<area shape=circle coords="{x},{y},5" href="#row-{row.row}" title="{title}">'


def sheets(results: Results, folder: Path) -> Image.Image | None:
    """The first pictures of the first seed of every encoder and U-Net, a row each, all from the same noise."""
    names = [n for n, about in results.runs.items() if about.get("train_seed") == 0]
    found = [(name, folder / "sheets" / sheet_name(name, results.study["at"])) for name in names]
    rows = [(name, Image.open(path).convert("RGB")) for name, path in found if path.is_file()]
    if not rows:
        return None
    times = max(1, round(64 / max(1, rows[0][1].height)))
    label, height = 170, rows[0][1].height * times
    canvas = Image.new("RGB", (label + rows[0][1].width * times, height * len(rows)), "white")
    draw = ImageDraw.Draw(canvas)
    for k, (name, picture) in enumerate(rows):
        size = (picture.width * times, picture.height * times)
        canvas.paste(picture.resize(size, Image.Resampling.NEAREST), (label, k * height))
        draw.text((6, k * height + height // 2 - 6), name.removesuffix(".0"), fill="black")
    return canvas
