"""What an evaluation has made so far, by content: what is asked for again is read, and ranks share the rest."""

import hashlib
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import distributed as dist

from t2i.files import atomic_file
from t2i.progress import progress

Arrays = dict[str, np.ndarray]


def digest(*parts: Any) -> str:
    """A key that is equal exactly where the parts are."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Task:
    """Arrays that can be made; `count` is what progress counts."""

    key: str
    count: int
    make: Callable[[], Arrays]


class Store:
    """A folder of arrays by stage and key; each file is whole or not there."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, stage: str, key: str, suffix: str = ".npz") -> Path:
        """Where the arrays of a key lie."""
        return self.folder / stage / f"{key}{suffix}"

    def read(self, stage: str, key: str) -> Arrays | None:
        """The arrays of a key; None where there are none, or a crash of the machine left half of them."""
        try:
            with np.load(self.path(stage, key), allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except FileNotFoundError:
            return None
        except (ValueError, OSError, EOFError, zipfile.BadZipFile):
            self.path(stage, key).unlink()
            return None

    def has(self, stage: str, key: str) -> bool:
        """Whether all of a file is there: a zip archive ends in its directory."""
        return zipfile.is_zipfile(self.path(stage, key))

    def write(self, stage: str, key: str, arrays: Arrays) -> None:
        """Put arrays there."""
        with atomic_file(self.path(stage, key)) as tmp, tmp.open("wb") as file:
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]

    def arrays(self, stage: str, task: Task) -> Arrays:
        """The arrays of a task, made where they are missing."""
        found = self.read(stage, task.key)
        if found is None:
            found = task.make()
            self.write(stage, task.key, found)
        return found


def rank() -> tuple[int, int]:
    """(this process, how many there are)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def meet() -> None:
    """Wait for the other ranks."""
    if dist.is_initialized():
        dist.barrier()


def fill(store: Store, stage: str, tasks: Sequence[Task], quiet: bool = False) -> int:
    """Make what is missing of the tasks, dealt to the ranks by position; how many were there already.

    Every rank sees the same list; afterwards all of it is in the store, which the ranks share.
    """
    tasks = list({task.key: task for task in tasks}.values())
    missing = [task for task in tasks if not store.has(stage, task.key)]
    meet()  # before any of them is written: all deal out the same list
    mine, count = rank()
    left = missing[mine::count]
    if left:
        with progress(f"{stage}:", sum(task.count for task in left), quiet=quiet) as report:
            done = 0
            for task in left:
                store.write(stage, task.key, task.make())
                done += task.count
                report(done)
    meet()
    return len(tasks) - len(missing)
