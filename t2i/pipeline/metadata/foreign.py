"""Settings that InvokeAI, Fooocus and SwarmUI write, by our names."""

import re
from typing import Any

from t2i.pipeline.metadata.a1111 import from_a1111
from t2i.pipeline.metadata.fields import PngSettings, number_in, read_json, solver_settings
from t2i.pipeline.settings import SETTINGS, Number, checked, short

INVOKEAI_KEYS = {
    "positive_prompt": "prompt",
    "negative_prompt": "negative",
    "steps": "steps",
    "cfg_scale": "cfg",
    "cfg_rescale_multiplier": "guidance_rescale",
    "seed": "seed",
    "strength": "strength",
    "rand_device": "rng",
}
SD_KEYS = {"steps": "steps", "cfg_scale": "cfg", "seed": "seed", "strength": "strength"}
DREAM_KEYS = {"-s": "steps", "-C": "cfg", "-S": "seed", "-f": "strength"}
FOOOCUS_KEYS = {
    "prompt": "prompt",
    "negative_prompt": "negative",
    "steps": "steps",
    "guidance_scale": "cfg",
    "seed": "seed",
    "clip_skip": "clip_skip",
    "base_model": "model",
    "base_model_hash": "model_hash",
}
LEAST_FOOOCUS = 3  # of these keys are in each of its images
SWARMUI_KEYS = {
    "prompt": "prompt",
    "negativeprompt": "negative",
    "steps": "steps",
    "cfgscale": "cfg",
    "seed": "seed",
    "model": "model",
}
LONGEST_DREAM = 100_000


class _Reading:
    """A dictionary of another program that is emptied key by key: what remains was not understood."""

    def __init__(self, values: dict[str, Any], keys: dict[str, str]) -> None:
        self.remaining, self.settings, self.names = dict(values), {}, {}
        for key, field in keys.items():
            value = self.remaining.pop(key, None)
            if value is not None:
                number = isinstance(SETTINGS[field].check, Number) and isinstance(value, str)
                self.set(field, number_in(value) if number else value, key)

    def set(self, field: str, value: Any, key: str) -> None:
        """Sets one of our settings, and the key that it has there."""
        self.settings[field], self.names[field] = value, key

    def size(self) -> None:
        """Reads `width` and `height`, if both are present."""
        width, height = self.remaining.get("width"), self.remaining.get("height")
        if isinstance(width, int) and isinstance(height, int):
            self.set("size", f"{width}x{height}", "width x height")
            del self.remaining["width"], self.remaining["height"]

    def solver(self, key: str) -> None:
        """Reads the solver whose name is under `key`; `_k` at its end is Karras."""
        name = self.remaining.get(key)
        if isinstance(name, str) and (settings := solver_settings(name)):
            self.settings |= settings
            del self.remaining[key]

    def done(self, source: Any, raw: str) -> PngSettings:
        """Returns the settings, checked."""
        ignored = [
            f"{key} = {short(value)}" for key, value in self.remaining.items() if value not in (None, "", [], {})
        ]
        return PngSettings(checked(self.settings, self.names), source, raw, ignored)


def from_invokeai(written: str) -> PngSettings:
    """Reads `invokeai_metadata`, since InvokeAI 3."""
    reading = _Reading(read_json(written), INVOKEAI_KEYS)
    reading.size()
    reading.solver("scheduler")
    if isinstance(skipped := reading.remaining.get("clip_skip"), int):
        reading.set("clip_skip", skipped + 1, "clip_skip + 1")  # there, 0 is the last layer
        del reading.remaining["clip_skip"]
    model = reading.remaining.get("model")
    if isinstance(model, dict):
        name = model.get("name", model.get("model_name"))
        if isinstance(name, str):
            reading.set("model", name, "model")
            reading.remaining["model"] = {k: v for k, v in model.items() if k not in ("name", "model_name")}
    return reading.done("invokeai", written)


def from_sd_metadata(written: str) -> PngSettings:
    """Reads `sd-metadata` of InvokeAI 1 and 2: the image's settings in `image`, the model's beside it."""
    outer = read_json(written)
    image = outer.pop("image", None)
    if not isinstance(image, dict):
        raise ValueError("its `image` is not a JSON object")
    reading = _Reading(image, SD_KEYS)
    reading.size()
    reading.solver("sampler")
    prompt = reading.remaining.pop("prompt", "")
    if isinstance(prompt, list):
        parts = [part for part in prompt if isinstance(part, dict) and isinstance(part.get("prompt"), str)]
        if len(parts) != len(prompt):
            raise ValueError("its `image.prompt` is not a list of prompts")
        if len(parts) > 1 or any(part.get("weight", 1) != 1 for part in parts):
            reading.remaining["prompt weights"] = [part.get("weight") for part in parts]
        prompt = " ".join(part["prompt"] for part in parts)
    _split_negative(reading, prompt)
    if outer.get("model_weights"):
        reading.set("model", outer.pop("model_weights"), "model_weights")
    if isinstance(outer.get("model_hash"), str) and re.fullmatch("[0-9a-f]{64}", outer["model_hash"]):
        reading.set("model_sha256", outer.pop("model_hash"), "model_hash")
    reading.remaining |= outer
    return reading.done("invokeai", written)


