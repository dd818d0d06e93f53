"""Orders of `t2i generate` carried out: the model loaded, every request checked, images written batch by batch."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import typer
from PIL import Image

from t2i.cli.generate_model import Session, open_pipeline
from t2i.cli.generate_options import Order
from t2i.cli.generate_request import recorded_keys, request_of, select, settings_key, settings_of, warn_truncated
from t2i.cli.messages import located, say, warnings_as_messages
from t2i.errors import RunFailed
from t2i.files import write_png
from t2i.pipeline import Pipeline
from t2i.pipeline.outputs import ImageFolder
from t2i.pipeline.resolved import ResolvedRequest
from t2i.progress import progress
from t2i.report.grid import image_grid

__all__ = ["Session", "run"]
PREVIEW = "preview.png"


def run(session: Session, orders: list[Order]) -> None:
    """Samples and writes the images of all orders; images that are finished stay if the run fails."""
    with warnings_as_messages():
        pipeline, made_by = open_pipeline(session, orders[0])
        if not (work := resolve_orders(session, pipeline, made_by, orders)):
            typer.echo(f"{session.out}: nothing is left to do")
            return
        with located(work[0][0].where):
            prepared = pipeline.prepare(work[0][1])  # before the folder is made: a fault leaves nothing behind
        warn_truncated(prepared)
        assert prepared.seeds is not None
        seed, count = prepared.seeds[0], sum(resolved.count for _, resolved in work)
        say(f"seed {seed}, {count} {'image' if count == 1 else 'images'}")
        images = ImageFolder(session.out)
        last = images.folder
        steps = sum(len(resolved.plan.timesteps) * len(resolved.batches) for _, resolved in work)
        try:
            with progress("steps", steps) as report:
                step = _Step(session, images.folder, report)
                for i, (order, resolved) in enumerate(work):
                    if i:
                        with located(order.where):
                            prepared = pipeline.prepare(resolved)
                        warn_truncated(prepared)
                    for k, image in enumerate(chain.from_iterable(pipeline.run(prepared, callback=step))):
                        last = images.add(image, settings_of(prepared, k, order, made_by), metadata=session.metadata)
        except KeyboardInterrupt:
            say(f"interrupted; {images.next - images.first} of {count} images are in {images.folder}")
            raise
        except torch.OutOfMemoryError as error:
            raise RunFailed(f"out of memory: lower --batch-size or --size ({str(error).splitlines()[0]})") from None
        first = f"{images.first:05}-{seed}.png"
        typer.echo(f"{images.folder}: {first if count == 1 else f'{first} to {last.name}'}, seed {seed}")
        if (grid := images.grid()) is not None:
            shown = len(images.shown)
            typer.echo(f"{grid}" + (f" (the first {shown} of {count})" if shown < count else ""))


def resolve_orders(
    session: Session, pipeline: Pipeline, made_by: dict[str, Any], orders: list[Order]
) -> list[tuple[Order, ResolvedRequest]]:
    """Returns the orders as checked requests; with `resume`, of the images that the folder does not hold yet."""
    written = recorded_keys(session.out) if session.resume else set()
    work: list[tuple[Order, ResolvedRequest]] = []
    skipped = 0
    for order in orders:
        with located(order.where):
            resolved = pipeline.resolve(request_of(order, session.batch_size))
            images = range(resolved.count)
            if written:
                images = [k for k in images if settings_key(settings_of(resolved, k, order, made_by)) not in written]
            skipped += resolved.count - len(images)
            if 0 < len(images) < resolved.count:
                resolved = pipeline.resolve(select(resolved.request, list(images)))
        if images:
            work.append((order, resolved))
    if session.resume:
        say(f"{skipped} {'image is' if skipped == 1 else 'images are'} in {session.out} already: left out")
    return work


@dataclass
class _Step:
    """The callback after each step: it reports progress, and writes a preview every `preview_every` steps."""

    session: Session
    folder: Path
    report: Callable[[int], None]
    done: int = 0

    def __call__(self, pipeline: Pipeline, index: int, _timestep: int, tensors: dict[str, Any]) -> None:
        self.done += 1
        self.report(self.done)
        every = self.session.preview_every
        if every and (index + 1) % every == 0:
            factor = pipeline.autoencoder.factor
            small = pipeline.preview(tensors["latents"])
            large = [p.resize((p.width * factor, p.height * factor), Image.Resampling.BICUBIC) for p in small]
            write_png(self.folder / PREVIEW, image_grid(large))
