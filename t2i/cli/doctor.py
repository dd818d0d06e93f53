"""`t2i doctor`: what works on this machine, tried out rather than asked for, and the way out of what does not."""

import json
import os
import platform
import re
import shutil
import sys
import textwrap
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module, metadata
from pathlib import Path
from typing import Annotated

import typer

from t2i.cli.doctor_check import BAD, NOTE, OK, Check, Checks, cause_of, size

MARKS = {OK: "  ok  ", NOTE: " note ", BAD: " BAD  "}
COLUMNS = 80
ATTENTION = ("sdpa", "xformers")
LEAST_FREE = 10**9  # bytes of disk: less holds no checkpoint
# The modules to import, with the package that each comes in and the extra that asks for it.
MODULES = {
    "torch": ("torch", ""),
    "transformers": ("transformers", ""),
    "accelerate": ("accelerate", ""),
    "datasets": ("datasets", ""),
    "open_clip": ("open_clip_torch", ""),
    "xformers": ("xformers", "xformers"),
}


def doctor(
    attention: Annotated[
        str | None, typer.Option(help="sdpa or xformers: a backend that you mean to use, and that has to work")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object, for programs")] = False,
) -> None:
    """Try out what t2i needs here: versions, devices, dtypes, attention, disk, the shipped model. Needs no network.

    Exit 1 when something that generating or training needs will not work; what is optional and missing is a note.
    """
    if attention not in (None, *ATTENTION):
        raise ValueError(f"--attention = {attention!r} is unknown: choose one of {', '.join(ATTENTION)}")
    found = []
    for check in examine(attention or "sdpa"):
        found.append(check)
        if not as_json:
            typer.echo(shown(check))
    bad = [check.name for check in found if check.status == BAD]
    if as_json:
        typer.echo(json.dumps({"ok": not bad, "checks": [asdict(check) for check in found]}))
    else:
        end = f"will not work: {', '.join(bad)}" if bad else "everything that t2i needs works"
        typer.echo(textwrap.fill(end, COLUMNS))
    if bad:
        raise typer.Exit(1)


def shown(check: Check) -> str:
    """A finding in lines of at most COLUMNS; only a path that is longer stands out."""
    lines = [(MARKS[check.status], f"{check.name}: {check.text}")]
    lines += [("        -> ", check.way_out)] if check.way_out else []
    return "\n".join(
        textwrap.fill(
            text,
            COLUMNS,
            initial_indent=start,
            subsequent_indent=" " * (len(start) + (2 if start in MARKS.values() else 0)),
            break_long_words=False,
            break_on_hyphens=False,
        )
        for start, text in lines
    )


def examine(attention: str = "sdpa") -> Checks:
    """Every check; those that compute are left out where torch cannot be imported."""
    yield from check_python()
    packages = list(check_packages())
    yield from packages
    yield from check_disk()
    yield from check_hub()
    if any(check.name == "torch" and check.status == BAD for check in packages):
        return
    try:
        from t2i.cli.doctor_devices import check_device, check_processor, check_shipped, devices
    except Exception as error:
        yield Check("t2i", BAD, f"cannot be imported ({cause_of(error)})", "mend the packages above")
        return
    yield from check_processor()
    found = devices()
    default = "cuda" if any(device.type == "cuda" for device in found) else "cpu"  # where commands run unless told
    for device in found:
        yield from check_device(device, attention if device.type == default else "sdpa")
    yield from check_shipped()


def check_python() -> Checks:
    """This Python, and the package itself."""
    import t2i

    wanted = (3, 11)
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    old = sys.version_info < wanted
    yield Check("python", BAD if old else OK, text, "install Python 3.11 or newer" if old else "")
    try:
        yield Check("t2i", OK, f"{metadata.version('t2i')} in {Path(t2i.__file__).parent}")
    except metadata.PackageNotFoundError:
        yield Check("t2i", BAD, f"runs from {Path(t2i.__file__).parent}, but is not installed", "pip install -e .")


def check_packages() -> Checks:
    """The heavy packages imported, and the version of each against the one that t2i asks for."""
    try:
        least = least_versions(metadata.requires("t2i") or [])
    except metadata.PackageNotFoundError:
        least = {}  # which is said already
    for module, (package, extra) in MODULES.items():
        wanted = least.get(package, "0")
        bad = NOTE if extra else BAD
        command = f"pip install -e '.[{extra}]'" if extra else f"pip install '{package}>={wanted}'"
        try:
            imported = import_module(module)
            version = metadata.version(package)
        except Exception as error:  # whatever a broken build raises
            missing = isinstance(error, ModuleNotFoundError) and error.name == module
            text = "not installed" if missing else f"cannot be imported ({cause_of(error)})"
            yield Check(module, bad, text + (", which is optional" if extra else ""), command)
            continue
        if _older(version, wanted):
            yield Check(module, bad, f"{version} is older than {wanted}", command)
        else:
            yield Check(module, OK, str(getattr(imported, "__version__", version)))
    yield from _others({name: least[name] for name in least if name not in dict(MODULES.values())})


def _others(least: dict[str, str]) -> Checks:
    """The versions of the rest, which needs no import."""
    fit = 0
    for package, wanted in least.items():
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            yield Check(package, BAD, "not installed", f"pip install '{package}>={wanted}'")
            continue
        if _older(version, wanted):
            yield Check(package, BAD, f"{version} is older than {wanted}", f"pip install '{package}>={wanted}'")
        else:
            fit += 1
    yield Check("other packages", OK, f"{fit} have the versions that t2i asks for")


def least_versions(requirements: list[str]) -> dict[str, str]:
    """Package -> version of lines such as "torch>=2.10"; of an extra's, those that are imported alone."""
    found = {}
    for line in requirements:
        match = re.match(r"([\w.-]+)(?:\[.*?\])?\s*>=\s*([\d.]+)", line)
        if match and ("extra ==" not in line or match[1] in MODULES):
            found[match[1]] = match[2]
    return found


def _older(version: str, least: str) -> bool:
    numbers = [[int(part) for part in re.findall(r"\d+", text.split("+")[0])[:3]] for text in (version, least)]
    return numbers[0] < numbers[1]


def check_disk() -> Checks:
    """Free space where pictures and runs go, and where temporary files do."""
    import tempfile

    for name, folder in (("disk, this folder", Path.cwd()), ("disk, temporary files", Path(tempfile.gettempdir()))):
        yield _disk(name, folder, "free some space, or work in a folder of another disk")
    if not os.access(Path.cwd(), os.W_OK):
        yield Check(
            "folder", NOTE, f"{Path.cwd()} cannot be written to", "give -o FOLDER, or work in a folder of your own"
        )


def _disk(name: str, folder: Path, way_out: str) -> Check:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    few = free < LEAST_FREE
    return Check(name, BAD if few else OK, f"{size(free)} free in {folder}", way_out if few else "")


def check_hub() -> Checks:
    """The cache of models that are downloaded."""
    try:
        from huggingface_hub import constants
    except Exception as error:
        yield Check(
            "model cache", BAD, f"huggingface_hub cannot be imported ({cause_of(error)})", "pip install huggingface_hub"
        )
        return
    folder = Path(constants.HF_HUB_CACHE)
    held = size(folder_size(folder)) if folder.is_dir() else "nothing yet"
    offline = ", offline (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else ""
    yield Check("model cache", OK, f"{held} in {folder}{offline}")
    yield _disk("disk, model cache", folder, "free some space, or set HF_HOME to a folder of another disk")


def folder_size(folder: Path) -> int:
    """Bytes of the files in a folder; links, of which the hub's cache is full, count nothing."""
    found = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # of a download that ends meanwhile
                found += 0 if (path := Path(place, name)).is_symlink() else path.stat().st_size
    return found
