"""The page of an evaluation, which needs no other file and runs nothing, and its figures as PNGs."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from PIL import Image

from t2i.evaluation.figures import ANCHORS, bound_curve, curves, plain, trade
from t2i.evaluation.rows import Row, table, write_rows
from t2i.files import printable, write_png, write_text
from t2i.report.grid import LabelledGrid
from t2i.report.page import STYLE

MORE = """
main { max-width: 62rem; margin: auto }
figure { margin: 1rem 0 2rem; overflow-x: visible }
figure img { max-width: 100%; height: auto }
td { font-variant-numeric: tabular-nums; white-space: nowrap }
th { overflow-wrap: break-word; min-width: 4.5em }
table.wrap td { white-space: normal; overflow-wrap: anywhere }
.note { border-left: 4px solid; padding: .25rem .75rem }
"""
FIGURES = {"curves": curves, "trade": trade, "bound": bound_curve}
ALTS = {
    "curves": "every metric over guidance",
    "trade": "distance against alignment along the guidance",
    "bound": "the bound and what captions tell, by noise level",
}
DIGITS = {"kid": 5, "clip_score": 4, "rfd": 3}
BIASES = ["bias at these n", "FD∞", "FD∞, 95%"]
NOT_THIS = (
    "A distance compares two clouds of features. It knows neither prompts nor single pictures, and the features decide "
    "what it sees.",
    "Distances of unlike features, sizes, references or counts do not compare; only those called FID, with the same "
    "reference and count, compare with published FID.",
    "An interval says what other prompts and noise would give; that of a Frechet distance also, where the reference's "
    "pictures are at hand, what other reference pictures would; all else takes the reference as it is. None says what "
    "another training of the model would give.",
    "The best of several guidances, chosen and reported on the same pictures, looks better than it is.",
)


@dataclass(frozen=True)
class Page:
    """What the page says beside its numbers."""

    title: str
    summary: str
    notes: Sequence[str]
    settings: Mapping[str, str]
    command: str
    samples: tuple[LabelledGrid, list[Image.Image]] | None = None


def write(rows: Sequence[Row], folder: Path, page: Page) -> list[str]:
    """metrics.json, results.csv, report.html and the PNGs; their names. What an earlier run left is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, dict[str, Image.Image]] = {}
    for name, draw in FIGURES.items():
        if (light := draw(rows, "light")) is not None:
            dark = draw(rows, "dark")
            assert dark is not None
            pictures[name] = {"light": light, "dark": dark}
            write_png(folder / f"{name}.png", light)
        else:
            (folder / f"{name}.png").unlink(missing_ok=True)
    if page.samples is not None:
        write_png(folder / "samples.png", page.samples[0].draw(page.samples[1]))
    write_text(folder / "report.html", render(rows, page, pictures))
    about = {"title": page.title, "notes": list(page.notes), "settings": dict(page.settings), "command": page.command}
    write_rows(rows, folder, **about)
    made = ["metrics.json", "results.csv", "report.html", *(f"{name}.png" for name in pictures)]
    return made + (["samples.png"] if page.samples is not None else [])


