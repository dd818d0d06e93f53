"""Kills, write faults and flipped bits against short trainings: every run resumes bit for bit, every fault is noticed.

usage: python scripts/torture_resume.py [--kills N] [--faults N] [--flips N] [--only NAME ...] [--two-processes N]
       [--seed N] [--folder DIR]
kills   N runs in all, of VAE, U-Net, text encoder and LoRA in turn; each is killed (SIGKILL) one to three times and
        resumed by the same command. Half of the kills fall at a random moment, half before or after a random call that
        writes (open for writing, fsync, rename, remove, mkdir). The last checkpoint, the exported model and the metrics
        must be those of a run that was never killed, byte for byte. Of these, --two-processes runs use torchrun.
faults  N runs in which one writing call fails with ENOSPC or EIO: no traceback, exit code 0 or 1, the newest
        checkpoint is valid, and the same command then ends as the straight run.
flips   N single bits in the files of checkpoints and caches: each is noticed when the file is opened.
A table, then one line of JSON. Exit 1 if anything was lost or went unnoticed.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
STEPS, SAVE_EVERY = 6, 2
SHORT = [f"train.steps={STEPS}", f"train.save_every={SAVE_EVERY}", "train.log_every=1", "train.validate_every=3"]
SHORT += ["train.warmup_steps=1", "train.mixed_precision=no"]
SCENES = ["data.count=48", "validation.count=16", "train.global_batch=8"]
TIMEOUT = 600
CALLS = ("open", "fsync", "replace", "rename", "unlink", "rmdir", "mkdir")

# Runs in the child, before t2i: counts the calls that write below FOLDER, and at the K-th does MODE.
HOOK = """
import builtins, errno, io, os, signal, sys
mode, k, folder = sys.argv[1], int(sys.argv[2]), os.path.realpath(sys.argv[3])
del sys.argv[1:4]
count = 0
def inside(path):
    try:
        return os.path.realpath(os.fspath(path)).startswith(folder)
    except TypeError:
        return isinstance(path, int)
def wrap(function, writes=lambda *a, **k: True):
    def call(*args, **kwargs):
        global count
        if not args or not inside(args[0]) or not writes(*args, **kwargs):
            return function(*args, **kwargs)
        count += 1
        if count == k and mode == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        if count == k and mode in ("ENOSPC", "EIO"):
            code = getattr(errno, mode)
            raise OSError(code, os.strerror(code), args[0])
        result = function(*args, **kwargs)
        if count == k and mode == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call
def for_writing(path, mode="r", *a, **k):
    return any(c in mode for c in "wax+")
builtins.open = io.open = wrap(io.open, for_writing)
for name in ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir"):
    setattr(os, name, wrap(getattr(os, name)))
