"""Settings that InvokeAI and Fooocus write, by our names."""

import re
from typing import Any

from t2i.pipeline.metadata.a1111 import from_a1111
from t2i.pipeline.metadata.fields import FIELDS, Number, PngSettings, checked, number_in, read_json, short

# InvokeAI's schedulers (the newer ones are diffusers', `_k` for Karras) and the samplers of its first versions
INVOKEAI_SOLVERS = {
    "ddim": "ddim",
    "ddpm": "ddpm",
    "dpmpp_2m": "dpm++2m",
    "dpmpp_2m_sde": "dpm++2m-sde",
    "euler": "euler",
    "euler_a": "euler-a",
    "heun": "heun",
    "lms": "lms",
    "pndm": "plms",
    "unipc": "unipc",
    "lcm": "lcm",
    "plms": "plms",
    "k_euler": "euler",
    "k_euler_a": "euler-a",
    "k_heun": "heun",
    "k_lms": "lms",
    "k_dpmpp_2": "dpm++2m",
    "k_dpmpp_2_a": "dpm++2s",
}
FOOOCUS_SOLVERS = {
    "ddim": "ddim",
    "ddpm": "ddpm",
    "dpmpp_2m": "dpm++2m",
    "dpmpp_2m_sde": "dpm++2m-sde",
    "dpmpp_2m_sde_gpu": "dpm++2m-sde",
    "dpmpp_2s_ancestral": "dpm++2s",
    "euler": "euler",
    "euler_ancestral": "euler-a",
    "heun": "heun",
    "lms": "lms",
    "uni_pc": "unipc",
    "lcm": "lcm",
}
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
LONGEST_DREAM = 100_000


class _Reading:
    """A dictionary of another program's that is emptied key by key: what is left is what was not understood."""

    def __init__(self, left: dict[str, Any], keys: dict[str, str]) -> None:
        self.left, self.found, self.names = dict(left), {}, {}
        for key, field in keys.items():
            value = self.left.pop(key, None)
            if value is not None:
                number = isinstance(FIELDS[field], Number) and isinstance(value, str)
                self.set(field, number_in(value) if number else value, key)

    def set(self, field: str, value: Any, key: str) -> None:
        """A setting of ours, and what it is called there."""
        self.found[field], self.names[field] = value, key

    def size(self) -> None:
        """`width` and `height`, where both are there."""
        width, height = self.left.get("width"), self.left.get("height")
        if isinstance(width, int) and isinstance(height, int):
            self.set("size", f"{width}x{height}", "width x height")
            del self.left["width"], self.left["height"]

    def solver(self, key: str, table: dict[str, str]) -> None:
        """The solver of the name under `key`; `_k` at its end is Karras."""
        name = self.left.get(key)
        if not isinstance(name, str):
            return
        plain = name.removesuffix("_k")
        if plain in table:
            self.found |= {"solver": table[plain]} | ({"sigmas": "karras"} if plain != name else {})
            del self.left[key]

    def done(self, source: Any, raw: str) -> PngSettings:
        """All of it, checked."""
        ignored = [f"{key} = {short(value)}" for key, value in self.left.items() if value not in (None, "", [], {})]
        return PngSettings(checked(self.found, self.names), source, raw, ignored)


def from_invokeai(written: str) -> PngSettings:
    """`invokeai_metadata`, since InvokeAI 3."""
    reading = _Reading(read_json(written), INVOKEAI_KEYS)
    reading.size()
    reading.solver("scheduler", INVOKEAI_SOLVERS)
    if isinstance(skipped := reading.left.get("clip_skip"), int):
        reading.set("clip_skip", skipped + 1, "clip_skip + 1")  # there, 0 is the last layer
        del reading.left["clip_skip"]
    model = reading.left.get("model")
    if isinstance(model, dict):
        name = model.get("name", model.get("model_name"))
        if isinstance(name, str):
            reading.set("model", name, "model")
            reading.left["model"] = {k: v for k, v in model.items() if k not in ("name", "model_name")}
    return reading.done("invokeai", written)


