"""A1111's text of settings: the prompt, `Negative prompt: ...`, and a last line of `Key: value, ...` pairs.

The text alone cannot tell a prompt's own line "Negative prompt: x" from the negative prompt, and trims every line.
Only for such prompts, and where `<lora:NAME:WEIGHT>` is said in it, the last line also holds `t2i prompt` and
`t2i negative prompt`, JSON strings that count.
"""

import json
import re
from typing import Any

from t2i.pipeline.metadata.fields import FIELDS, LABELS, SIGMAS, Number, PngSettings, checked, number_in, short, text

NEGATIVE = "Negative prompt:"
EXACT = {"prompt": "t2i prompt", "negative": "t2i negative prompt"}
KEYS = {
    "steps": "Steps",
    "solver": "Sampler",
    "sigmas": "Schedule type",
    "cfg": "CFG scale",
    "seed": "Seed",
    "size": "Size",
    "model_hash": "Model hash",
    "model": "Model",
    "strength": "Denoising strength",
    "clip_skip": "Clip skip",
    "eta": "Eta DDIM",
    "variation_seed": "Variation seed",
    "variation_strength": "Variation seed strength",
    "rng": "RNG",
}
MEANINGLESS = {("Schedule type", "Uniform"), ("Version", "t2i")}
FIELD_OF = {key: field for field, key in KEYS.items()}
SOLVER_OF = {label.lower(): name for name, label in LABELS.items()}
SIGMAS_OF = {label: name for name, label in SIGMAS.items()}
# A key is two characters or more, a value is quoted or ends at a comma. Nothing is tried twice: linear in the line.
_PAIR = re.compile(r'(?<![\w \-/])[ \-/]*+(\w[\w \-/]++):\s*+("(?:[^\\"]++|\\.)++"|[^,]*)(?:,|$)')


def to_a1111(settings: dict[str, Any]) -> str:
    """The text of our settings, from which `from_a1111` has prompts back exactly, and A1111 wherever it can."""
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
    """The settings of A1111's text; ValueError for a number that is none, or out of bounds.

    `exact`: the keys of the last line that say a prompt where the text alone does not.
    """
    lines, last = _cut(written)
    found: dict[str, Any] = _prompts(lines)
    names, ignored = {}, []
    pairs = {key: _unquoted(value) for key, value in _PAIR.findall(last)}
    for name, key in exact.items():
        if key in pairs and pairs[key] != found[name]:
            if exact is not EXACT and found[name]:
                ignored.append(f"the {name} in the text = {short(found[name])}")
            found[name], names[name] = pairs[key], key
        pairs.pop(key, None)
    hires = any(key.startswith("Hires ") for key in pairs)  # which has the denoising strength for itself
    for key, value in pairs.items():
        ours = {} if hires and key == KEYS["strength"] else _ours(key, value)
        found |= ours
        names |= dict.fromkeys(ours, key)
        if not ours and value and (key, value) not in MEANINGLESS:
            ignored.append(f"{key} = {short(value)}")
    return PngSettings(checked(found, names), "a1111", written, ignored)


def _tags(settings: dict[str, Any]) -> str:
    """The LoRA as A1111 has them at the end of a prompt."""
    names = ((name.removesuffix(".safetensors"), weight) for name, _, weight in settings.get("loras") or [])
    return "".join(f" <lora:{name}:{weight:g}>" for name, weight in names)


def _labelled(settings: dict[str, Any]) -> dict[str, Any]:
    """Our settings as A1111 says them, in its order; None is left out."""
    had = {field: settings[field] for field in KEYS if settings.get(field) is not None}
    if "solver" in had:
        had["solver"] = LABELS[had["solver"]]
        had["sigmas"] = SIGMAS[had["sigmas"]] if "sigmas" in had else "Uniform"  # else A1111 chooses by the sampler
    if settings.get("model_sha256"):
        had["model_hash"] = settings["model_sha256"][:10]
    for field, default in {"clip_skip": 1, "eta": 0, "variation_strength": 0}.items():
        if had.get(field) == default:
            del had[field]
    if "rng" in had:
        had["rng"] = had["rng"].upper()
    return {field: had[field] for field in KEYS if field in had}


def _ours(key: str, value: str) -> dict[str, Any]:
    """A pair of the last line by our names; empty where it means nothing here."""
    field = FIELD_OF.get(key)
    if field == "solver":
        return solver_of(value)
    if field == "sigmas":
        return {"sigmas": SIGMAS_OF[value]} if value in SIGMAS_OF else {}
    if field == "rng":
        return {"rng": value.lower()}
    if field is None or not value:
        return {}
    return {field: number_in(value) if isinstance(FIELDS[field], Number) else value}


def solver_of(label: str) -> dict[str, str]:
    """The solver, and the sigmas that older labels end in: "DPM++ 2M Karras"; empty for one that is none of ours."""
    for sigmas, suffix in SIGMAS.items():
        if label.endswith(f" {suffix}"):
            found = solver_of(label.removesuffix(f" {suffix}"))
            return found | {"sigmas": sigmas} if found else {}
    return {"solver": SOLVER_OF[label.lower()]} if label.lower() in SOLVER_OF else {}


def _cut(written: str) -> tuple[list[str], str]:
    """The lines of the prompts, and the last line where it holds at least three pairs."""
    *lines, last = written.strip().split("\n")
    return (lines, last) if len(_PAIR.findall(last)) >= 3 else ([*lines, last], "")


def _prompts(lines: list[str]) -> dict[str, str]:
    """The prompt, and all from the first line "Negative prompt:" on; lines lose what surrounds them, as in A1111."""
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
    """As A1111 writes it: JSON where there are commas, colons or newlines; and where only quotes keep it as it is."""
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    if not isinstance(value, str):
        return str(value)
    plain = not re.search(r'[,:\n\r\0]|^"', value) and value == value.strip() and value
    return value if plain else json.dumps(value, ensure_ascii=False)


def _unquoted(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] == '"':
        try:
            found = json.loads(value)
        except ValueError:
            return value
        assert isinstance(found, str)
        return found
    return value
