"""Sources of a single file's configs besides its tensors: a config folder, a `.yaml` beside it, its metadata."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from t2i.files import read_json

METADATA = "t2i"
CONFIGS = {
    "unet": "config.json",
    "vae": "config.json",
    "text_encoder": "config.json",
    "scheduler": "scheduler_config.json",
}
PREDICTIONS = {
    "epsilon": "epsilon",
    "eps": "epsilon",
    "v": "v_prediction",
    "v_prediction": "v_prediction",
    "sample": "sample",
}
NUMBER = (int, float)
MOST_YAML = 2**16  # bytes; those published have about 2000


def parse_prediction(name: str, where: str) -> str:
    """Returns a prediction type by the name that scheduler_config.json has for it."""
    if name not in PREDICTIONS:
        raise ValueError(f"{where}: prediction {name!r:.200} is not known; {', '.join(PREDICTIONS)} are")
    return PREDICTIONS[name]


def read_config_folder(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns the JSON configs of a diffusers folder, by component; those that it lacks are left out."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; --config takes a diffusers folder with its JSON configs")
    files = {name: folder / name / file for name, file in CONFIGS.items()}
    configs = {name: read_json(file) for name, file in files.items() if file.is_file()}
    if not configs:
        places = ", ".join(str(file.relative_to(folder)) for file in files.values())
        raise ValueError(f"{folder}: holds none of {places}; --config takes a diffusers folder with its JSON configs")
    return configs


def read_metadata(metadata: Mapping[str, str], where: Path) -> dict[str, dict[str, Any]]:
    """Returns the JSON configs in the header of a file that t2i wrote; empty for others."""
    if METADATA not in metadata:
        return {}
    try:
        values = json.loads(metadata[METADATA])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: its metadata `{METADATA}` is not JSON ({error})") from None
    if not isinstance(values, dict) or values.get("schema_version") != 1:
        raise ValueError(
            f"{where}: its metadata `{METADATA}` is not of schema_version 1; write it again with t2i convert"
        )
    parts = {k: v for k, v in values.items() if k != "schema_version"}
    if bad := [k for k in CONFIGS if not isinstance(parts.get(k), dict)]:
        raise ValueError(f"{where}: its metadata `{METADATA}` lacks {', '.join(bad)}; give --config DIR")
    if bad := [k for k, v in parts.items() if not isinstance(v, dict)]:
        raise ValueError(f"{where}: in its metadata `{METADATA}`, {', '.join(bad)} is not a JSON object")
    return parts


def read_yaml(path: Path) -> dict[str, Any] | None:
    """Returns `model.params` of the `.yaml` of the same name beside the file, as the original code reads it."""
    beside = path.with_suffix(".yaml")
    if not beside.is_file():
        return None
    try:
        if beside.stat().st_size > MOST_YAML:
            raise ValueError(f"more than {MOST_YAML >> 10} KiB")
        values: Any = yaml.safe_load(beside.read_text(encoding="utf8"))
        params = values["model"]["params"]
        network = params.get("unet_config", {}).get("params", {})
    except (yaml.YAMLError, ValueError, RecursionError, KeyError, TypeError, AttributeError, OSError) as error:
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{beside}: no config with `model.params` ({cause}); mend it or move it away") from None
    notes: dict[str, Any] = {"parameterization": params.get("parameterization", "eps")}
    notes |= {key: params[key] for key in ("scale_factor", "linear_start", "linear_end", "timesteps") if key in params}
    notes |= {key: network[key] for key in ("num_heads", "num_head_channels") if key in network}
    for key, value in notes.items():  # the value is not printed: YAML aliases could make it arbitrarily long
        if key == "parameterization" and not isinstance(value, str):
            raise ValueError(f"{beside}: `{key}` is not text, but {type(value).__name__}")
        if key != "parameterization" and (isinstance(value, bool) or not isinstance(value, NUMBER)):
            raise ValueError(f"{beside}: `{key}` is not a number, but {type(value).__name__}")
    return notes