def render(rows: Sequence[Row], page: Page, pictures: Mapping[str, Mapping[str, Image.Image]]) -> str:
    """The page."""
    parts = [f"<h1>{_text(page.title)}</h1>", f"<p>{_text(page.summary)}</p>"]
    if not any(row.metric == "fd" and row.protocol.verified for row in rows):
        parts.append('<p class="note">Nothing here compares with published FID: the features are others.</p>')
    parts += [f'<p class="note">{_text(note)}</p>' for note in page.notes]
    parts += [_figure(name, drawn) for name, drawn in pictures.items()]
    parts += _numbers(rows) + _differences(rows) + _anchors(rows) + _skills(rows) + _bound(rows)
    if page.samples is not None:
        parts.append("<h2>Samples: each row one prompt and one noise</h2>" + _sheet(*page.samples))
    parts.append("<h2>What this is not</h2><ul>" + "".join(f"<li>{_text(line)}</li>" for line in NOT_THIS) + "</ul>")
    parts.append(f"<h2>Protocol</h2>{_table([], [[k, v] for k, v in page.settings.items()], 'wrap')}")
    parts.append(f"<h2>Command</h2><pre>{_text(page.command)}</pre>")
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(page.title)}</title>\n<style>{STYLE}{MORE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def _numbers(rows: Sequence[Row]) -> list[str]:
    """Tables by guidance: those of features, and those of captions; each of one protocol but for the guidance."""
    parts = []
    for heading, chosen in (
        ("Distances", [r for r in rows if plain(r) and r.protocol.features is not None]),
        ("Alignment", [r for r in rows if plain(r) and r.metric == "clip_score"]),
    ):
        if not chosen:
            continue
        found = table(chosen, ["guidance"])
        guidances = list(dict.fromkeys(row.protocol.guidance for row in chosen))
        heads = ["guidance"]
        lines: list[list[str]] = [[_guidance(g)] for g in guidances]
        for metric, column in found.items():
            heads.append(column[0].label if metric in ("fd", "clip_score") else metric)
            of = {row.protocol.guidance: row for row in column}
            for line, g in zip(lines, guidances, strict=True):
                line.append(_value(of[g]))
            if metric == "fd":
                heads += BIASES
                for line, g in zip(lines, guidances, strict=True):
                    line += _debiased(of[g])
        first = chosen[0].protocol
        against = "" if first.n_ref is None else f", {first.n_ref} reference pictures"
        features = "" if first.features is None else f", features {first.named}, resize {first.resize}"
        caption = f"{first.n} pictures{against}{features}. ± one standard error, group jackknife."
        parts.append(f"<h2>{heading}</h2><p>{_text(caption)}</p>{_table(heads, lines)}")
    return parts


def _differences(rows: Sequence[Row]) -> list[str]:
    """Neighbouring guidances on the same prompts and noise."""
    chosen = [row for row in rows if "than_cfg" in row.extra]
    guidances = list(dict.fromkeys(g for row in rows if plain(row) and (g := row.protocol.guidance) is not None))
    steps = list(pairwise(guidances))
    if not steps:
        return []
    metrics = list(dict.fromkeys(row.metric for row in chosen))
    lines = []
    for a, b in steps:
        of = {r.metric: r for r in chosen if r.extra["than_cfg"] == a and r.protocol.guidance == b}
        lines.append([f"{a:g} → {b:g}", *(_value(of[m], signed=True) if m in of else "" for m in metrics)])
    heads = ["guidance", *(m.removesuffix("_difference") for m in metrics)]
    note = "Paired differences: the same prompts and noise on both sides, so what they share cancels. All pairs are in "
    return [f"<h2>From one guidance to the next</h2><p>{note}metrics.json.</p>{_table(heads, lines)}"]


def _anchors(rows: Sequence[Row]) -> list[str]:
    """What the distances are to be read against."""
    chosen = [r for r in rows if "anchor" in r.extra and r.protocol.features is not None and "than" not in r.extra]
    parts = []
    halves = [row for row in chosen if row.metric != "rfd"]
    if halves:
        costs = {row.extra["anchor"]: row for row in rows if row.metric == "fd_difference" and "than" in row.extra}
        found = table(halves, [])
        names = list(dict.fromkeys(str(row.extra["anchor"]) for row in halves))
        heads, lines = ["", *found], [[name] for name in names]
        for column in found.values():
            of = {row.extra["anchor"]: row for row in column}
            for line, name in zip(lines, names, strict=True):
                line.append(_value(of[name]) if name in of else "")
        if "fd" in found:
            heads += [*BIASES, "fd more than real pictures"]
            of = {row.extra["anchor"]: row for row in found["fd"]}
            for line, name in zip(lines, names, strict=True):
                line += [*_debiased(of[name]), _value(costs[name], signed=True) if name in costs else ""]
        for line in lines:
            line[0] = ANCHORS.get(line[0], line[0])
        n, n_ref = halves[0].protocol.n, halves[0].protocol.n_ref
        note = (
            f"One half of the reference ({n} pictures), as it is, through the autoencoder, and under noise (standard "
            f"deviation of 255), against its other half ({n_ref}). All lines compare with each other; their FD∞ "
            "compare with those above."
        )
        parts.append(f"<h2>Floors and ceilings</h2><p>{note}</p>{_table(heads, lines)}")
    parts += [
        f"<p>Autoencoder against its own originals (rFD): {_text(_value(row))}, n = {row.protocol.n}.</p>"
        for row in chosen
        if row.metric == "rfd"
    ]
    scored = [row for row in rows if row.metric == "clip_score" and "anchor" in row.extra]
    if scored:
        lines = [
            [ANCHORS[str(r.extra["anchor"])], _guidance(r.protocol.guidance), _value(r), f"{r.protocol.n}"]
            for r in scored
        ]
        heads = ["", "guidance", scored[0].label, "n"]
        note = (
            "Other prompts' pictures (what alignment is worth nothing), and the reference's own pictures and captions."
        )
        parts.append(f"<h2>Alignment: floor and ceiling</h2><p>{note}</p>{_table(heads, lines)}")
    return parts


def _skills(rows: Sequence[Row]) -> list[str]:
    chosen = [row for row in rows if row.metric.startswith("skill_")]
    if not chosen:
        return []
    columns: dict[tuple[str, str], dict[str, Row]] = {}
    for row in chosen:
        columns.setdefault((str(row.extra.get("anchor", "")), _guidance(row.protocol.guidance)), {})[row.metric] = row
    metrics = list(dict.fromkeys(row.metric for row in chosen))
    heads = ["skill", *(", ".join(part for part in pair if part) for pair in columns)]
    lines = [[m.removeprefix("skill_"), *(_value(c[m]) if m in c else "" for c in columns.values())] for m in metrics]
    return [f"<h2>Skills, read from the pictures</h2>{_table(heads, lines)}"]


def _bound(rows: Sequence[Row]) -> list[str]:
    chosen = [r for r in rows if "unit" in r.extra and "t" not in r.extra]
    if not chosen:
        return []
    lines = [
        [r.metric, f"{r.extra['variance']}", f"{r.extra['conditioning']}", _value(r), f"{r.extra['unit']}"]
        for r in chosen
    ]
    note = (
        f"{chosen[0].protocol.n} reference pictures. An upper bound of -log p of the latents, comparable only for one "
        "autoencoder; no guidance, sampler or judge is in it. caption_info, the difference of two bounds, is an "
        "estimate: below 0 captions mislead the model about these pictures, as where it knows others by heart."
    )
    return [f"<h2>The bound</h2><p>{note}</p>{_table(['', 'variance', 'under', 'value', 'unit'], lines)}"]


def _guidance(g: float | None) -> str:
    return "" if g is None else f"{g:g}"


def _value(row: Row, signed: bool = False) -> str:
    digits = next((d for name, d in DIGITS.items() if row.metric.startswith(name)), 3)
    return f"{row.value:{'+' if signed else ''}.{digits}f}" + ("" if row.se is None else f" ± {row.se:.{digits}f}")


def _debiased(row: Row) -> list[str]:
    """What the numbers of pictures lift it by, the value without that, and its interval."""
    assert row.bias is not None and row.value_inf is not None and row.ci95 is not None
    low, high = (end - row.bias for end in row.ci95)
    return [f"{row.bias:.3f}", f"{row.value_inf:.3f}", f"{low:.3f} to {high:.3f}"]


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]], kind: str = "") -> str:
    top = "<tr>" + "".join(f"<th>{_text(head)}</th>" for head in heads) + "</tr>" if heads else ""
    body = "".join(
        f"<tr><th>{_text(line[0])}</th>" + "".join(f"<td>{_text(cell)}</td>" for cell in line[1:]) + "</tr>"
        for line in lines
    )
    return f'<div><table class="{kind}">{top}{body}</table></div>'


def _figure(name: str, drawn: Mapping[str, Image.Image]) -> str:
    dark = f'<source media="(prefers-color-scheme: dark)" srcset="{_data(drawn["dark"])}">'
    return f'<figure><picture>{dark}<img alt="{ALTS[name]}" src="{_data(drawn["light"])}"></picture></figure>'


def _sheet(sheet: LabelledGrid, pictures: Sequence[Image.Image]) -> str:
    found = iter(pictures)
    head = "<tr><td></td>" + "".join(f"<th>{_text(column)}</th>" for column in sheet.columns) + "</tr>"
    body = ""
    for row in sheet.rows:
        cells = ""
        for column in sheet.columns:
            said = _text(f"{row}, {column}")
            picture = next(found)
            size = f'width="{picture.width}" height="{picture.height}"'
            cells += f'<td><img {size} alt="{said}" src="{_data(picture)}"></td>'
        body += f"<tr><th>{_text(row)}</th>{cells}</tr>"
    return f"<div><table>{head}{body}</table></div>"


def _data(picture: Image.Image) -> str:
    data = io.BytesIO()
    picture.save(data, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def _text(text: str) -> str:
    return html.escape(printable(text))
