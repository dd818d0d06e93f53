"""Progress of long work and messages, on stderr: a bar on a terminal, plain lines otherwise, nothing with `quiet`."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


def say(text: str) -> None:
    """Prints a message for the user on stderr."""
    print(f"t2i: {text}", file=sys.stderr, flush=True)


def counted(number: int, noun: str) -> str:
    """Returns "1 image" or "2 images"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


class Progress(Protocol):
    """A function that long work reports to."""

    def __call__(self, done: int, note: str = "") -> None:
        """Reports the number that is done of the total."""
        ...


@contextmanager
def progress(label: str, total: int, *, start: int = 0, quiet: bool = False, seconds: float = 15) -> Iterator[Progress]:
    """Yields a function to call with the number done; without a terminal it prints a line every `seconds` at most."""
    if quiet:
        yield lambda done, note="": None
    elif sys.stderr.isatty():
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn(label),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Bar(*columns, transient=False) as bar:
            task = bar.add_task(label, total=total, completed=start, note="")
            yield lambda done, note="": bar.update(task, completed=done, note=note)
    else:
        yield _Lines(label, total, start, seconds)


class _Lines:
    def __init__(self, label: str, total: int, start: int, seconds: float) -> None:
        self.label, self.total, self.start, self.seconds = label, total, start, seconds
        self.began = self.last = time.monotonic()

    def __call__(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        if now - self.last < self.seconds and done < self.total:
            return
        self.last = now
        remaining = (now - self.began) / max(done - self.start, 1) * (self.total - done)
        print(
            f"{self.label} {done}/{self.total}  {note}  {remaining:.0f} s left".replace("    ", "  "),
            file=sys.stderr,
            flush=True,
        )
