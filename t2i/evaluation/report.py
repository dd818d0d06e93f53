"""The output of an evaluation: rows, figures as PNGs, a page that holds everything, lines for the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image

from t2i.data.transforms import to_float, to_pixels
from t2i.evaluation.baselines import blind_to, implication
from t2i.evaluation.evaluation import Evaluation
from t2i.evaluation.figures import BASELINES, bound_curve, curves, debiased, is_plain, trade
from t2i.evaluation.generated import ModelSamples, SavedSamples
from t2i.evaluation.measures import FEATURE_METRICS, PARTS
from t2i.evaluation.reference import ReferenceImages
from t2i.evaluation.rows import Row, table, write_rows
from t2i.evaluation.variance import variance_table
from t2i.files import write_bytes, write_png, write_text
from t2i.report import page as html
from t2i.report.figures import Drawing, Theme
from t2i.report.grid import LabelledGrid
from t2i.report.page import Html

FIGURES = {"curves": curves, "trade": trade, "bound": bound_curve}
ALTS = {
    "curves": "every metric over guidance",
    "trade": "distance against alignment along the guidance",
    "bound": "the bound and the information in captions, by noise level",
}
DIGITS = {"kid": 5, "clip_score": 4, "rfd": 3}
DEBIASED = ["bias at these n", "FD∞", "FD∞, 95%"]
PRINTED = (*FEATURE_METRICS, *PARTS, "clip_score", "skill_binding", "caption_info")  # on the terminal
VISIBLE = 8.0  # of 255: pixel noise that a viewer sees
SHOWN_SIDE = 128  # pixels: small images are enlarged to about this width
LIMITS = (
    "A distance compares two distributions of features. It depends neither on prompts nor on single images, and is "
    "blind to what the features ignore.",
    "Distances of unlike features, sizes, references or counts do not compare; only those called FID, with the same "
    "reference and count, compare with published FID.",
    "An interval covers other prompts and noise; that of a Fréchet distance also, where the reference's images are "
    "available, other reference images; all others take the reference as fixed. None covers another training of the "
    "model.",
    "The best of several guidances, chosen and reported on the same images, looks better than it is.",
)


@dataclass(frozen=True)
class Page:
    """The content of the page beside the rows."""

    title: str
    summary: str
    notes: Sequence[str]
    settings: Mapping[str, str]
    command: str
    samples: tuple[LabelledGrid, list[Image.Image]] | None = None


def page_of(
    subject: ModelSamples | SavedSamples,
    evaluation: Evaluation,
    reference: str,
    origins: list[int] | None,
    command: str,
) -> Page:
    """Returns the page of an evaluation; `origins` are the reference images whose captions the prompts are."""
    protocol = evaluation.protocol(subject, None)
    count = "" if protocol.n_ref is None else f" of {protocol.n_ref} images"
    how = ", ".join(str(x) for x in (subject.solver, subject.steps and f"{subject.steps} steps") if x)
    summary = f"{len(subject.prompts)} images at each guidance, {how or 'saved'}, against {reference}{count}."
    settings = {key: value for key, value in protocol.model_dump(mode="json").items() if value is not None}
    settings |= evaluation.compared(subject)
    settings |= {"size": f"{subject.size[0]}x{subject.size[1]}", "batch": evaluation.batch, "torch": torch.__version__}
    settings = {key: str(value) for key, value in settings.items()}
    samples = sample_grid(subject, evaluation, origins)
    return Page(f"Evaluation of {subject.name}", summary, evaluation.notes, settings, command, samples)


def sample_grid(
    subject: ModelSamples | SavedSamples, evaluation: Evaluation, origins: list[int] | None
) -> tuple[LabelledGrid, list[Image.Image]]:
    """Returns the first images of each guidance, beside the reference's own where the prompts are its captions."""
    reference, rows = evaluation.reference, range(min(evaluation.shown, len(subject.prompts)))
    sets = subject.image_sets(evaluation.store, evaluation.batch)
    columns = {("as saved" if g is None else f"cfg = {g:g}"): images.read(rows) for g, images in sets.items()}
    if origins is not None and isinstance(reference, ReferenceImages):
        columns = {"reference": reference.read([origins[i] for i in rows])} | columns
    images = {name: to_pixels(to_float(pixels)) for name, pixels in columns.items()}
    images |= {name: column[: len(rows)] for name, column in evaluation.columns.items()}
    prompts = tuple(subject.prompts[i] for i in rows)
    return enlarged("Samples: one prompt and one noise a row", images, prompts, list(rows))


def enlarged(
    title: str, columns: Mapping[str, Sequence[Image.Image]], labels: Sequence[str], rows: Sequence[int]
) -> tuple[LabelledGrid, list[Image.Image]]:
    """Returns a grid of some rows of columns of images; small images are enlarged."""
    width, height = next(iter(columns.values()))[0].size
    times = max(1, round(SHOWN_SIDE / max(width, height)))
    size = (width * times, height * times)
    images = [column[row].resize(size, Image.Resampling.NEAREST) for row in rows for column in columns.values()]
    return LabelledGrid(title, size, tuple(columns), tuple(labels)), images


def write(rows: Sequence[Row], folder: Path, page: Page) -> list[str]:
    """Writes metrics.json, results.csv, report.html and the PNGs over those of an earlier run; returns their names."""
    figures: dict[str, dict[Theme, Drawing]] = {}
    for name, draw in FIGURES.items():
        if (light := draw(rows, "light")) is not None and (dark := draw(rows, "dark")) is not None:
            figures[name] = {"light": light, "dark": dark}
            write_bytes(folder / f"{name}.png", light.png)
        else:
            (folder / f"{name}.png").unlink(missing_ok=True)
    if page.samples is not None:
        write_png(folder / "samples.png", page.samples[0].draw(page.samples[1]))
    write_text(folder / "report.html", render(rows, page, figures))
    head = {"title": page.title, "notes": list(page.notes), "settings": dict(page.settings), "command": page.command}
    write_rows(rows, folder, **head)
    names = ["metrics.json", "results.csv", "report.html", *(f"{name}.png" for name in figures)]
    return names + (["samples.png"] if page.samples is not None else [])


def render(rows: Sequence[Row], page: Page, figures: Mapping[str, Mapping[Theme, Drawing]]) -> str:
    """Returns the page."""
    notes = list(page.notes)
    if not any(row.metric == "fd" and row.protocol.verified for row in rows):
        notes.insert(0, "Nothing here compares with published FID: the features are others.")
    chosen = [row for row in rows if is_plain(row) and row.metric in ("fd", *PARTS)]
    if chosen and (noise := max(blind_to(row, rows) or 0 for row in chosen)) >= VISIBLE:
        text = f"These features cannot tell noise of {noise:g}/255, which is plain to see, from none"
        notes.insert(0, f"{text}: images that look wrong may measure as well as real ones. Look at the samples.")
    parts = [html.element("p", note, class_="note") for note in notes]
    for name, drawn in figures.items():
        image = html.image(drawn["light"].png, ALTS[name], dark=drawn["dark"].png)
        parts.append(html.element("figure", image))
    parts += [*_numbers(rows), *_differences(rows), *_baselines(rows), *_skills(rows), *_bound(rows), *_variance(rows)]
    if page.samples is not None:
        grid, images = page.samples
        parts.append(html.section("Samples: each row one prompt and one noise", grid.tables(images)))
    limits = html.element("ul", *(html.element("li", line) for line in LIMITS))
    parts += [html.section("Limits", limits), html.settings(page.settings, page.command, "Protocol")]
    return html.page(page.title, page.summary, *parts)


