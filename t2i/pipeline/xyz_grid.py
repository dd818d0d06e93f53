"""Grids over up to three settings (X/Y/Z plots): all cells are checked, drawn from one noise, and laid out."""

import math
import shlex
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from t2i.data.decode import decode
from t2i.errors import RunFailed
from t2i.files import read_bytes, write_png, write_text
from t2i.pipeline.jobs import Axis, cell_jobs
from t2i.pipeline.outputs import ImageFolder, resumed, settings_key
from t2i.pipeline.request import MOST_IMAGES
from t2i.pipeline.resolved import PreparedRequest
from t2i.pipeline.run_jobs import Session, open_pipeline, resolve_job, warn_truncated
from t2i.progress import counted, progress, say
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
    cells = [resolve_job(pipeline, made_by, job, session) for job in jobs]
    settings = [cell.settings[0] for cell in cells]
    panels, rows, columns = (side.labels for side in plot.sides)
    varied = [axis.name for axis in plot.axes]
    title = plot.prompt if plot.prompt is not None and "prompt" not in varied else f"by {', '.join(varied)}"
    sheet = LabelledGrid(title, (cells[0].request.width, cells[0].request.height), columns, rows, panels)
    size = sheet.layout.size
    with resumed(session.out) if session.resume else nullcontext({}) as present:
        paths = [present.get(settings_key(one)) for one in settings]
        missing = [i for i, path in enumerate(paths) if path is None]
        prepared: dict[int, PreparedRequest] = {}
        for i in missing[:1]:
            with cells[i].job.located():  # before the first image: a fault in a prompt leaves nothing behind
                prepared[i] = pipeline.prepare(cells[i].request)
        if session.resume:
            old = len(cells) - len(missing)
            say(f"{session.out} holds {old} of {counted(len(cells), 'cell')} already: not drawn again")
        what = counted(len(cells), "cell") + (f", seed {plot.given['seed']}" if "seed" in plot.given else "")
        say(f"{what}, a sheet of {size[0]}x{size[1]} pixels")
        images, done = ImageFolder(session.out), count(1)
        try:
            with progress("steps", sum(len(cells[i].request.plan.timesteps) for i in missing)) as report:
                for i in missing:
                    with cells[i].job.located():
                        ready = prepared.pop(i, None) or pipeline.prepare(cells[i].request)
                        warn_truncated(ready)
                        image = next(pipeline.run(ready, callback=lambda *_: report(next(done))))[0]
                    paths[i] = images.add(image, settings[i])
        except KeyboardInterrupt:
            written = len(cells) - paths.count(None)
            command = shlex.join(["t2i", "grid", "--resume", *plot.words])
            say(f"interrupted; {written} of {len(cells)} cells are in {session.out}; to go on:\n{command}")
            raise
        except torch.OutOfMemoryError as error:
            raise RunFailed(f"out of memory: lower --size ({str(error).splitlines()[0]})") from None
        path = next(path for i in count(images.first) if not (path := session.out / f"sheet-{i:05}.png").exists())
        shown = [_read(cell) for cell in paths if cell is not None]
        write_png(path, sheet.draw(shown), new=True)
        common = {k: str(v) for k, v in settings[0].items() if all(row.get(k) == v for row in settings)}
        listed = common | {axis.name: " | ".join(axis.written) for axis in plot.axes}
        made = page.settings(listed, shlex.join(["t2i", "grid", *plot.words]))
        write_text(path.with_suffix(".html"), page.page(title, "", sheet.tables(shown), made), new=True)
    return f"{path} and {path.with_suffix('.html').name}: {what}"


def _read(path: Path) -> Image.Image:
    try:
        return decode(read_bytes(path), "white")
    except ValueError as error:
        raise RunFailed(f"{path}: cannot be read again ({error}); delete it and give --resume") from None
