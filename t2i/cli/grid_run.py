"""The cells of `t2i grid`, each one image from the same noise: all are checked, then drawn, then laid out."""

import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, product
from pathlib import Path
from typing import Any

import torch
import typer
from PIL import Image

from t2i.cli.generate_model import Session, open_pipeline
from t2i.cli.generate_options import Order
from t2i.cli.generate_request import request_of, settings_key, settings_of, warn_truncated
from t2i.cli.grid_axes import Axis
from t2i.cli.messages import located, say, warnings_as_messages
from t2i.data.decode import UnreadableImage, decode
from t2i.errors import RunFailed
from t2i.files import write_png, write_text
from t2i.pipeline import Pipeline
from t2i.pipeline.outputs import ImageFolder, read_settings
from t2i.pipeline.request import MOST_IMAGES
from t2i.pipeline.resolved import PreparedRequest, ResolvedRequest
from t2i.pipeline.settings import SETTINGS
from t2i.progress import progress
from t2i.report import page
from t2i.report.grid import LabelledGrid

NOWHERE = Axis("", "", [""], [None])


@dataclass(frozen=True)
class Plot:
    """Axes over the settings that all cells share; `written` holds the flags that the command repeats as given."""

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
        """The axes of panels, rows and columns."""
        by_flag = {axis.flag: axis for axis in self.axes}
        return [by_flag.get(flag, NOWHERE) for flag in ("-z", "-y", "-x")]

    @property
    def orders(self) -> Iterator[Order]:
        """The order of each cell, panel by panel and row by row."""
        for indices in product(*(range(len(side.values)) for side in self.sides)):
            at = [(side, i) for side, i in zip(self.sides, indices, strict=True) if side is not NOWHERE]
            options = self.given | {side.name: side.values[i] for side, i in at}
            prompt = options.pop("prompt", self.prompt)
            assert prompt is not None
            where = ", ".join(f"{side.name} = {side.written[i]}" for side, i in at)
            yield Order([prompt], {k: v for k, v in options.items() if v is not None}, where=where)

    def command(self, *, resume: bool = False) -> str:
        """Returns the command that draws the grid again, with its seed."""
        words = ["t2i", "grid"]
        for flag, text in self.written.items():
            words += [flag, text]
        for name, value in self.given.items():
            words.append(f"{SETTINGS[name].flag}={value}")
        words += ["-o", str(self.out)] + (["--device", self.device] if self.device else [])
        words += ["--resume"] if resume else []
        return shlex.join(words + ([] if self.prompt is None else ["--", self.prompt]))


def run(plot: Plot) -> None:
    """Draws every cell and the sheet; nothing is written before every cell is checked."""
    cells = math.prod(len(side.values) for side in plot.sides)
    if cells > MOST_IMAGES:
        raise ValueError(f"the axes have {cells} cells, more than {MOST_IMAGES}: give fewer values")
    with warnings_as_messages():
        orders = list(plot.orders)
        pipeline, made_by = open_pipeline(Session(plot.model, plot.out, plot.device, 1, True, False, None), orders[0])
        _draw(plot, pipeline, made_by, orders)


def _draw(plot: Plot, pipeline: Pipeline, made_by: dict[str, Any], orders: list[Order]) -> None:
    resolved: list[ResolvedRequest] = []
    for order in orders:
        with located(order.where):
            resolved.append(pipeline.resolve(request_of(order, 1)))
    panels, rows, columns = (side.labels if side is not NOWHERE else ("",) for side in plot.sides)
    varied = [axis.name for axis in plot.axes]
    title = plot.prompt if plot.prompt is not None and "prompt" not in varied else f"by {', '.join(varied)}"
    sheet = LabelledGrid(title, (resolved[0].width, resolved[0].height), columns, rows, panels)
    size = sheet.layout.size
    old = _drawn(plot.out) if plot.resume else {}
    settings = [settings_of(request, 0, order, made_by) for order, request in zip(orders, resolved, strict=True)]
    cells = [Cell(*of, old.get(settings_key(of[2]))) for of in zip(orders, resolved, settings, strict=True)]
    missing = [cell for cell in cells if cell.path is None]
    for cell in missing[:1]:
        with located(cell.order.where):  # before the folder is made: a fault in a prompt leaves nothing behind
            cell.prepared = pipeline.prepare(cell.resolved)
    if plot.resume:
        say(f"{len(cells) - len(missing)} of {len(cells)} cells are in {plot.out} already: not drawn again")
    what = f"{len(cells)} cells" + (f", seed {plot.given['seed']}" if "seed" in plot.given else "")
    say(f"{what}, a sheet of {size[0]}x{size[1]} pixels")
    images = ImageFolder(plot.out)
    try:
        _fill(pipeline, missing, images)
    except KeyboardInterrupt:
        done = sum(cell.path is not None for cell in cells)
        say(f"interrupted; {done} of {len(cells)} cells are in {plot.out}; to go on:\n{plot.command(resume=True)}")
        raise
    except torch.OutOfMemoryError as error:
        raise RunFailed(f"out of memory: lower --size ({str(error).splitlines()[0]})") from None
    path = next(path for i in count(images.first) if not (path := plot.out / f"sheet-{i:05}.png").exists())
    shown = [_read(cell) for cell in cells]
    write_png(path, sheet.draw(shown), new=True)
    common = {k: str(v) for k, v in settings[0].items() if all(row.get(k) == v for row in settings)}
    listed = common | {axis.name: " | ".join(axis.written) for axis in plot.axes}
    made = page.settings(listed, plot.command())
    write_text(path.with_suffix(".html"), page.page(title, "", sheet.tables(shown), made), new=True)
    typer.echo(f"{path} and {path.with_suffix('.html').name}: {what}")


@dataclass
class Cell:
    """One image of the sheet; `path` is its file once it is drawn."""

    order: Order
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
            with located(cell.order.where):
                prepared, cell.prepared = cell.prepared or pipeline.prepare(cell.resolved), None
                warn_truncated(prepared)
                image = next(pipeline.run(prepared, callback=step))[0]
            cell.path = images.add(image, cell.settings)
