"""`t2i study report DIR`: a page that holds everything, and its figures, made from the rows alone."""

from pathlib import Path
from typing import Any

from PIL import Image

from t2i.evaluation.rows import Row
from t2i.files import write_bytes, write_png, write_text
from t2i.report import page as html
from t2i.report.figures import Drawing
from t2i.report.grid import LabelledGrid
from t2i.report.page import Html, element
from t2i.study import figures
from t2i.study.conclusions import conclusion, format_interval, label_of
from t2i.study.contrasts import FD, compared, contrast, guidance_of, is_sensitive, points, shared_sizes, slope
from t2i.study.results import BASELINES, REPORT, Results, read_results, sheet_name

NOT_WEB = (
    "Not a statement about web-scale encoders: these encoders learnt a small grammar of captions and know nothing "
    "that a larger corpus would teach (rare words, facts, styles). What can be read here is what a frozen encoder's "
    "capacity and training do to exact binding under one latent diffusion model, and whether a distance follows."
)
NOT_FID = "Not comparable with published FIDs: distances are in features of their own, named at every figure."
LIMITS = (
    "Not a scaling law: every U-Net was trained for the same steps, not to convergence nor for equal compute, on one "
    "training of each encoder. An interval covers other seeds of the U-Net, and for rates and distances other "
    "captions; not another training of an encoder.",
    "Not a choice of the best guidance: comparisons are at the guidances that the recipe names; the curves show all.",
    "Not one test: each interval is of 95% on its own, and of several one may miss.",
)
BARS = (
    "Bars: 95%, over seeds and, apart from the information in captions, over captions. A slope is over the sizes that "
    "all of its seeds have. Dashed: controls."
)
SKILL_BARS = "Bars: 95% (Wilson) of one seed's captions, averaged over seeds, whose differences are not in them."
NOT_PHOTOS = "The skills' parser knows the renderer: it reads these scenes and no other images."


def write(folder: str | Path) -> list[str]:
    """Writes report.html and PNGs into the folder of a study's results, or of its rows alone; returns conclusions."""
    folder = Path(folder)
    if not (folder / "study.json").is_file() and (folder / REPORT / "study.json").is_file():
        folder /= REPORT
    results = read_results(folder)
    candidates = {"curves": figures.curves(results), "sizes": figures.sizes(results), "skills": figures.skills(results)}
    drawings = {name: drawing for name, drawing in candidates.items() if drawing is not None}
    for name in candidates.keys() - drawings.keys():
        (folder / f"{name}.png").unlink(missing_ok=True)
    for name, drawing in drawings.items():
        write_bytes(folder / f"{name}.png", drawing.png)
    if (sheet := sheets(results, folder)) is not None:
        sheet = sheet.quantize(256, dither=Image.Dither.NONE)
        write_png(folder / "sheets.png", sheet, optimize=True)
    write_text(folder / "report.html", render(results, drawings, sheet))
    return [*conclusion(results), f"{folder}: report.html, {', '.join(f'{name}.png' for name in drawings)}"]


