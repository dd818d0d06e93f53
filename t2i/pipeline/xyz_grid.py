"""Grids over up to three settings (X/Y/Z plots): all cells are checked, drawn from one noise, and laid out."""

import math
import shlex
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from t2i.data.decode import UnreadableImage, decode
from t2i.errors import RunFailed
from t2i.files import write_png, write_text
from t2i.pipeline.jobs import Axis, Job, cell_jobs
from t2i.pipeline.outputs import ImageFolder, read_settings
from t2i.pipeline.pipeline import Pipeline
from t2i.pipeline.request import MOST_IMAGES
from t2i.pipeline.resolved import PreparedRequest, ResolvedRequest
from t2i.pipeline.run_jobs import Session, open_pipeline, request_of, settings_key, settings_of, warn_truncated
from t2i.progress import progress, say
from t2i.report import page
from t2i.report.grid import LabelledGrid

UNUSED = Axis("", "", [""], [None])


@dataclass(frozen=True)
class Plot:
    """Axes over the settings that all cells share; `words` are those of the command that draws the grid again."""

    prompt: str | None
    axes: list[Axis]
    given: dict[str, Any]
    words: list[str]

    @property
    def sides(self) -> list[Axis]:
        """The axes of panels, rows and columns."""
        by_flag = {axis.flag: axis for axis in self.axes}
        return [by_flag.get(flag, UNUSED) for flag in ("-z", "-y", "-x")]


def draw_grid(session: Session, plot: Plot) -> str:
    """Draws every cell and the sheet; returns a line about them. Nothing is written before every cell is checked."""
    total = math.prod(len(side.values) for side in plot.sides)
    if total > MOST_IMAGES:
        raise ValueError(f"the axes have {total} cells, more than {MOST_IMAGES}: give fewer values")
    jobs = list(cell_jobs(plot.sides, plot.prompt, plot.given))
    pipeline, made_by = open_pipeline(session, jobs[0])
    resolved: list[ResolvedRequest] = []
    for job in jobs:
        with job.located():
            resolved.append(pipeline.resolve(request_of(job, 1)))
    panels, rows, columns = (side.labels for side in plot.sides)
    varied = [axis.name for axis in plot.axes]
    title = plot.prompt if plot.prompt is not None and "prompt" not in varied else f"by {', '.join(varied)}"
    sheet = LabelledGrid(title, (resolved[0].width, resolved[0].height), columns, rows, panels)
    size = sheet.layout.size
    old = _drawn(session.out) if session.resume else {}
    settings = [settings_of(request, 0, job, made_by) for job, request in zip(jobs, resolved, strict=True)]
    cells = [Cell(*of, old.get(settings_key(of[2]))) for of in zip(jobs, resolved, settings, strict=True)]
    missing = [cell for cell in cells if cell.path is None]
    for cell in missing[:1]:
        with cell.job.located():  # before the folder is made: a fault in a prompt leaves nothing behind
            cell.prepared = pipeline.prepare(cell.resolved)
    if session.resume:
        say(f"{len(cells) - len(missing)} of {len(cells)} cells are in {session.out} already: not drawn again")
    what = f"{len(cells)} cells" + (f", seed {plot.given['seed']}" if "seed" in plot.given else "")
    say(f"{what}, a sheet of {size[0]}x{size[1]} pixels")
    images = ImageFolder(session.out)
    try:
        _fill(pipeline, missing, images)
    except KeyboardInterrupt:
        done = sum(cell.path is not None for cell in cells)
        command = shlex.join(["t2i", "grid", "--resume", *plot.words])
        say(f"interrupted; {done} of {len(cells)} cells are in {session.out}; to go on:\n{command}")
        raise
    except torch.OutOfMemoryError as error:
        raise RunFailed(f"out of memory: lower --size ({str(error).splitlines()[0]})") from None
    path = next(path for i in count(images.first) if not (path := session.out / f"sheet-{i:05}.png").exists())
    shown = [_read(cell) for cell in cells]
    write_png(path, sheet.draw(shown), new=True)
    common = {k: str(v) for k, v in settings[0].items() if all(row.get(k) == v for row in settings)}
    listed = common | {axis.name: " | ".join(axis.written) for axis in plot.axes}
    made = page.settings(listed, shlex.join(["t2i", "grid", *plot.words]))
    write_text(path.with_suffix(".html"), page.page(title, "", sheet.tables(shown), made), new=True)
    return f"{path} and {path.with_suffix('.html').name}: {what}"


@dataclass
class Cell:
    """One image of the sheet; `path` is its file once it is drawn."""

    job: Job
    resolved: ResolvedRequest
    settings: dict[str, Any]
    path: Path | None
    prepared: PreparedRequest | None = None


def _drawn(folder: Path) -> dict[str, Path]:
    """Returns the images of t2i in a folder, by the settings inside them."""
    images = {}
    for path in sorted(folder.glob("[0-9]*.png")):
        try:
            settings = read_settings(path)
        except ValueError:
            continue  # another program's
        settings.pop("schema_version", None)
        images[settings_key(settings)] = path
    return images


def _read(cell: Cell) -> Image.Image:
    assert cell.path is not None
    try:
        return decode(cell.path.read_bytes(), "white")
    except (OSError, UnreadableImage) as error:
        raise RunFailed(f"{cell.path}: cannot be read again ({error}); delete it and give --resume") from None


def _fill(pipeline: Pipeline, cells: list[Cell], images: ImageFolder) -> None:
    """Draws cells, each written at once."""
    done = 0

    def step(*_: Any) -> None:
        nonlocal done
        done += 1
        report(done)

    with progress("steps", sum(len(cell.resolved.plan.timesteps) for cell in cells)) as report:
        for cell in cells:
            with cell.job.located():
                prepared, cell.prepared = cell.prepared or pipeline.prepare(cell.resolved), None
                warn_truncated(prepared)
                image = next(pipeline.run(prepared, callback=step))[0]
            cell.path = images.add(image, cell.settings)
