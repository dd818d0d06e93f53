"""Starting or resuming a run: the same command does both."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from t2i.errors import ConfigError
from t2i.files import lock, read_json, sweep, write_json
from t2i.training import checkpoint
from t2i.training.checkpoint import Parts
from t2i.training.distributed import BatchSplit, process_state
from t2i.training.log import environment
from t2i.training.recipes import Recipe

# Keys of `train` and of the recipe that may change when a run is resumed.
FREE = {"steps", "log_every", "validate_every", "sample_every", "save_every", "keep", "micro_batch"}
PLACES = {"out", "cache", "sample"}  # the cache is keyed by its content


def resume(parts: Parts, recipe: Recipe, accelerator: Accelerator) -> int:
    """Loads the newest valid checkpoint of the run into `parts`; returns its step, 0 in a new folder."""
    run = recipe.run
    newest = checkpoint.latest(run / "checkpoints", quiet=not accelerator.is_main_process)
    if newest is None:
        if accelerator.is_main_process:
            write_json(run / "recipe.json", recipe.model_dump(mode="json"))
            write_json(run / "environment.json", environment(accelerator))
        return 0
    check_state(read_json(newest / "state.json"), recipe)
    state = checkpoint.load(newest, parts)
    if accelerator.scaler is not None and state["scaler"]:
        accelerator.scaler.load_state_dict(state["scaler"])
    here = (accelerator.num_processes, torch.get_num_threads())
    if accelerator.is_main_process and here != (state["ranks"], state["threads"]):
        print(
            f"{run}: saved by {state['ranks']} processes x {state['threads']} threads, now {here[0]} x {here[1]}: "
            f"the samples and their order are the same, the rounding of sums is not",
            flush=True,
        )
    return state["step"]


def check_run(recipe: Recipe, couples_batch: bool) -> None:
    """Raises, before any image is read, if the batch cannot be split or the run's folder does not fit the recipe."""
    BatchSplit.of(recipe.train, process_state().num_processes, couples_batch)
    run = recipe.run
    try:
        run.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError("out", f"cannot be written ({error.strerror}): give another folder", str(run)) from None
    if not run.is_dir():
        raise ValueError(f"out={run} is a file: give a folder")
    if (newest := checkpoint.latest(run / "checkpoints", quiet=True)) is not None:
        check_state(read_json(newest / "state.json"), recipe)


def check_state(state: dict[str, Any], recipe: Recipe) -> None:
    """Raises if a checkpoint was saved under another recipe or is beyond the recipe's last step."""
    if changed := list(differences(state["recipe"], recipe.model_dump(mode="json"))):
        raise ValueError(
            f"{recipe.run} was started with another recipe: {'; '.join(changed)}. Restore that recipe, or start a new "
            f"run with out=FOLDER"
        )
    if state["step"] > recipe.train.steps:
        raise ValueError(
            f"{recipe.run} is already at step {state['step']}, beyond train.steps={recipe.train.steps}: raise it, or "
            f"start a new run with out=FOLDER"
        )


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yields the keys that must not change during a run and did, with both values."""
    for key in sorted(old.keys() | new.keys()):
        if key not in old:  # the run was started by a version without this key, which did what its default does
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
    """Locks the run's folder against a second training, and removes what a killed one left unfinished."""
    run.mkdir(parents=True, exist_ok=True)
    with lock(run / ".lock") as alone:
        if not alone:
            raise ValueError(f"{run}: another process trains in this folder; wait for it, or set out=FOLDER")
        for folder in (run, run / "checkpoints"):
            sweep(folder)
        yield