def render(results: Results, drawings: dict[str, Drawing], sheet: Image.Image | None) -> str:
    """Returns the page; it begins with the sensitivity of the set-up."""
    study = results.study
    done = [run for run in study["planned"] if run in results.runs]
    first, *others = conclusion(results)
    parts = [element("p", f"{len(done)} of {len(study['planned'])} runs.")]
    parts.append(html.section("Sensitivity of the set-up", _sensitivity(results)))
    if others:
        parts.append(html.section("Conclusions", *(element("p", line, class_="result") for line in others)))
    if is_sensitive(results):
        parts.append(html.section("Slopes per decade of parameters", _slopes(results)))
    note = "Number of seeds in brackets; the shaded area is their envelope. Every point links to its row."
    flagged = {about["encoder"]: why for about in results.runs.values() if (why := about.get("own_family"))}
    biased = [element("p", f"{name}: {why}", class_="note") for name, why in flagged.items()]
    curves = _linked("curves", drawings["curves"])
    parts.append(html.section("Distance against alignment, by guidance", curves, element("p", note), *biased))
    if "sizes" in drawings:
        parts.append(html.section("Size", _linked("sizes", drawings["sizes"]), element("p", BARS)))
    if "skills" in drawings:
        parts.append(html.section("Skills", _linked("skills", drawings["skills"]), element("p", SKILL_BARS)))
    parts.append(html.section("Baselines", _baselines(results)))
    if sheet is not None:
        captions = element("ol", *(element("li", text) for text in study["captions"]))
        heading = f"Samples on the same noise, at guidance {study['at']:g}"
        parts.append(html.section(heading, element("div", html.image(sheet, "samples")), captions))
    limits = (element("p", text, class_="note") for text in _limits(results))
    parts += [html.section("Cost", _costs(results)), html.section("Limits", *limits)]
    parts += [html.section("Runs", _runs(results)), html.section("Rows", _rows(results))]
    return html.page("Text encoders and U-Nets of many sizes", first, *parts)


def _limits(results: Results) -> list[str]:
    """Returns the limits of what was measured."""
    scenes = results.study["alignment"] != "clip_score"
    verified = any(protocol.get("verified") for protocol in results.protocols)
    return [*[NOT_WEB] * scenes, *[NOT_FID] * (not verified), *LIMITS, *[NOT_PHOTOS] * scenes]


def _sensitivity(results: Results) -> Html:
    pair = results.study["sensitivity"]
    lines = []
    for metric in (results.study["alignment"], FD):
        if (pairs := contrast(results, metric)) is not None:
            values = [f"{pairs.sees:.4g}", f"{pairs.blind:.4g}", f"{pairs.se:.2g}"]
            lines.append([label_of(results, metric), *values, f"{pairs.ratio:.1f} standard errors", pairs.seeds])
    head = ["metric", pair["sees"], pair["blind"], "standard error of the difference", "difference", "seeds"]
    return html.table(head, lines)


def _slopes(results: Results) -> Html:
    lines = []
    for metric in (*compared(results), "caption_info", "caption_margin"):
        for axis in ("encoder", "unet"):
            for family, group in points(results, axis, metric).items():
                interval = slope(group) if family else None
                if interval is not None:
                    w = guidance_of(results, metric)
                    parameters = ", ".join(f"{point.parameters:,}" for point in shared_sizes(group))
                    over = "seeds and captions" if interval.captions else "seeds"
                    cells = [family, parameters, "-" if w is None else f"{w:g}", format_interval(interval)]
                    lines.append([label_of(results, metric), *cells, interval.seeds, over])
    head = ["metric", "sizes of", "parameters", "guidance", "a decade [95%]", "seeds", "the interval is over"]
    return html.table(head, lines)


def _baselines(results: Results) -> Html:
    names = [name for name, about in results.runs.items() if about.get("anchor")]
    pair = list(results.study["sensitivity"].values())
    lines = []
    for metric in dict.fromkeys(n.metric for n in results.rows if n.extra["run"] in names):
        numbers = [results.find(name, metric) for name in names]
        values = ["-" if n is None else f"{n.value:.4g}" for n in numbers]
        lines.append([label_of(results, metric), *values, *(_mean(results, encoder, metric) for encoder in pair)])
    note = "; ".join(f"{name}: {text}" for name, text in BASELINES.items() if name in names)
    commits = ", ".join(sorted({str(results.runs[name].get("commit") or "unknown") for name in names}))
    note = element("p", f"{note}. Measured at commit {commits}.")
    return Html(html.table(["metric", *names, *pair], lines) + note)


def _mean(results: Results, encoder: str, metric: str) -> str:
    for group in points(results, "encoder", metric).values():
        for point in group:
            if point.name == encoder:
                return format_interval(point.mean)
    return "-"


