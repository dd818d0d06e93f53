"""Engines that run the networks of a pipeline: torch, or OpenVINO on a CPU."""

import importlib
import os
import sys
from typing import Any

from t2i.errors import ConfigError

ENGINES = ("torch", "openvino")


def default_engine() -> str:
    """Returns the engine of the environment variable T2I_ENGINE, by default torch."""
    return check_engine(os.environ.get("T2I_ENGINE") or "torch", "T2I_ENGINE")


def check_engine(name: str, key: str = "engine") -> str:
    """Returns the name of an engine; raises a ConfigError for an unknown one."""
    if name not in ENGINES:
        raise ConfigError(key, f"unknown; choose one of {', '.join(ENGINES)}", name)
    return name


def import_openvino() -> Any:
    """Imports OpenVINO without its telemetry, which reports every import to its makers where it can be imported."""
    sys.modules.setdefault("openvino_telemetry", None)  # pyright: ignore[reportArgumentType]
    return importlib.import_module("openvino")
