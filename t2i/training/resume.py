"""Beginning a run, or going on with one: the same command does both."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from t2i.files import lock, read_json, sweep, write_json
from t2i.training import checkpoint
from t2i.training.checkpoint import Parts
from t2i.training.log import environment

# What may change between two commands that go on with the same run.
FREE = {"steps", "log_every", "validate_every", "sample_every", "save_every", "keep", "micro_batch"}
PLACES = {"out", "cache", "sample"}  # the cache is keyed by its content


def resume(run: Path, parts: Parts, recipe: dict[str, Any], accelerator: Accelerator) -> int:
    """The step to start from: 0 in a new folder, else that of the newest valid checkpoint, which is put back."""
    newest = checkpoint.latest(run / "checkpoints", quiet=not accelerator.is_main_process)
    if newest is None:
        if accelerator.is_main_process:
            write_json(run / "recipe.json", recipe)
            write_json(run / "environment.json", environment(accelerator))
        return 0
    check_state(run, read_json(newest / "state.json"), recipe)
    state = checkpoint.load(newest, parts)
    if accelerator.scaler is not None and state["scaler"]:
        accelerator.scaler.load_state_dict(state["scaler"])
    here = (accelerator.num_processes, torch.get_num_threads())
    if accelerator.is_main_process and here != (state["ranks"], state["threads"]):
        print(
            f"{run}: saved by {state['ranks']} processes x {state['threads']} threads, now {here[0]} x {here[1]}: "
            f"the same samples in the same order, but not bit for bit the same sums",
            flush=True,
        )
    return state["step"]


def check_run(run: Path, recipe: dict[str, Any]) -> None:
    """Refuse, before anything is read, a folder that is none or whose run this recipe cannot go on with."""
    if run.exists() and not run.is_dir():
        raise ValueError(f"out={run} is a file: name a folder")
    for newest in sorted(run.glob("checkpoints/step_*/state.json"))[-1:]:
        check_state(run, read_json(newest), recipe)


def check_state(run: Path, state: dict[str, Any], recipe: dict[str, Any]) -> None:
    """Refuse to go on from a checkpoint with another recipe, or to fewer steps than were done."""
    if changed := list(differences(state["recipe"], recipe)):
        raise ValueError(
            f"{run} was begun with another recipe: {'; '.join(changed)}. Give that recipe again, or begin a new run "
            f"with out=FOLDER"
        )
    if state["step"] > recipe["train"]["steps"]:
        raise ValueError(
            f"{run} is at step {state['step']} already, beyond train.steps={recipe['train']['steps']}: raise it, or "
            f"begin a new run with out=FOLDER"
        )


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The keys of a recipe that may not change during a run and did."""
    for key in sorted(old.keys() | new.keys()):
        if key not in old:  # unknown to the version that began the run, which did what the default does
            continue
        a, b = old[key], new.get(key)
        if (prefix == "train." and key in FREE) or (prefix == "" and key in PLACES):
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            yield from differences(a, b, f"{prefix}{key}.")
        elif a != b:
            yield f"`{prefix}{key}` was {a!r}, is {b!r}"


@contextmanager
def alone_in(run: Path) -> Iterator[None]:
    """Hold the run's folder, as two trainings in one would overwrite each other; remove what a killed one left."""
    run.mkdir(parents=True, exist_ok=True)
    with lock(run / ".lock") as alone:
        if not alone:
            raise ValueError(f"{run}: another process trains in this folder; wait for it, or set out=FOLDER")
        for folder in (run, run / "checkpoints"):
            sweep(folder)
        yield
