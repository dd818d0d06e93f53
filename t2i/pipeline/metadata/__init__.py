"""Settings inside images: the texts of a PNG, ours and those of other programs. Torch is not needed.

A PNG of t2i has two: `t2i`, JSON, which is read back, and `parameters`, A1111's text, for other programs. Those of
InvokeAI, Fooocus and SwarmUI are read too. A file is untrusted: sizes, depths, types and bounds are checked; nothing is
run.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from t2i.pipeline.metadata.a1111 import from_a1111, to_a1111
from t2i.pipeline.metadata.chunks import read_texts
from t2i.pipeline.metadata.fields import MOST_TEXT, SCHEMA, PngSettings, read_json
from t2i.pipeline.metadata.foreign import from_dream, from_fooocus, from_invokeai, from_object, from_sd_metadata
from t2i.pipeline.settings import FILES, SETTINGS, checked, short, text

__all__ = ["SCHEMA", "PngSettings", "from_a1111", "read_png", "request_from", "to_a1111", "to_texts"]

OURS = "t2i"  # the key of our JSON
# The first of several texts is read; A1111's is left out, because its meaning depends on Fooocus's scheme.
READERS: dict[str, Callable[[str], PngSettings]] = {
    "invokeai_metadata": from_invokeai,
    "sd-metadata": from_sd_metadata,
    "Dream": from_dream,
}
COMFYUI = {"prompt", "workflow"}
# The settings that `t2i generate` takes from an image; the others describe its model and its files.
OPTIONS = [
    name
    for name, setting in SETTINGS.items()
    if (setting.parameter or name in ("size", "dtype")) and name not in ("prompt", *FILES)
]


def to_texts(settings: dict[str, Any]) -> dict[str, str]:
    """Returns the texts of a PNG by their keys; raises ValueError for invalid or for too much text."""
    for name in ("prompt", "negative"):
        checked({name: settings.get(name) or ""})
    texts = {OURS: json.dumps({"schema_version": SCHEMA, **settings}, ensure_ascii=False, allow_nan=False)}
    texts["parameters"] = to_a1111(settings)
    if (size := sum(len(text(value).encode()) for value in texts.values())) > MOST_TEXT:
        raise ValueError(f"the settings are {size} bytes of text, and an image holds {MOST_TEXT}: shorten the prompt")
    return texts


def read_png(path: str | Path) -> PngSettings:
    """Returns the settings inside a PNG (or in the EXIF of a JPEG or WebP); raises ValueError if there are none."""
    texts, others = read_texts(path, {OURS, "parameters", "fooocus_scheme", *READERS})
    scheme = texts.pop("fooocus_scheme", None)
    key = next((key for key in (OURS, *READERS, "parameters") if key in texts), None)
    if key is None:
        graph = " (a ComfyUI graph is in it, which is not one request)" if COMFYUI & set(others) else ""
        raise ValueError(f"{path}: holds no settings of t2i, A1111, InvokeAI, Fooocus or SwarmUI{graph}")
    try:
        if key == OURS:
            image = _from_ours(texts[key])
            texts.pop("parameters", None)  # ours again
        elif key in READERS:
            image = READERS[key](texts[key])
        elif scheme is not None:
            image = from_fooocus(texts[key], scheme)
        elif _is_object(texts[key]):
            image = from_object(texts[key])
        else:
            image = from_a1111(texts[key])
    except ValueError as error:
        raise ValueError(f"{path}: its settings ({key!r}) are refused: {error}") from None
    others += [other for other in texts if other != key]
    return image._replace(ignored=[*image.ignored, *(f"text {short(other)}" for other in others)])


def _is_object(written: str) -> bool:
    """True if a text is JSON, as some programs write it under A1111's key: a prompt in braces has settings after it."""
    written = written.strip()
    return written.startswith("{") and written.endswith("}")


def request_from(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings that draw an image again: `prompts`, and those that a request takes.

    The model and the files that the image was made with are left out: the image holds their names, not their paths.
    """
    version = settings.get("schema_version", SCHEMA)
    if version != SCHEMA:
        raise ValueError(
            f"schema_version = {short(version)} is unknown (this version knows {SCHEMA}): a newer t2i wrote the image"
        )
    if "prompt" not in settings:
        raise ValueError("the settings hold no prompt: give PROMPT...")
    known = checked({name: settings[name] for name in ("prompt", *OPTIONS) if settings.get(name) is not None})
    return {"prompts": [known.pop("prompt")], **known}


def _from_ours(written: str) -> PngSettings:
    """Returns the settings of our own JSON; of an unknown schema only the version."""
    values = read_json(written)
    version = values.pop("schema_version", None)
    if type(version) is not int:
        raise ValueError(f"schema_version = {short(version)} is not a whole number")
    settings, ignored = {}, []
    for name, value in values.items():
        if version == SCHEMA and name in SETTINGS:
            settings |= {name: value} if value is not None else {}
        else:
            ignored.append(f"{name} = {short(value)}")
    for name in FILES:
        if (name in settings) != (f"{name}_sha256" in settings):
            raise ValueError(f"{name} and {name}_sha256 belong together, and one of them is missing")
    return PngSettings({"schema_version": version, **checked(settings)}, OURS, written, ignored)
