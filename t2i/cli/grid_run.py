"""The cells of `t2i grid`, each one picture from the same noise: all are checked, then drawn, then laid out."""

import math
import shlex
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, product
from pathlib import Path
from typing import Any

import torch
import typer
from PIL import Image

from t2i.cli.generate_options import Order, say
from t2i.cli.generate_request import request_of, settings_key, settings_of
from t2i.cli.generate_run import Session, _as_flags, _open
from t2i.cli.grid_axes import Axis
from t2i.data.decode import UnreadableImage, decode
from t2i.errors import RunFailed
from t2i.files import write_png, write_text
from t2i.pipeline import Pipeline
from t2i.pipeline.job import Job, Resolved
from t2i.pipeline.outputs import Pictures, read_settings
from t2i.pipeline.request import MOST_PICTURES
from t2i.progress import progress
from t2i.report import page
from t2i.report.grid import LabelledGrid

# The pipeline's arguments by the names of the axes.
NAMES = {"num_inference_steps": "steps", "guidance_scale": "cfg", "seeds: ": "seed: "}
FLAGS = {"image": "--init-image"}  # of settings that are called otherwise
NOWHERE = Axis("", "", [""], [None])


@dataclass(frozen=True)
class Plot:
    """What is asked for: axes over the settings that all cells share.

    `written` holds the flags that the command repeats as they were given.
    """

    prompt: str | None
    axes: list[Axis]
    given: dict[str, Any]
    model: Path
    out: Path
    device: str | None
    written: dict[str, str]
    resume: bool = False

    @property
    def sides(self) -> list[Axis]:
        """Panels, rows and columns."""
        found = {axis.flag: axis for axis in self.axes}
        return [found.get(flag, NOWHERE) for flag in ("-z", "-y", "-x")]

    @property
    def orders(self) -> Iterator[Order]:
        """One a cell, panel by panel and row by row."""
        for indices in product(*(range(len(side.values)) for side in self.sides)):
            at = [(side, i) for side, i in zip(self.sides, indices, strict=True) if side is not NOWHERE]
            options = self.given | {side.name: side.values[i] for side, i in at}
            prompt = options.pop("prompt", self.prompt)
            assert prompt is not None
            where = ", ".join(f"{side.name} = {side.written[i]}" for side, i in at)
            yield Order([prompt], {k: v for k, v in options.items() if v is not None}, where=where)

    def command(self, *, resume: bool = False) -> str:
        """The words that draw it again, with the seed that was drawn."""
        words = ["t2i", "grid"]
        for flag, text in self.written.items():
            words += [flag, text]
        for name, value in self.given.items():
            words.append(f"{FLAGS.get(name, '--' + name)}={value}")
        words += ["-o", str(self.out)] + (["--device", self.device] if self.device else [])
        words += ["--resume"] if resume else []
        return shlex.join(words + ([] if self.prompt is None else ["--", self.prompt]))


def run(plot: Plot) -> None:
    """Draw every cell and the sheet; nothing is written before every cell is checked."""
    cells = math.prod(len(side.values) for side in plot.sides)
    if cells > MOST_PICTURES:
        raise ValueError(f"the axes have {cells} cells, more than {MOST_PICTURES}: give fewer values")
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        said: set[str] = set()

        def show(message: Warning | str, *_: Any, **__: Any) -> None:
            if str(message) not in said:
                said.add(str(message))
                say(str(message))

        warnings.showwarning = show
        orders = list(plot.orders)
        session = Session(plot.model, plot.out, plot.device, 1, True, False, None)
        with _as_flags():
            pipeline, made_by = _open(session, orders[0])
        _draw(plot, pipeline, made_by, orders)


def _draw(plot: Plot, pipeline: Pipeline, made_by: dict[str, Any], orders: list[Order]) -> None:
    asked = []
    for order in orders:
        with _in(order):
            asked.append(pipeline.resolve(request_of(order, 1)))
    panels, rows, columns = (side.labels if side is not NOWHERE else ("",) for side in plot.sides)
    varied = [axis.name for axis in plot.axes]
    title = plot.prompt if plot.prompt is not None and "prompt" not in varied else f"by {', '.join(varied)}"
    sheet = LabelledGrid(title, (asked[0].width, asked[0].height), columns, rows, panels)
    size = sheet.layout.size
    old = _drawn(plot.out) if plot.resume else {}
    settings = [settings_of(found, 0, order, made_by) for order, found in zip(orders, asked, strict=True)]
    cells = [Cell(*of, old.get(settings_key(of[2]))) for of in zip(orders, asked, settings, strict=True)]
    left = [cell for cell in cells if cell.path is None]
    for cell in left[:1]:
        with _in(cell.order):  # before the folder is made: a fault in a prompt leaves nothing behind
            cell.job = pipeline.prepare(cell.asked)
    if plot.resume:
        say(f"{len(cells) - len(left)} of {len(cells)} cells are in {plot.out} already: not drawn again")
    what = f"{len(cells)} cells" + (f", seed {plot.given['seed']}" if "seed" in plot.given else "")
    say(f"{what}, a sheet of {size[0]}x{size[1]} pixels")
    pictures = Pictures(plot.out)
    try:
        _fill(pipeline, left, pictures)
    except KeyboardInterrupt:
        done = sum(cell.path is not None for cell in cells)
        say(f"interrupted; {done} of {len(cells)} cells are in {plot.out}; to go on:\n{plot.command(resume=True)}")
        raise
    except torch.OutOfMemoryError as error:
        raise RunFailed(f"out of memory: lower --size ({str(error).splitlines()[0]})") from None
    path = next(path for i in count(pictures.first) if not (path := plot.out / f"sheet-{i:05}.png").exists())
    shown = [_read(cell) for cell in cells]
    write_png(path, sheet.draw(shown), new=True)
    common = {k: str(v) for k, v in settings[0].items() if all(row.get(k) == v for row in settings)}
    listed = common | {axis.name: " | ".join(axis.written) for axis in plot.axes}
    made = page.settings(listed, plot.command())
    write_text(path.with_suffix(".html"), page.page(title, "", sheet.tables(shown), made), new=True)
    typer.echo(f"{path} and {path.with_suffix('.html').name}: {what}")


@dataclass
class Cell:
    """One picture of the sheet; `path` is where it lies once it is drawn."""

    order: Order
    asked: Resolved
    settings: dict[str, Any]
    path: Path | None
    job: Job | None = None


def _drawn(folder: Path) -> dict[str, Path]:
    """The pictures of ours in a folder by their settings, as the pictures themselves tell."""
    found = {}
    for path in sorted(folder.glob("[0-9]*.png")):
        try:
            settings = read_settings(path)
        except ValueError:
            continue  # another program's
        settings.pop("schema_version", None)
        found[settings_key(settings)] = path
    return found


def _read(cell: Cell) -> Image.Image:
    assert cell.path is not None
    try:
        return decode(cell.path.read_bytes(), "white")
    except (OSError, UnreadableImage) as error:
        raise RunFailed(f"{cell.path}: cannot be read again ({error}); delete it and give --resume") from None


def _fill(pipeline: Pipeline, cells: list[Cell], pictures: Pictures) -> None:
    """Draw cells, each written at once."""
    done = 0

    def step(*_: Any) -> None:
        nonlocal done
        done += 1
        report(done)

    with progress("steps", sum(len(cell.asked.timesteps) for cell in cells)) as report:
        for cell in cells:
            with _in(cell.order):
                job, cell.job = cell.job or pipeline.prepare(cell.asked), None
                _say_truncated(job)
                picture = next(pipeline.run(job, callback=step))[0]
            cell.path = pictures.add(picture, cell.settings)


def _say_truncated(job: Job) -> None:
    """Through `warnings`, which says the same thing once."""
    for what, rest in (("prompt", job.texts.truncated[0]), ("negative prompt", job.texts.negative_truncated[0])):
        if rest:
            warnings.warn(f"the {what} is too long, these words are left out: {rest!r}", stacklevel=2)


@contextmanager
def _in(order: Order) -> Iterator[None]:
    """Faults name the cell, and call everything as the axes do."""
    try:
        yield
    except ValueError as error:
        message = str(error)
        for name, ours in NAMES.items():
            message = message.replace(name, ours)
        raise ValueError(f"{order.where}: {message}") from None
    except RunFailed as error:
        raise RunFailed(f"{order.where}: {error}") from None