def _numbers(rows: Sequence[Row]) -> list[Html]:
    """Returns tables by guidance: of feature metrics and of alignment, each of one protocol apart from the guidance."""
    parts = []
    for heading, chosen in (
        ("Distances", [r for r in rows if is_plain(r) and r.protocol.features is not None]),
        ("Alignment", [r for r in rows if is_plain(r) and r.metric == "clip_score"]),
    ):
        if not chosen:
            continue
        guidances = list(dict.fromkeys(row.protocol.guidance for row in chosen))
        head, lines = ["guidance"], [[_guidance(g)] for g in guidances]
        for metric, column in table(chosen, ["guidance"]).items():
            head.append(column[0].label if metric in ("fd", "clip_score") else metric)
            head += DEBIASED if metric == "fd" else []
            by_guidance = {row.protocol.guidance: row for row in column}
            for line, g in zip(lines, guidances, strict=True):
                line += [_value(by_guidance[g]), *(_debiased(by_guidance[g]) if metric == "fd" else [])]
        if any(texts := [_implied([row for row in chosen if row.protocol.guidance == g], rows) for g in guidances]):
            head.append("what the baselines imply")
            lines = [[*line, html.element("div", text, class_="text")] for line, text in zip(lines, texts, strict=True)]
        first = chosen[0].protocol
        against = "" if first.n_ref is None else f", {first.n_ref} reference images"
        features = "" if first.features is None else f", features {first.named}, resize {first.resize}"
        caption = f"{first.n} images{against}{features}. ± one standard error, group jackknife."
        parts.append(html.section(heading, html.element("p", caption), html.table(head, lines)))
    return parts


def _implied(chosen: Sequence[Row], rows: Sequence[Row]) -> str:
    """Returns what the baselines imply for some numbers, those of one implication together."""
    metrics: dict[str, list[str]] = {}
    for row in chosen:
        if text := implication(row, rows):
            metrics.setdefault(text, []).append(row.metric.replace("_", " "))
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in metrics.items())


def _differences(rows: Sequence[Row]) -> list[Html]:
    """Returns the table of paired differences between neighbouring guidances."""
    chosen = [row for row in rows if "than_cfg" in row.extra]
    guidances = list(dict.fromkeys(g for row in rows if is_plain(row) and (g := row.protocol.guidance) is not None))
    if len(guidances) < 2:
        return []
    metrics = list(dict.fromkeys(row.metric for row in chosen))
    lines = []
    for a, b in pairwise(guidances):
        by_metric = {r.metric: r for r in chosen if r.extra["than_cfg"] == a and r.protocol.guidance == b}
        cells = [_value(by_metric[m], signed=True) if m in by_metric else "" for m in metrics]
        lines.append([f"{a:g} → {b:g}", *cells])
    head = ["guidance", *(m.removesuffix("_difference") for m in metrics)]
    note = "Paired: the same prompts and noise on both sides, so what they share cancels. metrics.json has all pairs."
    return [html.section("From one guidance to the next", html.element("p", note), html.table(head, lines))]


def _baselines(rows: Sequence[Row]) -> list[Html]:
    """Returns the tables of baselines: halves of the reference, rFD, alignment of shuffled and of real captions."""
    chosen = [r for r in rows if "anchor" in r.extra and r.protocol.features is not None and "than" not in r.extra]
    parts = []
    if halves := [row for row in chosen if row.metric != "rfd"]:
        costs = {row.extra["anchor"]: row for row in rows if row.metric == "fd_difference" and "than" in row.extra}
        columns = table(halves, [])
        names = list(dict.fromkeys(str(row.extra["anchor"]) for row in halves))
        by_name = {metric: {row.extra["anchor"]: row for row in column} for metric, column in columns.items()}
        head = ["", *columns, *([*DEBIASED, "fd more than real images"] if "fd" in columns else [])]
        lines = []
        for name in names:
            line = [BASELINES.get(name, name)]
            line += [_value(by_name[m][name]) if name in by_name[m] else "" for m in columns]
            if "fd" in columns:
                line += [*_debiased(by_name["fd"][name]), _value(costs[name], signed=True) if name in costs else ""]
            lines.append(line)
        n, n_ref = halves[0].protocol.n, halves[0].protocol.n_ref
        note = (
            f"One half of the reference ({n} images), as it is, through the autoencoder, and with noise (standard "
            f"deviation of 255), against its other half ({n_ref}). All lines compare with each other; their FD∞ "
            "compare with those above."
        )
        parts.append(html.section("Baselines of distance", html.element("p", note), html.table(head, lines)))
    for row in (row for row in chosen if row.metric == "rfd"):
        text = f"Autoencoder against its own originals (rFD): {_value(row)}, n = {row.protocol.n}."
        parts.append(html.element("p", text))
    if scored := [row for row in rows if row.metric == "clip_score" and "anchor" in row.extra]:
        lines = [
            [BASELINES[str(r.extra["anchor"])], _guidance(r.protocol.guidance), _value(r), r.protocol.n] for r in scored
        ]
        note = "Images with other images' prompts (zero alignment), and the reference's own images and captions."
        numbers = html.table(["", "guidance", scored[0].label, "n"], lines)
        parts.append(html.section("Baselines of alignment", html.element("p", note), numbers))
    return parts