def from_sd_metadata(written: str) -> PngSettings:
    """`sd-metadata` of InvokeAI 1 and 2: what belongs to the model outside, the picture's settings in `image`."""
    outer = read_json(written)
    image = outer.pop("image", None)
    if not isinstance(image, dict):
        raise ValueError("its `image` is no JSON object")
    reading = _Reading(image, SD_KEYS)
    reading.size()
    reading.solver("sampler", INVOKEAI_SOLVERS)
    prompt = reading.left.pop("prompt", "")
    if isinstance(prompt, list):
        parts = [part for part in prompt if isinstance(part, dict) and isinstance(part.get("prompt"), str)]
        if len(parts) != len(prompt):
            raise ValueError("its `image.prompt` is no list of prompts")
        if len(parts) > 1 or any(part.get("weight", 1) != 1 for part in parts):
            reading.left["prompt weights"] = [part.get("weight") for part in parts]
        prompt = " ".join(part["prompt"] for part in parts)
    _split_negative(reading, prompt)
    if outer.get("model_weights"):
        reading.set("model", outer.pop("model_weights"), "model_weights")
    if isinstance(outer.get("model_hash"), str) and re.fullmatch("[0-9a-f]{64}", outer["model_hash"]):
        reading.set("model_sha256", outer.pop("model_hash"), "model_hash")
    reading.left |= outer
    return reading.done("invokeai", written)


def from_dream(written: str) -> PngSettings:
    """`Dream` of the first InvokeAI: a prompt, bare or in quotes, and switches like `-s50` or `-s 50`."""
    if len(written) > LONGEST_DREAM:
        raise ValueError(f"is longer than {LONGEST_DREAM} characters")
    quoted = re.match(r'"((?:[^"\\]++|\\.)*+)"(?=\s|$)', written, re.DOTALL)
    bare = re.match(r"(.*?)(?=\s--?[a-zA-Z]|$)", written, re.DOTALL)
    assert bare is not None
    prompt = re.sub(r"\\(.)", r"\1", quoted[1], flags=re.DOTALL) if quoted else bare[1]
    values: dict[str, Any] = {}
    switch = "(text)"
    for word in written[(quoted or bare).end() :].split():
        if found := re.match(r"(--[\w-]+|-(?:ft|cf|tm)$|-[a-zA-Z])=?(.*)", word):
            switch = found[1]
            values[switch] = found[2]
        else:
            values[switch] = f"{values.get(switch, '')} {word}".strip()
    reading = _Reading(values, DREAM_KEYS)
    width, height = (values.get(side, "") for side in ("-W", "-H"))
    if width and height:
        reading.set("size", f"{width}x{height}", "-W -H")
        del reading.left["-W"], reading.left["-H"]
    reading.solver("-A", INVOKEAI_SOLVERS)
    _split_negative(reading, prompt)
    return reading.done("invokeai", written)


def _split_negative(reading: _Reading, prompt: Any) -> None:
    """InvokeAI 1 and 2 had the negative prompt in brackets inside of the prompt."""
    if not isinstance(prompt, str):
        raise ValueError("its prompt is no text")
    negatives = re.findall(r"\[([^\[\]]*)\]", prompt)
    reading.set("prompt", re.sub(r"(?<!\s)\s*+\[[^\[\]]*\]", "", prompt).strip() if negatives else prompt, "prompt")
    if negatives:
        reading.set("negative", " ".join(negatives), "prompt")


def from_fooocus(written: str, scheme: str) -> PngSettings:
    """Fooocus's JSON, or its text in the manner of A1111; the prompt is the one typed, without the styles' words."""
    if scheme == "a1111":
        return _from_fooocus_text(written)
    reading = _Reading(read_json(written), FOOOCUS_KEYS)
    size = re.fullmatch(r"\(\s*'?([0-9]{1,5})'?,\s*'?([0-9]{1,5})'?\s*\)", str(reading.left.get("resolution")))
    if size:
        reading.set("size", f"{size[1]}x{size[2]}", "resolution")
        del reading.left["resolution"]
    reading.solver("sampler", FOOOCUS_SOLVERS)
    if (sigmas := reading.left.get("scheduler")) in ("karras", "exponential", "normal"):
        del reading.left["scheduler"]
        if sigmas != "normal":
            reading.set("sigmas", sigmas, "scheduler")
    return reading.done("fooocus", written)


def _from_fooocus_text(written: str) -> PngSettings:
    found = from_a1111(written, {"prompt": "Raw prompt", "negative": "Raw negative prompt"})
    settings, ignored = dict(found.settings), []
    for entry in found.ignored:
        key, _, value = entry.partition(" = ")
        name = value.strip('"')
        if key == "Scheduler" and name in ("karras", "exponential"):
            settings["sigmas"] = name
        elif key == "Sampler" and name in FOOOCUS_SOLVERS:
            settings["solver"] = FOOOCUS_SOLVERS[name]
        elif (key, name) != ("Scheduler", "normal"):
            ignored.append(entry)
    return PngSettings(settings, "fooocus", written, ignored)