def _costs(results: Results) -> Html:
    lines = []
    for name, encoder in results.study["encoders"].items():
        runs = [about for about in results.runs.values() if about.get("encoder") == name and "train_seconds" in about]
        base = [about["train_seconds"] for about in runs if about["unet"] == results.study["base"]]
        seconds = f"{sum(base) / len(base):.0f}" if base else "-"
        projector = runs[0]["projector_parameters"] if runs else "-"
        cells = [f"{encoder['parameters']:,}", encoder["width"], encoder["tokens"], encoder["milliseconds_a_caption"]]
        lines.append([name, encoder["family"] or "control", *cells, projector, seconds, encoder["cut"]])
    head = ["encoder", "family", "parameters", "width", "tokens", "ms a caption", "projector", "s to train a U-Net"]
    return html.table([*head, "captions cut"], lines)


def _runs(results: Results) -> Html:
    runs = {name: about for name, about in results.runs.items() if "train_seconds" in about}
    sizes = ("encoder_parameters", "unet_parameters")
    keys = (*sizes, "seeds", "steps", "train_seconds", "validation_loss", "commit", "device")
    lines = []
    for name, about in runs.items():
        cells = [f"{v:.4g}" if isinstance(v := about[key], float) else v for key in keys]
        hashes = [str(about.get(key, ""))[:16] for key in ("model", "text_encoder")]
        lines.append([name, *cells, *hashes])
    head = ["run", *(key.replace("_", " ") for key in keys), "sha256 of the U-Net", "sha256 of the encoder"]
    protocols = element("ol", *(element("li", str(p), value=k) for k, p in enumerate(results.protocols)))
    table = html.table(head, lines, ids=[f"run-{name}" for name in runs])
    return Html(table + element("p", "Protocols:") + protocols)


def _rows(results: Results) -> Html:
    """Returns all rows, as in results.csv; a point of a figure links to its row, and that to its run."""
    lines: list[list[Any]] = []
    for n in results.rows:
        interval = "" if n.ci95 is None else f"[{n.ci95[0]:.4g}, {n.ci95[1]:.4g}]"
        cfg, se = ("" if v is None else f"{v:.3g}" for v in (n.protocol.guidance, n.se))
        run = element("a", n.extra["run"], href=f"#run-{n.extra['run']}")
        lines.append([run, n.metric, cfg, f"{n.value:.5g}", se, interval, n.protocol.n, n.extra["protocol"]])
    head = ("run", "metric", "cfg", "value", "se", "95%", "n", "protocol")
    return html.table(head, lines, ids=[f"row-{n.extra['line']}" for n in results.rows])


def _linked(name: str, drawing: Drawing) -> Html:
    """Returns a figure whose points link to their rows."""

    def title(row: Row) -> str:
        at = "" if row.protocol.guidance is None else f" at guidance {row.protocol.guidance:g}"
        return f"{row.extra['run']}{at}: {row.metric} {row.value:.4g}, row {row.extra['line']}"

    areas = [(x, y, f"#row-{row.extra['line']}", title(row)) for x, y, row in drawing.links]
    return html.image_map(drawing.png, name, areas)


def sheets(results: Results, folder: Path) -> Image.Image | None:
    """Returns the first images of the first seed of each encoder and U-Net, a row each, all from the same noise."""
    names = [name for name, about in results.runs.items() if about.get("train_seed") == 0]
    paths = {name: folder / "sheets" / sheet_name(name, results.study["at"]) for name in names}
    images = {name: Image.open(path).convert("RGB") for name, path in paths.items() if path.is_file()}
    if not images:
        return None
    width, height = next(iter(images.values())).size
    times = max(1, round(64 / max(1, height)))
    size = (width * times, height * times)
    grid = LabelledGrid("", size, rows=tuple(name.removesuffix(".0") for name in images))
    return grid.draw([image.resize(size, Image.Resampling.NEAREST) for image in images.values()])