import atexit
atexit.register(lambda: print("writing calls:", count, file=sys.stderr))
from t2i.__main__ import main
main()
"""


def commands(folder: Path) -> dict[str, list[str]]:
    """Returns the command of each training, without its output folder; U-Net and LoRA use `folder/straight`."""
    base, scenes = folder / "straight", ROOT / "configs" / "scenes"
    return {
        "vae": ["train", "vae", f"{scenes}/vae.yaml", *SCENES, *SHORT],
        "text-encoder": ["train", "text-encoder", f"{scenes}/text-encoder.yaml", *SCENES, *SHORT],
        "unet": [
            *("train", "unet", f"{scenes}/unet.yaml", *SCENES, *SHORT, "sample.prompts=[a red circle]"),
            *("sample.steps=2", f"vae={base}/vae/vae", f"text_encoder={base}/text-encoder", f"cache={folder}/cache"),
        ],
        "lora": [
            *("finetune", "-m", f"{base}/unet/model", "--data", f"{folder}/images", *SHORT, "train.global_batch=4"),
            *("held_out=4", "sample.prompts=[a red circle]", "sample.steps=2"),
        ],
    }


def arguments(command: list[str], out: Path) -> list[str]:
    """Returns the command with its output folder."""
    return [*command, "-o", str(out)] if command[0] == "finetune" else [*command, f"out={out}"]


def start(command: list[str], hook: tuple[str, int, Path] | None = None, processes: int = 1) -> subprocess.Popen[str]:
    """Starts t2i with one thread; `hook` is (mode, k, folder) of HOOK."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    if processes > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--master_port=0"]
        full = [*launcher, "-m", "t2i", *command]
    elif hook is not None:
        full = [sys.executable, "-c", HOOK, hook[0], str(hook[1]), str(hook[2]), *command]
    else:
        full = [sys.executable, "-m", "t2i", *command]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(full, env=environment, start_new_session=True, **pipes)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Returns the exit code and the output of a process."""
    output, _ = process.communicate(timeout=TIMEOUT)
    return process.returncode, output


def contents(run: Path, lora: bool) -> dict[str, Any]:
    """Returns what must be equal at the end of a run: weights, optimiser, exported files, metrics without times."""
    last = run / "checkpoints" / f"step_{STEPS:07}"
    files = [*last.glob("*.safetensors"), *run.glob("*.safetensors")]
    files += [path for name in ("vae", "model", "text_encoder", "image_tower") for path in (run / name).rglob("*")]
    values: dict[str, Any] = {str(p.relative_to(run)): p.read_bytes() for p in files if p.is_file()}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    values["metrics"] = [{key: v for key, v in row.items() if key != "samples_per_second"} for row in rows]
    assert len(values) > 2 and not (lora and not list(run.glob("*.safetensors")))
    return values


def kill_run(name: str, command: list[str], out: Path, rng: random.Random, processes: int, span: dict[str, Any]) -> str:
    """Kills a run one to three times, then lets it finish; returns the fault, "" if it ends as the straight run."""
    for _ in range(rng.randint(1, 3)):
        if processes == 1 and rng.random() < 0.5:
            k = rng.randint(1, span["calls"])
            code, output = finish(start(arguments(command, out), (rng.choice(["before", "after"]), k, out)))
        else:
            process = start(arguments(command, out), processes=processes)
            time.sleep(rng.uniform(0.3, 1) * span["seconds"] * (1.5 if processes > 1 else 1))
            os.killpg(process.pid, signal.SIGKILL)
            code, output = finish(process)
        if "Traceback" in output:
            return f"traceback before the end: {output[-300:]}"
    code, output = finish(start(arguments(command, out), processes=processes))
    if code:
        return f"exit {code}: {output[-300:]}"
    expected, values = contents(span[f"straight-{processes}"], name == "lora"), contents(out, name == "lora")
    different = [key for key in expected if values.get(key) != expected[key]]
    return f"differs: {', '.join(different[:5])}" if different else ""


def fault_run(name: str, command: list[str], out: Path, rng: random.Random, span: dict[str, Any]) -> str:
    """Lets one writing call fail; returns the fault, "" if the run ends and resumes as it should."""
    from t2i.training.checkpoint import damage

    hook = (rng.choice(["ENOSPC", "EIO"]), rng.randint(1, span["calls"]), out)
    code, output = finish(start(arguments(command, out), hook))
    if "Traceback" in output or code not in (0, 1):
        return f"{hook[0]} at call {hook[1]}: exit {code}: {output[-400:]}"
    for path in sorted((out / "checkpoints").glob("step_*"))[-1:]:
        if (problem := damage(path)) is not None:
            return f"{hook[0]} at call {hook[1]}: {path.name}: {problem}"
    code, output = finish(start(arguments(command, out)))
    if code:
        return f"after {hook[0]} at call {hook[1]}: exit {code}: {output[-300:]}"
    expected, values = contents(span["straight-1"], name == "lora"), contents(out, name == "lora")
    different = [key for key in expected if key != "metrics" and values.get(key) != expected[key]]
    return f"after {hook[0]} at call {hook[1]}: differs: {', '.join(different[:5])}" if different else ""


def flip(path: Path, rng: random.Random, opened: Callable[[], object]) -> bool:
    """Flips one bit of a file, calls `opened`, restores the file; returns True if the damage was noticed."""
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
    path.write_bytes(damaged)
    try:
        return opened() is not None
    except ValueError:
        return True
    finally:
        path.write_bytes(whole)


def flips(folder: Path, count: int, rng: random.Random) -> tuple[int, int]:
    """Returns (flips, unnoticed ones), over the newest checkpoints and the caches of the straight runs."""
    from t2i.data.cache import _Shards
    from t2i.training.checkpoint import damage

    places: list[tuple[Path, Callable[[], object]]] = []
    for step in (folder / "straight").glob(f"*/checkpoints/step_{STEPS:07}"):
        places += [(path, lambda step=step: damage(step)) for path in step.iterdir()]
    for manifest in (folder / "cache").rglob("manifest.json"):
        files = manifest.parent.glob("*.safetensors")
        places += [(path, lambda place=manifest.parent: _Shards(place) and None) for path in files]
    unnoticed = 0
    for _ in range(count):
        path, opened = rng.choice(places)
        unnoticed += not flip(path, rng, opened)
    return count, unnoticed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--two-processes", type=int, default=20)
    parser.add_argument("--faults", type=int, default=60)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--only", nargs="+", choices=["vae", "text-encoder", "unet", "lora"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="by default a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(torture(options, options.folder or Path(temporary)))


def torture(options: argparse.Namespace, folder: Path) -> int:
    """Runs everything in `folder`; returns the exit code."""
    rng, trainings = random.Random(options.seed), commands(folder)
    write_images(folder / "images")
    spans: dict[str, dict[str, Any]] = {}
    for name, command in trainings.items():
        began = time.monotonic()
        out = folder / "straight" / name
        code, output = finish(start(arguments(command, out), ("count", 0, out)))
        assert code == 0, output
        calls = int(output.rpartition("writing calls:")[2].split()[0])
        spans[name] = {"seconds": time.monotonic() - began, "calls": calls, "straight-1": out}
        print(f"{name}: {calls} writing calls, {spans[name]['seconds']:.0f} s", flush=True)
    names = options.only or list(trainings)
    if options.two_processes:
        for name in names:
            spans[name]["straight-2"] = out = folder / "straight-2" / name
            code, output = finish(start(arguments(trainings[name], out), processes=2))
            assert code == 0, output
    faults: list[str] = []
    done: Counter[str] = Counter()
    for i in range(options.kills + options.faults):
        name, killing = names[i % len(names)], i < options.kills
        out = folder / f"run-{i}"
        processes = 2 if killing and i < options.two_processes else 1
        kind = f"{'kill' if killing else 'fault'} {name} x {processes}"
        if killing:
            fault = kill_run(name, trainings[name], out, rng, processes, spans[name])
        else:
            fault = fault_run(name, trainings[name], out, rng, spans[name])
        done[kind] += 1
        if fault:
            faults.append(f"{kind} (run {i}): {fault}")
            print(faults[-1], flush=True)
        shutil.rmtree(out, ignore_errors=True)
        if (i + 1) % 10 == 0:
            print(f"{i + 1}/{options.kills + options.faults} runs, {len(faults)} faults", flush=True)
    flipped, unnoticed = flips(folder, options.flips, rng)
    for kind, n in sorted(done.items()):
        print(f"{kind:28} {n:4} runs, {sum(f.startswith(f'{kind} ') for f in faults)} faults")
    print(f"{'flipped bits':28} {flipped:4}, {unnoticed} unnoticed")
    print(json.dumps({"runs": dict(done), "faults": faults, "flips": flipped, "unnoticed": unnoticed}))
    return int(bool(faults or unnoticed))


def write_images(folder: Path) -> None:
    """Writes captioned images of plain colours."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for i in range(12):
        Image.new("RGB", (32, 32), (20 * i, 100, 255 - 20 * i)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a square of colour {i}")


if __name__ == "__main__":
    main()