def from_dream(written: str) -> PngSettings:
    """Reads `Dream` of the first InvokeAI: a prompt, bare or in quotes, and switches like `-s50` or `-s 50`."""
    if len(written) > LONGEST_DREAM:
        raise ValueError(f"is longer than {LONGEST_DREAM} characters")
    quoted = re.match(r'"((?:[^"\\]++|\\.)*+)"(?=\s|$)', written, re.DOTALL)
    bare = re.match(r"(.*?)(?=\s--?[a-zA-Z]|$)", written, re.DOTALL)
    assert bare is not None
    prompt = re.sub(r"\\(.)", r"\1", quoted[1], flags=re.DOTALL) if quoted else bare[1]
    values: dict[str, Any] = {}
    switch = "(text)"
    for word in written[(quoted or bare).end() :].split():
        if match := re.match(r"(--[\w-]+|-(?:ft|cf|tm)$|-[a-zA-Z])=?(.*)", word):
            switch = match[1]
            values[switch] = match[2]
        else:
            values[switch] = f"{values.get(switch, '')} {word}".strip()
    reading = _Reading(values, DREAM_KEYS)
    width, height = (values.get(side, "") for side in ("-W", "-H"))
    if width and height:
        reading.set("size", f"{width}x{height}", "-W -H")
        del reading.remaining["-W"], reading.remaining["-H"]
    reading.solver("-A")
    _split_negative(reading, prompt)
    return reading.done("invokeai", written)


def _split_negative(reading: _Reading, prompt: Any) -> None:
    """Reads a prompt of InvokeAI 1 or 2, which has the negative prompt in brackets inside of it."""
    if not isinstance(prompt, str):
        raise ValueError("its prompt is not text")
    negatives = re.findall(r"\[([^\[\]]*)\]", prompt)
    reading.set("prompt", re.sub(r"(?<!\s)\s*+\[[^\[\]]*\]", "", prompt).strip() if negatives else prompt, "prompt")
    if negatives:
        reading.set("negative", " ".join(negatives), "prompt")


def from_object(written: str) -> PngSettings:
    """Reads a JSON object under A1111's key: SwarmUI's or Fooocus's; raises a ValueError for another program's."""
    values = read_json(written)
    if isinstance(parameters := values.get("sui_image_params"), dict):
        reading = _Reading(parameters, SWARMUI_KEYS)
        reading.size()
        reading.solver("sampler")
        reading.remaining |= {key: value for key, value in values.items() if key != "sui_image_params"}
        return reading.done("swarmui", written)
    if len(FOOOCUS_KEYS.keys() & values.keys()) >= LEAST_FOOOCUS:
        return from_fooocus(written, "fooocus")
    keys = ", ".join(short(key) for key in list(values)[:5])
    raise ValueError(f"a JSON object of a program that is not known here (its keys: {keys or 'none'})")


def from_fooocus(written: str, scheme: str) -> PngSettings:
    """Reads Fooocus's JSON, or its text in A1111's form; the prompt is the one typed, without the styles' words."""
    if scheme == "a1111":
        return _from_fooocus_text(written)
    reading = _Reading(read_json(written), FOOOCUS_KEYS)
    size = re.fullmatch(r"\(\s*'?([0-9]{1,5})'?,\s*'?([0-9]{1,5})'?\s*\)", str(reading.remaining.get("resolution")))
    if size:
        reading.set("size", f"{size[1]}x{size[2]}", "resolution")
        del reading.remaining["resolution"]
    reading.solver("sampler")
    if (sigmas := reading.remaining.get("scheduler")) in ("karras", "exponential", "normal"):
        del reading.remaining["scheduler"]
        if sigmas != "normal":
            reading.set("sigmas", sigmas, "scheduler")
    return reading.done("fooocus", written)


def _from_fooocus_text(written: str) -> PngSettings:
    image = from_a1111(written, {"prompt": "Raw prompt", "negative": "Raw negative prompt"})
    settings, ignored = dict(image.settings), []
    for entry in image.ignored:
        key, _, value = entry.partition(" = ")
        name = value.strip('"')
        if key == "Scheduler" and name in ("karras", "exponential"):
            settings["sigmas"] = name
        elif key == "Sampler" and (solver := solver_settings(name)):
            settings |= solver
        elif (key, name) != ("Scheduler", "normal"):
            ignored.append(entry)
    return PngSettings(settings, "fooocus", written, ignored)
