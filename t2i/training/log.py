"""The records of a run: `metrics.jsonl` and the environment."""

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from t2i.config import TrainConfig
from t2i.files import write_text


class Log:
    """Writes `metrics.jsonl`: a line per `log_every` steps and per validation; lines beyond `start` are dropped."""

    def __init__(self, run: Path, start: int, quiet: bool) -> None:
        self.path, self.quiet = run / "metrics.jsonl", quiet
        self.sums: dict[str, Tensor] = {}
        self.unwritten: list[str] = []  # lines that the disk refused
        self.steps, self.since = 0, time.monotonic()
        if not quiet and self.path.is_file():
            lines = self.path.read_text(encoding="utf8", errors="replace").splitlines(keepends=True)
            steps = [_step_of(line) for line in lines]
            if damaged := [n for n, step in enumerate(steps, 1) if step is None and n < len(lines)]:
                print(f"{self.path}: line {damaged[0]} is damaged: {len(damaged)} lines are dropped", flush=True)
            kept = [line for line, step in zip(lines, steps, strict=True) if step is not None and step <= start]
            if len(kept) < len(lines):
                write_text(self.path, "".join(kept))

    def add(self, terms: dict[str, Tensor]) -> None:
        """Adds the terms of a step to the running mean, on the device."""
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0) + value
        self.steps += 1

    def write(self, done: int, config: TrainConfig, lr: float, accelerator: Accelerator) -> dict[str, Any]:
        """Writes the mean over the steps since the last line and over the processes; returns the line."""
        names = sorted(self.sums)
        sums: Any = accelerator.reduce(torch.stack([torch.as_tensor(self.sums[n]) for n in names]), "mean")
        seconds = time.monotonic() - self.since
        row = {"step": done, "samples": done * config.global_batch, "lr": lr}
        row |= dict(zip(names, (sums / self.steps).tolist(), strict=True))
        row["samples_per_second"] = round(self.steps * config.global_batch / seconds, 2)
        row.setdefault("loss", row.get(next((n for n in names if n.endswith(".loss")), names[0])))
        self._append(row)
        self.sums, self.steps, self.since = {}, 0, time.monotonic()
        return row

    def validation(self, done: int, figures: dict[str, float]) -> None:
        """Writes and prints the figures of a validation."""
        self._append({"step": done} | {f"validation.{k}": v for k, v in figures.items()})
        shown = "  ".join(f"{k} {v:.4g}" for k, v in figures.items() if "[" not in k)
        print(f"step {done}: validation  {shown}", flush=True)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the duration of the block from the training time."""
        began = time.monotonic()
        yield
        self.since += time.monotonic() - began

    def _append(self, row: dict[str, Any]) -> None:
        if self.quiet:
            return
        try:
            with self.path.open("a", encoding="utf8") as file:
                file.write("".join([*self.unwritten, json.dumps(row) + "\n"]))
            self.unwritten.clear()
        except OSError as error:  # the checkpoint, which is saved or ends the run, matters more than this line
            self.unwritten.append(json.dumps(row) + "\n")
            print(f"{self.path}: not written ({error.strerror}); it is tried again with the next line", flush=True)


def _step_of(line: str) -> int | None:
    """Returns the step of a line; None for half a line, as a killed run may leave at the end, or a damaged one."""
    try:
        step = json.loads(line)["step"] if line.endswith("\n") else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return step if isinstance(step, int) else None


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """Returns the facts beside the recipe on which a result depends: versions, device, processes and threads."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": str(accelerator.device),
        "device_name": torch.cuda.get_device_name() if accelerator.device.type == "cuda" else platform.processor(),
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }
