"""Settings travel in the picture: the texts of a PNG, ours and those of other programs. Nothing here needs torch.

Ours are two: `t2i`, JSON and the truth, and `parameters`, A1111's text, for other programs. Read are both, InvokeAI's
and Fooocus's. What comes out of a file is from an unknown hand: sizes, depths, types and bounds are checked, and
nothing of it is run.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from t2i.pipeline.metadata.a1111 import from_a1111, to_a1111
from t2i.pipeline.metadata.chunks import read_texts
from t2i.pipeline.metadata.fields import FIELDS, FILES, MOST_TEXT, SCHEMA, PngSettings, checked, read_json, short, text
from t2i.pipeline.metadata.foreign import from_dream, from_fooocus, from_invokeai, from_sd_metadata

__all__ = ["SCHEMA", "PngSettings", "from_a1111", "read_png", "request_from", "to_a1111", "to_texts"]

OURS = "t2i"  # the key of our JSON
# Of several texts the first here counts; A1111's is left out, because what it means depends on Fooocus's scheme.
READERS: dict[str, Callable[[str], PngSettings]] = {
    "invokeai_metadata": from_invokeai,
    "sd-metadata": from_sd_metadata,
    "Dream": from_dream,
}
COMFYUI = {"prompt", "workflow"}
# What `t2i generate` calls the settings that it takes; the others say what the picture was made with.
OPTIONS = (
    "negative", "steps", "cfg", "solver", "sigmas", "spacing", "eta", "seed", "size", "strength", "clip_skip",
    "guidance_rescale", "guidance_interval", "prompt_syntax", "long_prompts", "towards", "variation_seed",
    "variation_strength", "dtype",
)  # fmt: skip


def to_texts(settings: dict[str, Any]) -> dict[str, str]:
    """The texts of a PNG by their keys; ValueError for text that no file can hold, or for too much of it."""
    for name in ("prompt", "negative"):
        checked({name: settings.get(name) or ""})
    texts = {OURS: json.dumps({"schema_version": SCHEMA, **settings}, ensure_ascii=False, allow_nan=False)}
    texts["parameters"] = to_a1111(settings)
    if (size := sum(len(text(value).encode()) for value in texts.values())) > MOST_TEXT:
        raise ValueError(f"the settings are {size} bytes of text, and a picture holds {MOST_TEXT}: shorten the prompt")
    return texts


def read_png(path: str | Path) -> PngSettings:
    """The settings inside a PNG (or in the EXIF of a JPEG or WebP); ValueError where there are none to be had."""
    texts, others = read_texts(path, {OURS, "parameters", "fooocus_scheme", *READERS})
    scheme = texts.pop("fooocus_scheme", None)
    key = next((key for key in (OURS, *READERS, "parameters") if key in texts), None)
    if key is None:
        graph = " (a ComfyUI graph is in it, which is not one request)" if COMFYUI & set(others) else ""
        raise ValueError(f"{path}: holds no settings of t2i, A1111, InvokeAI or Fooocus{graph}")
    try:
        if key == OURS:
            found = _from_ours(texts[key])
            texts.pop("parameters", None)  # ours again
        elif key in READERS:
            found = READERS[key](texts[key])
        elif scheme is not None or _is_object(texts[key]):
            found = from_fooocus(texts[key], scheme or "fooocus")
        else:
            found = from_a1111(texts[key])
    except ValueError as error:
        raise ValueError(f"{path}: its settings ({key!r}) are refused: {error}") from None
    others += [other for other in texts if other != key]
    return found._replace(ignored=[*found.ignored, *(f"text {short(other)}" for other in others)])


def _is_object(written: str) -> bool:
    """Whether a text is JSON, as Fooocus writes it under A1111's name: a prompt in braces has settings after it."""
    written = written.strip()
    return written.startswith("{") and written.endswith("}")


def request_from(settings: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `t2i generate` that ask for the picture again, `prompts` and those of OPTIONS.

    Without the model (it has a name here, not a place) and without the picture that another one began with.
    """
    version = settings.get("schema_version", SCHEMA)
    if version != SCHEMA:
        raise ValueError(
            f"schema_version = {short(version)} is unknown (this version knows {SCHEMA}): a newer t2i wrote the picture"
        )
    if "prompt" not in settings:
        raise ValueError("the settings hold no prompt: give PROMPT...")
    known = checked({name: settings[name] for name in ("prompt", *OPTIONS) if settings.get(name) is not None})
    return {"prompts": [known.pop("prompt")], **known}


def _from_ours(written: str) -> PngSettings:
    """Our own JSON. Of a schema that is unknown here only the version is taken."""
    found = read_json(written)
    version = found.pop("schema_version", None)
    if type(version) is not int:
        raise ValueError(f"schema_version = {short(version)} is not a whole number")
    settings, ignored = {}, []
    for name, value in found.items():
        if version == SCHEMA and name in FIELDS:
            settings |= {name: value} if value is not None else {}
        else:
            ignored.append(f"{name} = {short(value)}")
    for name in FILES:
        if (name in settings) != (f"{name}_sha256" in settings):
            raise ValueError(f"{name} and {name}_sha256 belong together, and one of them is missing")
    return PngSettings({"schema_version": version, **checked(settings)}, OURS, written, ignored)
