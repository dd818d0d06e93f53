"""Files and folders are complete or absent, whatever interrupts their writer; locks belong to one process."""

import errno
import hashlib
import os
import re
import signal
import stat
from pathlib import Path

import pytest
import torch
from PIL import Image

from t2i.__main__ import main
from t2i.component import read_safetensors
from t2i.errors import RunFailed
from t2i.files import (
    atomic_file,
    atomic_folder,
    lock,
    printable,
    read_bytes,
    read_json,
    remove_folder,
    sha256,
    sweep,
    write_bytes,
    write_json,
    write_png,
    write_safetensors,
    write_text,
)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tmp_path):
    write_text(tmp_path / "models" / "a" / "one.txt", "1")
    write_text(tmp_path / "models" / "a" / "sub" / "two.txt", "2")
    return tmp_path / "models" / "a"


def test_every_writer_writes_the_whole_content(tmp_path):
    image = Image.new("RGB", (3, 2), "red")
    write_text(tmp_path / "new" / "a.txt", "line\r\nß\n")
    write_bytes(tmp_path / "a.bin", b"\x00\xff")
    write_json(tmp_path / "a.json", {"b": [1], "a": "ß"})
    write_png(tmp_path / "a.png", image, optimize=True)
    write_safetensors(tmp_path / "a.safetensors", {"x": torch.arange(3)})
    assert (tmp_path / "new" / "a.txt").read_bytes() == "line\r\nß\n".encode()
    assert (tmp_path / "a.bin").read_bytes() == b"\x00\xff"
    assert (tmp_path / "a.json").read_text() == '{\n  "a": "ß",\n  "b": [\n    1\n  ]\n}\n'
    assert read_json(tmp_path / "a.json") == {"a": "ß", "b": [1]}
    with Image.open(tmp_path / "a.png") as read:
        assert read.format == "PNG" and read.tobytes() == image.tobytes()
    assert read_safetensors(tmp_path / "a.safetensors")["x"].tolist() == [0, 1, 2]
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_follow_the_umask(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        write_text(tmp_path / "a", "x")
        write_safetensors(tmp_path / "b", {"x": torch.zeros(1)})
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {mode}


def test_a_file_that_exists_is_replaced_or_kept(tmp_path):
    write_text(tmp_path / "a", "one")
    with pytest.raises(RunFailed, match=r"a was written by another process meanwhile: it is kept"):
        write_text(tmp_path / "a", "two", new=True)
    assert contents(tmp_path) == {"a": b"one"}
    write_text(tmp_path / "a", "two")
    assert contents(tmp_path) == {"a": b"two"}


def test_a_failed_write_names_the_file_and_leaves_nothing(tmp_path, monkeypatch):
    write_text(tmp_path / "a", "one")
    with pytest.raises(RunFailed, match=r"a/b: not written \((File exists|Not a directory); \d+ MiB free\)"):
        write_text(tmp_path / "a" / "b", "x")

    def full(paths):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("t2i.files.sync_files", full)
    with pytest.raises(RunFailed, match=r"/a: not written \(No space left on device; \d+ MiB free\)"):
        write_text(tmp_path / "a", "two")
    with (
        pytest.raises(OSError, match=r"/c: not written \(No space left on device; \d+ MiB free\)"),
        atomic_folder(tmp_path / "c"),
    ):
        pass
    assert contents(tmp_path) == {"a": b"one"} and os.listdir(tmp_path) == ["a"]


def test_a_file_inside_an_unfinished_folder_is_not_flushed_twice_and_fails_by_the_folders_name(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr("t2i.files.sync_files", lambda paths: flushed.extend(path.name for path in paths))
    with atomic_folder(tmp_path / "a") as tmp:
        write_text(tmp / "one.txt", "1")
        with atomic_folder(tmp / "sub") as inner:
            write_text(inner / "two.txt", "2")
        assert not flushed
    assert sorted(flushed[:-2]) == ["one.txt", "sub", "two.txt"] and flushed[-1] == tmp_path.name
    assert contents(tmp_path) == {"a/one.txt": b"1", "a/sub/two.txt": b"2"}

    def fail() -> None:
        with atomic_folder(tmp_path / "b") as tmp:
            write_text(tmp / "one.txt", "1")
            write_text(tmp / "one.txt" / "two.txt", "2")

    with pytest.raises(RunFailed, match=r"^\S*/b: not written \("):
        fail()
    write_text(tmp_path / "one.txt", "1")
    assert flushed[-1] == tmp_path.name  # no folder is open any longer


def test_a_save_that_fails_leaves_the_old_folder(folder):
    before = contents(folder)

    def fail() -> None:
        with atomic_folder(folder) as tmp:
            (tmp / "half").write_text("x")
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    assert contents(folder) == before and os.listdir(folder.parent) == ["a"]


def test_a_save_that_cannot_take_its_place_leaves_the_old_folder(folder, tmp_path):
    before = contents(folder)

    def fail() -> None:
        with atomic_folder(folder) as tmp:
            (tmp / "whole").write_text("x")
            tmp.rename(tmp_path / "elsewhere")  # what is to be moved is gone
            tmp.symlink_to(tmp_path / "nothing")

    with pytest.raises(OSError, match="No such file"):
        fail()
    assert contents(folder) == before


def test_a_killed_writer_leaves_the_old_content_and_a_trace_that_is_swept(folder):
    before, place = contents(folder), folder.parent
    child = os.fork()
    if child == 0:
        with atomic_folder(folder) as tmp, atomic_file(place / "file") as file:
            (tmp / "half").write_text("x")
            file.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert contents(folder) == before and len(os.listdir(place)) == 3
    sweep(place)
    assert contents(folder) == before and os.listdir(place) == ["a"]


def test_a_writer_that_is_killed_between_its_two_renames_loses_nothing(folder, monkeypatch):
    before, place, replace = contents(folder), folder.parent, os.replace
    child = os.fork()
    if child == 0:
        calls = []
        monkeypatch.setattr("os.replace", lambda *a: os._exit(9) if calls else (calls.append(1), replace(*a)))
        with atomic_folder(folder) as tmp:
            (tmp / "new").write_text("x")
    os.waitpid(child, 0)
    assert not folder.exists()
    sweep(place)
    assert contents(folder) == before and os.listdir(place) == ["a"]


def test_a_folder_that_is_removed_has_no_name_while_it_goes(folder, monkeypatch):
    seen = []
    monkeypatch.setattr("shutil.rmtree", lambda path, **_: seen.append((path.name, folder.exists())))
    remove_folder(folder)
    [(name, named)] = seen
    assert name.endswith(".partial") and not named


def test_a_lock_is_held_by_one_process_and_can_be_waited_for(tmp_path):
    with lock(tmp_path / "x.lock") as mine, lock(tmp_path / "x.lock") as theirs:
        assert mine and not theirs
    with lock(tmp_path / "x.lock", wait=True) as again:
        assert again


def test_a_file_system_without_locks_is_reported(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", none)
    with pytest.raises(ValueError, match=r"x\.lock: could not be locked"), lock(tmp_path / "x.lock"):
        pass


def test_sha256_of_files_one_after_the_other(tmp_path):
    (tmp_path / "a").write_bytes(b"1" * (2**20 + 3))
    (tmp_path / "b").write_bytes(b"2")
    assert sha256(tmp_path / "a", tmp_path / "b") == hashlib.sha256(b"1" * (2**20 + 3) + b"2").hexdigest()
    assert sha256(tmp_path / "b") != sha256(tmp_path / "a", tmp_path / "b")


def test_what_is_no_regular_file_is_named_and_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "file").write_bytes(b"123")
    for name, problem in (
        ("pipe", "a pipe, a socket or a device, not a regular file"),
        ("zero", "a pipe, a socket or a device, not a regular file"),
        (".", "a folder, not a regular file"),
        ("none", r"not readable \(No such file or directory\)"),
    ):
        for read in (read_bytes, sha256):
            with pytest.raises(ValueError, match=f"^{tmp_path / name}: {problem}"):
                read(tmp_path / name)
    with pytest.raises(ValueError, match="file: 3 bytes, more than the 2 that are read"):
        read_bytes(tmp_path / "file", 2)
    assert read_bytes(tmp_path / "file", 3) == b"123"


def test_printable_text_has_no_control_characters():
    assert printable("a\nb \u202egnp.exe\x1b[0m\x00") == "a\nb \\u202egnp.exe\\x1b[0m\\x00"
    assert printable("ß 猫 👩\u200d🎨") == "ß 猫 👩\u200d🎨"


def test_a_failure_of_the_file_system_is_one_message(monkeypatch, capsys):
    """Wherever it happens: the path, the cause and the free space, exit code 1."""

    def fail():
        raise OSError(errno.ENOSPC, "No space left on device", "/tmp/x/metrics.jsonl")

    monkeypatch.setattr("t2i.cli.app.app", fail)
    with pytest.raises(SystemExit) as ended:
        main()
    err = capsys.readouterr().err
    assert ended.value.code == 1 and "Traceback" not in err
    assert re.search(r"t2i: /tmp/x/metrics\.jsonl: No space left on device \(\d+ MiB free\)", err)
