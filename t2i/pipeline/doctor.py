"""Checks of this machine by trial: packages, disk, the hub's cache, devices. It runs where torch does not."""

import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path

from t2i.engine import import_openvino

OK, NOTE, BAD = "ok", "note", "bad"
LEAST_FREE = 10**9  # bytes of disk: too small for a checkpoint
# The modules to import, with the package of each and the extra that requires it.
MODULES = {
    "torch": ("torch", ""),
    "transformers": ("transformers", ""),
    "accelerate": ("accelerate", ""),
    "datasets": ("datasets", ""),
    "open_clip": ("open_clip_torch", ""),
    "xformers": ("xformers", "xformers"),
    "openvino": ("openvino", "openvino"),
}


@dataclass(frozen=True)
class Check:
    """The result of a check; `way_out` is the remedy if it failed."""

    name: str
    status: str
    text: str
    way_out: str = ""


Checks = Iterator[Check]


def run_checks(attention: str = "sdpa") -> Checks:
    """Yields every check; those that compute are skipped if torch cannot be imported."""
    yield from check_python()
    packages = list(check_packages())
    yield from packages
    yield from check_disk()
    yield from check_hub()
    if any(check.name == "torch" and check.status == BAD for check in packages):
        return
    try:
        from t2i.pipeline.doctor_devices import check_device, check_processor, check_shipped, devices
    except Exception as error:
        yield Check("t2i", BAD, f"cannot be imported ({cause_of(error)})", "repair the packages above")
        return
    yield from check_processor()
    available = devices()
    default = "cuda" if any(device.type == "cuda" for device in available) else "cpu"  # without --device
    for device in available:
        yield from check_device(device, attention if device.type == default else "sdpa")
    yield from check_shipped()


def check_python() -> Checks:
    """Checks the version of Python, and that t2i is installed."""
    import t2i

    minimum = (3, 11)
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    old = sys.version_info < minimum
    yield Check("python", BAD if old else OK, text, "install Python 3.11 or newer" if old else "")
    try:
        yield Check("t2i", OK, f"{metadata.version('t2i')} in {Path(t2i.__file__).parent}")
    except metadata.PackageNotFoundError:
        yield Check("t2i", BAD, f"runs from {Path(t2i.__file__).parent}, but is not installed", "pip install -e .")


def check_packages() -> Checks:
    """Imports the heavy packages and compares all versions with those that t2i requires."""
    try:
        least = least_versions(metadata.requires("t2i") or [])
    except metadata.PackageNotFoundError:
        least = {}  # check_python has reported it
    for module, (package, extra) in MODULES.items():
        minimum = least.get(package, "0")
        bad = NOTE if extra else BAD
        command = f"pip install -e '.[{extra}]'" if extra else f"pip install '{package}>={minimum}'"
        try:
            imported = import_openvino() if module == "openvino" else import_module(module)
            version = metadata.version(package)
        except Exception as error:  # a broken build may raise anything
            missing = isinstance(error, ModuleNotFoundError) and error.name == module
            text = "not installed" if missing else f"cannot be imported ({cause_of(error)})"
            yield Check(module, bad, text + (", which is optional" if extra else ""), command)
            continue
        if _older(version, minimum):
            yield Check(module, bad, f"{version} is older than {minimum}", command)
        else:
            yield Check(module, OK, str(getattr(imported, "__version__", version)))
    yield from _others({name: least[name] for name in least if name not in dict(MODULES.values())})


def _others(least: dict[str, str]) -> Checks:
    """Checks the versions of the other packages, without importing them."""
    ok = 0
    for package, minimum in least.items():
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            yield Check(package, BAD, "not installed", f"pip install '{package}>={minimum}'")
            continue
        if _older(version, minimum):
            yield Check(package, BAD, f"{version} is older than {minimum}", f"pip install '{package}>={minimum}'")
        else:
            ok += 1
    yield Check("other packages", OK, f"{ok} have the versions that t2i requires")


def least_versions(requirements: list[str]) -> dict[str, str]:
    """Maps packages to versions by lines such as "torch>=2.10"; of the extras, only those of MODULES."""
    versions = {}
    for line in requirements:
        match = re.match(r"([\w.-]+)(?:\[.*?\])?\s*>=\s*([\d.]+)", line)
        if match and ("extra ==" not in line or match[1] in MODULES):
            versions[match[1]] = match[2]
    return versions


def _older(version: str, least: str) -> bool:
    numbers = [[int(part) for part in re.findall(r"\d+", text.split("+")[0])[:3]] for text in (version, least)]
    return numbers[0] < numbers[1]


def check_disk() -> Checks:
    """Checks the free space for outputs and for temporary files."""
    for name, folder in (("disk, this folder", Path.cwd()), ("disk, temporary files", Path(tempfile.gettempdir()))):
        yield _disk(name, folder, "free some space, or work in a folder on another disk")
    if not os.access(Path.cwd(), os.W_OK):
        yield Check("folder", NOTE, f"{Path.cwd()} is not writable", "give -o FOLDER, or work in another folder")


def _disk(name: str, folder: Path, way_out: str) -> Check:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    low = free < LEAST_FREE
    return Check(name, BAD if low else OK, f"{size(free)} free in {folder}", way_out if low else "")


def check_hub() -> Checks:
    """Checks the cache of downloaded models."""
    try:
        from huggingface_hub import constants
    except Exception as error:
        yield Check(
            "model cache", BAD, f"huggingface_hub cannot be imported ({cause_of(error)})", "pip install huggingface_hub"
        )
        return
    folder = Path(constants.HF_HUB_CACHE)
    content = size(folder_size(folder)) if folder.is_dir() else "empty"
    offline = ", offline (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else ""
    yield Check("model cache", OK, f"{content} in {folder}{offline}")
    yield _disk("disk, model cache", folder, "free some space, or set HF_HOME to a folder on another disk")


def folder_size(folder: Path) -> int:
    """Returns the bytes of the files in a folder, without links, which the hub's cache uses."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # a download may end meanwhile
                total += 0 if (path := Path(place, name)).is_symlink() else path.stat().st_size
    return total


def cause_of(error: Exception) -> str:
    """Returns an error's class and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def size(count: int) -> str:
    """Formats a number of bytes in MB or GB."""
    return f"{count / 1e9:.1f} GB" if count >= 10**8 else f"{count / 1e6:.1f} MB"