def _skills(rows: Sequence[Row]) -> list[Html]:
    chosen = [row for row in rows if row.metric.startswith("skill_")]
    if not chosen:
        return []
    columns: dict[tuple[str, str], dict[str, Row]] = {}
    for row in chosen:
        columns.setdefault((str(row.extra.get("anchor", "")), _guidance(row.protocol.guidance)), {})[row.metric] = row
    metrics = list(dict.fromkeys(row.metric for row in chosen))
    plain = [row for row in chosen if is_plain(row)]
    guidances = dict.fromkeys(row.protocol.guidance for row in plain)
    head = ["skill", *(", ".join(part for part in pair if part) for pair in columns)]
    lines = [[m.removeprefix("skill_"), *(_value(c[m]) if m in c else "" for c in columns.values())] for m in metrics]
    numbers = html.table(head, lines)
    texts = {_guidance(g): _implied([r for r in plain if r.protocol.guidance == g], rows) for g in guidances}
    notes = [html.element("p", f"{at}: {text}" if at else text) for at, text in texts.items() if text]
    return [html.section("Skills, read from the images", numbers, *notes)]


def _bound(rows: Sequence[Row]) -> list[Html]:
    chosen = [r for r in rows if "unit" in r.extra and "t" not in r.extra]
    if not chosen:
        return []
    lines = [[r.metric, r.extra["variance"], r.extra["conditioning"], _value(r), r.extra["unit"]] for r in chosen]
    note = (
        f"{chosen[0].protocol.n} reference images. An upper bound of -log p of the latents, comparable only for one "
        "autoencoder; no guidance, sampler or judge is part of it. caption_info, the difference of two bounds, is an "
        "estimate: below 0 captions mislead the model about these images, as where it has memorised others."
    )
    numbers = html.table(["", "variance", "conditioning", "value", "unit"], lines)
    return [html.section("The bound", html.element("p", note), numbers)]


def _variance(rows: Sequence[Row]) -> list[Html]:
    if not any("way" in row.extra for row in rows):
        return []
    head, *lines = variance_table(rows)
    return [html.section("The variance of Algorithm 2, on the same noise", html.table(head, lines))]


def printed_lines(rows: Sequence[Row]) -> list[str]:
    """Returns the lines that the terminal shows: the main numbers of the subject."""
    return [_line(row, rows) for row in rows if "anchor" not in row.extra and row.metric in PRINTED]


def _line(row: Row, rows: Sequence[Row]) -> str:
    guidance = row.protocol.guidance
    parts = [row.label, "" if guidance is None else f"cfg {guidance:g}", str(row.extra.get("variance", ""))]
    value = f"{row.value:.4f}" + ("" if row.se is None else f" ± {row.se:.4f}")
    limit = "" if row.value_inf is None else f"(FD∞ {debiased(row):.4f})"
    implied = implication(row, rows)
    return "  ".join(part for part in (*parts, value, limit, implied and f"[{implied}]") if part)


def _guidance(g: float | None) -> str:
    return "" if g is None else f"{g:g}"


def _value(row: Row, signed: bool = False) -> str:
    digits = next((d for name, d in DIGITS.items() if row.metric.startswith(name)), 3)
    return f"{row.value:{'+' if signed else ''}.{digits}f}" + ("" if row.se is None else f" ± {row.se:.{digits}f}")


def _debiased(row: Row) -> list[str]:
    """Formats the bias of the image counts, the value without it, and its interval."""
    assert row.bias is not None and row.value_inf is not None and row.ci95 is not None
    low, high = (end - row.bias for end in row.ci95)
    return [f"{row.bias:.3f}", f"{row.value_inf:.3f}", f"{low:.3f} to {high:.3f}"]
