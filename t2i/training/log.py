"""What a run writes down: `metrics.jsonl` and the environment."""

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


class Log:
    """`metrics.jsonl`: a line every `log_every` steps and one a validation; what lies beyond `start` is dropped."""

    def __init__(self, run: Path, start: int, quiet: bool) -> None:
        self.path, self.quiet = run / "metrics.jsonl", quiet
        self.sums: dict[str, Tensor] = {}
        self.steps, self.since = 0, time.monotonic()
        if not quiet and self.path.exists():
            lines = self.path.read_text(encoding="utf8").splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]  # the last one may be torn
            kept = [line for line in whole if json.loads(line)["step"] <= start]
            self.path.write_text("".join(kept), encoding="utf8")

    def add(self, terms: dict[str, Tensor]) -> None:
        """Take one step's terms into the running mean, on the device."""
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0) + value
        self.steps += 1

    def write(self, done: int, config: TrainConfig, lr: float, accelerator: Accelerator) -> dict[str, Any]:
        """Write the mean over the steps since the last line, and over the ranks."""
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
        """Write and print the figures of a validation."""
        self._append({"step": done} | {f"validation.{k}": v for k, v in figures.items()})
        shown = "  ".join(f"{k} {v:.4g}" for k, v in figures.items() if "[" not in k)
        print(f"step {done}: validation  {shown}", flush=True)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens in the block does not count as training time."""
        began = time.monotonic()
        yield
        self.since += time.monotonic() - began

    def _append(self, row: dict[str, Any]) -> None:
        if not self.quiet:
            with self.path.open("a", encoding="utf8") as file:
                file.write(json.dumps(row) + "\n")


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """What a result depends on beside the recipe."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": str(accelerator.device),
        "device_name": torch.cuda.get_device_name() if accelerator.device.type == "cuda" else platform.processor(),
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }
