"""The command line in processes of its own, forked from a server that has imported torch once."""

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from t2i.__main__ import main
from tests.hang import SECONDS

server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(
    ["t2i.training.generator", "t2i.training.vae", "t2i.training.text_encoder", "t2i.cli.app"]
)


def start(commands: Sequence[Sequence[str]], log: Path, **environment: str):
    """`t2i` with these arguments, one command after the other in one process; what is said goes to `log`."""
    process = server.Process(target=_commands, args=(commands, str(log), environment, torch.get_num_threads()))
    process.start()
    return process


def _commands(commands: Sequence[Sequence[str]], log: str, environment: dict[str, str], threads: int) -> None:
    said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.environ.update(environment)
    torch.set_num_threads(threads)
    for arguments in commands:
        sys.argv = ["t2i", *arguments]
        try:
            main()
        except SystemExit as end:
            if end.code:
                raise


def finished(process, log: Path, seconds: float = SECONDS) -> str:
    """What a process said that has to end well."""
    process.join(seconds)
    said = log.read_text()
    assert process.exitcode == 0, said
    return said


def until(condition: Callable[[], bool], process, seconds: float = SECONDS) -> None:
    """Wait for something that a running process does."""
    for _ in range(int(seconds / 0.002)):
        if condition():
            return
        assert process.exitcode is None, "the process ended first"
        time.sleep(0.002)
    raise AssertionError("waited in vain")


def ranks(count: int, commands: Sequence[Sequence[str]], folder: Path) -> list[str]:
    """The commands in `count` processes of one gloo group; what each said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
    }
    logs = [folder / f"rank{rank}.log" for rank in range(count)]
    started = [start(commands, log, RANK=str(rank), LOCAL_RANK=str(rank), **group) for rank, log in enumerate(logs)]
    try:
        return [finished(process, log) for process, log in zip(started, logs, strict=True)]
    finally:
        for process in started:
            process.kill()
