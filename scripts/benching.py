"""Paired timing of two sides in one process, its statistics, peak memory and the report, for all benchmarks."""

import gc
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
SIDES = ("ours", "peer")
RESAMPLES = 2000


class Round(NamedTuple):
    """Seconds of one A-B-B-A round, the mean of two runs a side: wall time and processor time."""

    ours: float
    peer: float
    ours_cpu: float
    peer_cpu: float


def interleave(ours: Callable[[], Any], peer: Callable[[], Any], rounds: int, warmups: int) -> list[Round]:
    """Times both sides in the order A-B-B-A, so that a drift of the machine's speed affects both alike."""
    for side in (ours, peer) * warmups:
        side()
    return [_round(ours, peer) for _ in range(rounds)]


def _round(ours: Callable[[], Any], peer: Callable[[], Any]) -> Round:
    wall, cpu = {ours: 0.0, peer: 0.0}, {ours: 0.0, peer: 0.0}
    for side in (ours, peer, peer, ours):
        start, start_cpu = time.perf_counter(), time.process_time()
        side()
        wall[side] += (time.perf_counter() - start) / 2
        cpu[side] += (time.process_time() - start_cpu) / 2
    return Round(wall[ours], wall[peer], cpu[ours], cpu[peer])


def summary(rounds: Sequence[Round]) -> dict[str, Any]:
    """Returns medians, the ratio of medians and its 95% interval by a bootstrap over whole rounds (paired)."""
    table = np.array(rounds)
    picks = np.random.default_rng(0).integers(len(table), size=(RESAMPLES, len(table)))
    medians = np.median(table[picks], axis=1)
    ours, peer, ours_cpu, peer_cpu = np.median(table, axis=0).tolist()
    low, high = np.percentile(medians[:, 1] / medians[:, 0], [2.5, 97.5]).tolist()
    return {
        "ratio": round(peer / ours, 4),
        "ci95": [round(low, 4), round(high, 4)],
        "ours": round(ours, 6),
        "peer": round(peer, 6),
        "ours_cpu": round(ours_cpu, 6),
        "peer_cpu": round(peer_cpu, 6),
        "rounds": len(table),
    }


def report(cells: dict[str, dict[str, Any]], parity: dict[str, Any], peaks: dict[str, float]) -> dict[str, Any]:
    """Returns the figures of the cell with the smallest ratio, then every cell and the machine."""
    worst = min(cells.values(), key=lambda cell: cell["ratio"])
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    return {
        **{key: worst[key] for key in ("ratio", "ci95", "ours", "peer")},
        "parity": parity,
        "cells": cells,
        "peak_mb": peaks,
        "machine": {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "cores": cores,
            "load": round(load, 2),
            "busy": load > cores + 0.5,  # this process is one of the load
            "processor": platform.processor() or platform.machine(),
        },
    }


class OurLoop:
    """The training loop's step on a task; the next batch is prepared in the background, as in a run."""

    def __init__(self, task: Any, recipe: Any) -> None:
        from t2i.training.loop import Run

        self.task, self.run, self.done = task, Run(task, recipe), 0
        self.batches = self.run.batches(0)

    def step(self, batch: dict[str, Any] | None = None) -> Tensor:
        """Takes one step, on the task's next batch unless one is given; returns the loss."""
        micros = next(self.batches) if batch is None else [batch]
        terms = self.run.step(micros, self.done)
        self.done += 1
        return terms["loss"]


def show(name: str, cell: dict[str, Any]) -> None:
    """Prints a cell in one line."""
    print(
        f"{name}: ours {cell['ours'] * 1e3:.1f} ms, peer {cell['peer'] * 1e3:.1f} ms, "
        f"ratio {cell['ratio']:.3f} {cell['ci95']}, processor {cell['peer_cpu'] / cell['ours_cpu']:.3f}",
        flush=True,
    )


def fail(parity: dict[str, Any]) -> None:
    """Exits with 1 and without timings."""
    print("parity failed: the two sides do not compute the same, so nothing is timed", file=sys.stderr)
    print(json.dumps({"parity": parity}))
    raise SystemExit(1)


def peaks(command: Sequence[str]) -> dict[str, float]:
    """Returns the peak memory in MB of `command --child SIDE` for each side, in a separate process."""
    memory = {}
    for side in SIDES:
        done = subprocess.run(
            [sys.executable, *command, "--child", side], check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        memory[side] = json.loads(done.stdout.splitlines()[-1])
    return memory


def forget_peak() -> None:
    """Resets this process's peak memory to its present size."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")


def print_peak() -> None:
    """Prints this process's peak resident memory in MB."""
    # Not ru_maxrss: Linux carries that over fork and exec, so that a child starts with its parent's peak.
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith("VmHWM:"))
    print(round(int(kilobytes) / 1024, 1))


def apart(output: Tensor, reference: Tensor) -> float:
    """Returns max |output - reference| / max |reference|."""
    return ((output.double() - reference.double()).abs().max() / reference.double().abs().max()).item()


def section(path: str, key: str) -> dict[str, Any]:
    """Returns one section of a shipped recipe."""
    return yaml.safe_load((ROOT / path).read_text(encoding="utf8"))[key]
