"""Atomic files and folders (they exist completely or not at all), locks, checksums and printable text."""

import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from t2i.errors import RunFailed, WriteFailed

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

MOST_JSON = 2**26  # bytes of a JSON file
MOST_BYTES = 2**30  # bytes of a file that is read at once
CHUNK = 2**20  # bytes that are hashed at once
LEFTOVERS = (".*.partial*", ".tmp??????")  # the latter are safetensors' own
REPLACED = re.compile(r"-[0-9a-f]{8}\.partial-old$")  # what `atomic_folder` adds to a folder's name

_unfinished: list[Path] = []  # the temporary folders of the open `atomic_folder` blocks


@contextmanager
def atomic_file(path: str | Path, *, new: bool = False) -> Iterator[Path]:
    """Yields a temporary path in the folder of `path` and renames it to `path` when the block ends without an error.

    The file is flushed to the disk before it gets its name. The folder is created if it is missing. With `new` an
    existing file is kept and RunFailed is raised. Raises WriteFailed where the file system fails.
    """
    path = Path(path)
    tmp = _temporary(path)
    with _named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield tmp
            if new and path.exists():
                raise RunFailed(f"{path} was written by another process meanwhile: it is kept, and nothing is written")
            publish(tmp, path)
        finally:
            tmp.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """Yields a temporary folder beside `folder` that replaces it when the block ends without an error.

    An existing folder is kept until the new one is complete. Raises WriteFailed where the file system fails.
    """
    folder = Path(folder)
    tmp = _temporary(folder)
    old = tmp.with_name(tmp.name + "-old")
    with _named(folder):
        tmp.mkdir(parents=True)
        _unfinished.append(tmp)
        try:
            yield tmp
            if folder.exists():
                os.replace(folder, old)
            publish(tmp, folder)
        finally:
            _unfinished.remove(tmp)
            if old.exists() and not folder.exists():
                os.replace(old, folder)
            shutil.rmtree(tmp, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def check_writable(folder: str | Path) -> None:
    """Creates a folder if it is missing; raises WriteFailed if no file can be written there."""
    path = Path(folder) / ".writable"
    with atomic_file(path) as tmp:
        tmp.touch()
    path.unlink(missing_ok=True)


def publish(tmp: Path, path: Path) -> None:
    """Flushes a file, or a folder and all that it holds, to the disk and renames it to `path`.

    Inside an `atomic_folder` block it is only renamed: the whole folder is flushed at the end of the block.
    """
    nested = _is_nested(path)
    if not nested:
        sync_files([*tmp.rglob("*"), tmp])
    os.replace(tmp, path)
    if not nested:
        sync_files([path.parent])


def sync_files(paths: Iterable[Path]) -> None:
    """Flushes files and folders to the disk."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def sweep(folder: Path, seconds: float = 0, patterns: Sequence[str] = LEFTOVERS) -> None:
    """Removes the temporary files and folders that killed processes left in `folder`.

    A folder that was about to be replaced when its process was killed gets its name back. Without a lock on the
    folder, `seconds` spares younger ones, which another process may still be writing. In a folder of the user's,
    `patterns` are those of the files that are written there.
    """
    for path in [path for pattern in patterns for path in folder.glob(pattern)]:
        with suppress(FileNotFoundError):  # finished or swept by another process meanwhile
            if time.time() - path.stat().st_mtime < seconds:
                continue
            original = path.with_name(REPLACED.sub("", path.name)[1:])
            if REPLACED.search(path.name) and not original.exists():
                os.replace(path, original)
            else:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def remove_folder(folder: Path) -> None:
    """Removes a folder; a process that is killed meanwhile leaves no half of it under its name."""
    tmp = _temporary(folder)
    os.replace(folder, tmp)
    shutil.rmtree(tmp)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}-{secrets.token_hex(4)}.partial")


def _is_nested(path: Path) -> bool:
    return any(folder in path.parents for folder in _unfinished)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turns a failure of the file system into a WriteFailed that names the outermost file or folder."""
    nested = _is_nested(path)
    try:
        yield
    except (OSError, SafetensorError) as error:
        if nested or isinstance(error, WriteFailed):
            raise
        cause = getattr(error, "strerror", None) or str(error)
        raise WriteFailed(f"{path}: not written ({cause}; {free_space(path)})") from None


def write_bytes(path: str | Path, data: bytes, *, new: bool = False) -> None:
    """Writes bytes atomically."""
    with atomic_file(path, new=new) as tmp:
        tmp.write_bytes(data)


def write_text(path: str | Path, text: str, *, new: bool = False) -> None:
    """Writes text as UTF-8 atomically; line ends stay as they are."""
    write_bytes(path, text.encode(), new=new)


def write_json(path: str | Path, value: Any) -> None:
    """Writes JSON as diffusers does, with sorted keys and indent 2, atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def write_png(path: str | Path, image: "Image.Image", *, new: bool = False, **options: Any) -> None:
    """Writes an image as PNG with Pillow's `options` atomically."""
    with atomic_file(path, new=new) as tmp:
        image.save(tmp, "PNG", **options)


def write_safetensors(
    path: str | Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str] | None = None
) -> None:
    """Writes contiguous CPU tensors as safetensors atomically; the file's mode follows the umask."""
    from safetensors.torch import save_file

    with atomic_file(path) as tmp:
        tmp.touch()
        mode = tmp.stat().st_mode  # safetensors creates the file anew, readable by its owner only
        save_file(dict(tensors), tmp, dict(metadata or {"format": "pt"}))
        tmp.chmod(mode)


def check_regular(path: Path, most: int) -> None:
    """Raises a ValueError that names a path unless it is a regular file of at most `most` bytes.

    A pipe may block its reader, and a device may have no end.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise ValueError(f"{path}: not readable ({error.strerror})") from None
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, a socket or a device"
        raise ValueError(f"{path}: {kind}, not a regular file")
    if status.st_size > most:
        raise ValueError(f"{path}: {status.st_size} bytes, more than the {most} that are read")


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """Returns the bytes of a regular file; raises a ValueError that names it, as `check_regular` does."""
    check_regular(path, most)
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: not readable ({error.strerror})") from None


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; raises a ValueError that names the file."""
    try:
        if path.stat().st_size > MOST_JSON:
            raise ValueError(f"more than {MOST_JSON >> 20} MiB")
        value = json.loads(path.read_text(encoding="utf8"), parse_constant=_constant)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except RecursionError:
        raise ValueError(f"{path}: not readable JSON (nested too deeply)") from None
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: not readable JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: a JSON object is needed, not {type(value).__name__}")
    return value


def _constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("NaN is no value")
    return float(name)  # diffusers writes -Infinity


@contextmanager
def lock(path: Path, wait: bool = False) -> Iterator[bool]:
    """Locks a file among the processes that see it, on one machine or several; yields False if another holds it.

    With `wait` it blocks until the lock is free. The lock ends with its process. Raises a ValueError where the file
    system has no locks.
    """
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError as error:
            raise ValueError(
                f"{path}: could not be locked ({error.strerror}): choose a folder on a file system that has locks"
            ) from None
        yield True


def free_space(path: Path) -> str:
    """Returns the free space on the file system of `path`, in words."""
    for place in (path, *path.absolute().parents):
        try:
            return f"{shutil.disk_usage(place).free >> 20} MiB free"
        except OSError:
            continue
    return "the free space is unknown"


def sha256(*paths: Path) -> str:
    """Returns the SHA-256 of the bytes of files, one after the other, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        check_regular(path, sys.maxsize)
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def printable(text: str) -> str:
    """Returns text with its control characters escaped: it moves no cursor and changes no writing direction."""
    return "".join(c if c.isprintable() or c in "\n\u200d" else c.encode("unicode_escape").decode() for c in text)
