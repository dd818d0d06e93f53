"""Intermediate results of an evaluation, stored by content: existing ones are read, missing ones shared by ranks."""

import hashlib
import io
import json
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import distributed as dist

from t2i.errors import RunFailed
from t2i.files import atomic_file
from t2i.progress import progress

Arrays = dict[str, np.ndarray]


def digest(*parts: Any) -> str:
    """Returns a key that is equal exactly where the parts are."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Task:
    """Arrays to compute; `count` is what it adds to a progress bar."""

    key: str
    count: int
    make: Callable[[], Arrays]


class Store:
    """A folder of .npz files by stage and key, each written atomically."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, stage: str, key: str) -> Path:
        """Returns the file of a key."""
        return self.folder / stage / f"{key}.npz"

    def read(self, stage: str, key: str) -> Arrays | None:
        """Returns the arrays of a key; None where the file is missing, or damaged, which is warned of.

        Raises RunFailed if the file system cannot read the file: nothing is known of its content then.
        """
        path = self.path(stage, key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RunFailed(f"{path}: could not be read ({error.strerror})") from None
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except Exception as error:  # broken bytes raise anything: zlib.error, TokenError, NotImplementedError, ..
            warnings.warn(f"{path}: damaged ({type(error).__name__}), computed again", stacklevel=2)
            return None

    def has(self, stage: str, key: str) -> bool:
        """Returns True if the file is not truncated: a zip archive ends in its directory. `read` checks its content."""
        return zipfile.is_zipfile(self.path(stage, key))

    def write(self, stage: str, key: str, arrays: Arrays) -> None:
        """Writes the arrays of a key."""
        with atomic_file(self.path(stage, key)) as tmp, tmp.open("wb") as file:
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]

    def arrays(self, stage: str, task: Task) -> Arrays:
        """Returns the arrays of a task, computed and written if they are missing or damaged."""
        arrays = self.read(stage, task.key)
        if arrays is None:
            arrays = task.make()
            self.write(stage, task.key, arrays)
        return arrays

    def remove(self, stage: str, tasks: Sequence[Task]) -> None:
        """Deletes the arrays of tasks."""
        for task in tasks:
            self.path(stage, task.key).unlink(missing_ok=True)


def is_main_rank() -> bool:
    """Returns True for the process that computes and writes the rows."""
    return not dist.is_initialized() or dist.get_rank() == 0


def fill(store: Store, stage: str, tasks: Sequence[Task], quiet: bool = False) -> int:
    """Computes the missing tasks, dealt to the ranks by position; returns how many existed before.

    All ranks pass the same list; afterwards all of it is in the store, which the ranks share.
    """
    distributed = dist.is_initialized()
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)
    tasks = list({task.key: task for task in tasks}.values())
    missing = [task for task in tasks if not store.has(stage, task.key)]
    if distributed:
        dist.barrier()  # before any of them is written: all ranks deal out the same list
    if mine := missing[rank::ranks]:
        with progress(f"{stage}:", sum(task.count for task in mine), quiet=quiet) as report:
            done = 0
            for task in mine:
                store.write(stage, task.key, task.make())
                done += task.count
                report(done)
    if distributed:
        dist.barrier()
    return len(tasks) - len(missing)
