"""A1111's text of settings: the prompt, `Negative prompt: ...`, and a last line of `Key: value, ...` pairs.

The text alone cannot distinguish a prompt's own line "Negative prompt: x" from the negative prompt, and trims every
line. For such prompts only, and where `<lora:NAME:WEIGHT>` was added, the last line also holds `t2i prompt` and
`t2i negative prompt`, JSON strings that take precedence.
"""

import json
import re
from typing import Any

from t2i.diffusion.names import SIGMAS, SOLVER_NAMES
from t2i.pipeline.metadata.fields import PngSettings, number_in, solver_settings
from t2i.pipeline.settings import SETTINGS, Number, checked, short, text

NEGATIVE = "Negative prompt:"
EXACT = {"prompt": "t2i prompt", "negative": "t2i negative prompt"}
KEYS = {name: setting.a1111 for name, setting in SETTINGS.items() if setting.a1111 is not None}
MEANINGLESS = {("Schedule type", "Uniform"), ("Version", "t2i")}
FIELD_OF = {key: field for field, key in KEYS.items()}
SIGMAS_OF = {label: name for name, label in SIGMAS.items()}
# A key is two characters or more, a value is quoted or ends at a comma. Nothing is tried twice: linear in the line.
_PAIR = re.compile(r'(?<![\w \-/])[ \-/]*+(\w[\w \-/]++):\s*+("(?:[^\\"]++|\\.)++"|[^,]*)(?:,|$)')


def to_a1111(settings: dict[str, Any]) -> str:
    """Returns the text of our settings, from which `from_a1111` restores prompts exactly, and A1111 wherever it can."""
    prompts = {name: text(settings.get(name) or "") for name in EXACT}
    pairs = {KEYS[field]: value for field, value in _labelled(settings).items()} | {"Version": "t2i"}
    assert len(pairs) >= 3, "the last line is known by three pairs"
    line = ", ".join(f"{key}: {_quoted(value)}" for key, value in pairs.items())
    shown = [
        prompts["prompt"] + _tags(settings),
        *([f"{NEGATIVE} {prompts['negative']}"] if prompts["negative"] else []),
        line,
    ]
    written = "\n".join(shown).replace("\0", "")  # which no text in a PNG may hold
    if _prompts(_cut(written)[0]) != prompts:
        for name, key in EXACT.items():
            written += f", {key}: {json.dumps(prompts[name], ensure_ascii=False)}"
    return written


def from_a1111(written: str, exact: dict[str, str] = EXACT) -> PngSettings:
    """Returns the settings of A1111's text; raises ValueError for a number that is malformed or out of bounds.

    `exact`: the keys of the last line that hold a prompt which the text alone does not determine.
    """
    lines, last, after = _cut(written)
    settings: dict[str, Any] = _prompts(lines)
    names, ignored = {}, [f"a line after the settings = {short(line)}" for line in after]
    pairs = {key: _unquoted(value) for key, value in _PAIR.findall(last)}
    for name, key in exact.items():
        if key in pairs and pairs[key] != settings[name]:
            if exact is not EXACT and settings[name]:
                ignored.append(f"the {name} in the text = {short(settings[name])}")
            settings[name], names[name] = pairs[key], key
        pairs.pop(key, None)
    hires = any(key.startswith("Hires ") for key in pairs)  # the denoising strength is that of the upscaling
    for key, value in pairs.items():
        ours = {} if hires and key == KEYS["strength"] else _ours(key, value)
        settings |= ours
        names |= dict.fromkeys(ours, key)
        if not ours and value and (key, value) not in MEANINGLESS:
            ignored.append(f"{key} = {short(value)}")
    return PngSettings(checked(settings, names), "a1111", written, ignored)


def _tags(settings: dict[str, Any]) -> str:
    """Returns the tags of LoRAs, which A1111 has at the end of a prompt."""
    names = ((name.removesuffix(".safetensors"), weight) for name, _, weight in settings.get("loras") or [])
    return "".join(f" <lora:{name}:{weight:g}>" for name, weight in names)


def _labelled(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns our settings with A1111's values, in its order; None is left out."""
    values = {field: settings[field] for field in KEYS if settings.get(field) is not None}
    if "solver" in values:
        values["solver"] = SOLVER_NAMES[values["solver"]].label
        values["sigmas"] = (
            SIGMAS[values["sigmas"]] if "sigmas" in values else "Uniform"
        )  # else A1111 chooses by the sampler
    if settings.get("model_sha256"):
        values["model_hash"] = settings["model_sha256"][:10]
    for field, default in {"clip_skip": 1, "eta": 0, "variation_strength": 0}.items():
        if values.get(field) == default:
            del values[field]
    if "rng" in values:
        values["rng"] = values["rng"].upper()
    return {field: values[field] for field in KEYS if field in values}


def _ours(key: str, value: str) -> dict[str, Any]:
    """Returns a pair of the last line by our names; empty if it has no meaning here."""
    field = FIELD_OF.get(key)
    if field == "solver":
        return solver_settings(value)
    if field == "sigmas":
        return {"sigmas": SIGMAS_OF[value]} if value in SIGMAS_OF else {}
    if field == "rng":
        return {"rng": value.lower()}
    if field is None or not value:
        return {}
    return {field: number_in(value) if isinstance(SETTINGS[field].check, Number) else value}


def _cut(written: str) -> tuple[list[str], str, list[str]]:
    """Returns the lines of the prompts, the line of settings, and the lines after it, as extensions of A1111 write.

    The settings are the last line if it holds three pairs, else the last line that begins with "Steps:" and does.
    """
    lines = written.strip().split("\n")
    for i in range(len(lines) - 1, -1, -1):
        if (i == len(lines) - 1 or lines[i].startswith("Steps:")) and len(_PAIR.findall(lines[i])) >= 3:
            return lines[:i], lines[i], lines[i + 1 :]
    return lines, "", []


def _prompts(lines: list[str]) -> dict[str, str]:
    """Returns the prompt, and the negative from the line "Negative prompt:" on; lines are stripped, as in A1111."""
    parts: dict[str, list[str]] = {"prompt": [], "negative": []}
    name = "prompt"
    for line in lines:
        line = line.strip()
        if line.startswith(NEGATIVE):
            name, line = "negative", line.removeprefix(NEGATIVE).strip()
        if line or parts[name]:  # empty lines at the start get lost
            parts[name].append(line)
    return {name: "\n".join(lines) for name, lines in parts.items()}


def _quoted(value: Any) -> str:
    """Returns a value as A1111 writes it: as JSON if it has commas, colons, newlines or outer spaces."""
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    if not isinstance(value, str):
        return str(value)
    plain = not re.search(r'[,:\n\r\0]|^"', value) and value == value.strip() and value
    return value if plain else json.dumps(value, ensure_ascii=False)


def _unquoted(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] == '"':
        try:
            unquoted = json.loads(value)
        except ValueError:
            return value
        assert isinstance(unquoted, str)
        return unquoted
    return value
