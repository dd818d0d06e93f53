"""The settings of a picture: their names, what each may be, and the solvers' names in A1111."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

SCHEMA = 1
MOST_TEXT = 2**20  # bytes of a picture's text that are read or written
DEEPEST = 32  # levels of nesting in JSON
LONGEST_NAME = 255  # bytes of a file's name
LABELS = {
    "ddim": "DDIM",
    "dpm++2m": "DPM++ 2M",
    "euler": "Euler",
    "euler-a": "Euler a",
    "heun": "Heun",
    "lms": "LMS",
    "plms": "PLMS",
    "dpm++2m-sde": "DPM++ 2M SDE",
    "dpm++2s": "DPM++ 2S a",
    "unipc": "UniPC",
    "lcm": "LCM",
    "ddpm": "DDPM",
    "edm-heun": "EDM Heun",
}
FILES = ("image", "mask", "vae")  # that a picture was made with: a name, and the sha256 that tells it
SIGMAS = {"karras": "Karras", "exponential": "Exponential"}
_STRUCTURE = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)  # a string, whole or not; brackets


class PngSettings(NamedTuple):
    """What a picture says about itself, by our names; `ignored` lists all of it that is not in `settings`."""

    settings: dict[str, Any]
    source: Literal["t2i", "a1111", "invokeai", "fooocus"]
    raw: str
    ignored: list[str]


@dataclass(frozen=True)
class Number:
    """A finite number within bounds."""

    low: float
    high: float
    whole: bool = False

    def __call__(self, value: Any) -> int | float:
        """The number itself."""
        kinds = int if self.whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise ValueError("is not a whole number" if self.whole else "is not a number")
        if not (math.isfinite(value) and self.low <= value <= self.high):
            raise ValueError(f"is not in {self.low}..{self.high}")
        return value if self.whole else float(value)


def text(value: Any) -> str:
    """A string that UTF-8 can hold."""
    if not isinstance(value, str):
        raise ValueError("is not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"holds half a character (a lone surrogate, at {error.start}): it is no valid text") from None
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("is neither true nor false")
    return value


def _size(value: Any) -> str:
    found = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", text(value))
    if not found or max(int(found[1]), int(found[2])) > 2**16:
        raise ValueError("is not WxH with sides in 1..65536")
    return value


def _hex(most: int) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if not re.fullmatch(rf"[0-9a-f]{{4,{most}}}", text(value).lower()):
            raise ValueError(f"is not 4 to {most} hexadecimal digits")
        return value.lower()

    return check


def _one_of(*names: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if text(value) not in names:
            raise ValueError(f"is none of {', '.join(names)}")
        return value

    return check


def _interval(value: Any) -> list[float]:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("is not a pair of numbers")
    return [Number(0, 1)(share) for share in value]


def _towards(value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("is not a pair of a prompt and a share")
    return [text(value[0]), Number(0, 1)(value[1])]


def _file(value: Any) -> str:
    if not text(value) or re.search(r"[/\\\0]", value) or value in (".", ".."):
        raise ValueError("is not the name of a file, without folders")
    if len(value.encode()) > LONGEST_NAME:
        raise ValueError(f"is longer than a file's name can be, {LONGEST_NAME} bytes")
    return value


def _embeddings(value: Any) -> list[Any]:
    if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        raise ValueError("is not a list of files and their sha256")
    return [[_file(name), _hex(64)(digest)] for name, digest in value]


def _loras(value: Any) -> list[Any]:
    if not isinstance(value, list) or not all(isinstance(entry, list) and len(entry) == 3 for entry in value):
        raise ValueError("is not a list of files, their sha256 and their weights")
    return [[_file(name), _hex(64)(digest), Number(-1000, 1000)(weight)] for name, digest, weight in value]


_LARGEST_SEED = 2**63 - 1
FIELDS: dict[str, Callable[[Any], Any]] = {
    "prompt": text,
    "negative": text,
    "steps": Number(1, 10_000, whole=True),
    "cfg": Number(0, 1000),
    "solver": _one_of(*LABELS),
    "sigmas": _one_of(*SIGMAS),
    "prediction_type": _one_of("epsilon", "v_prediction", "sample", "eps", "v"),
    "spacing": _one_of("leading", "linspace", "trailing"),
    "eta": Number(0, 1),
    "seed": Number(0, _LARGEST_SEED, whole=True),
    "size": _size,
    "strength": Number(0, 1),
    "clip_skip": Number(1, 99, whole=True),
    "guidance_rescale": Number(0, 1),
    "guidance_interval": _interval,
    "prompt_syntax": _one_of("plain", "a1111"),
    "long_prompts": _flag,
    "towards": _towards,
    "variation_seed": Number(0, _LARGEST_SEED, whole=True),
    "variation_strength": Number(0, 1),
    **dict.fromkeys(FILES, _file),
    **{f"{name}_sha256": _hex(64) for name in FILES},
    "embeddings": _embeddings,
    "loras": _loras,
    "vae_tile": Number(1, 2**16, whole=True),
    "attention": _one_of("sdpa", "xformers"),
    "model": text,
    "model_config": _file,
    "model_sha256": _hex(64),
    "model_hash": _hex(64),
    "dtype": _one_of("float32", "bfloat16", "float16"),
    "rng": text,
}


def checked(settings: dict[str, Any], names: dict[str, str] | None = None) -> dict[str, Any]:
    """The settings, each what its field may be; `names` are what the fields are called where they come from."""
    found = {}
    for field, value in settings.items():
        try:
            found[field] = FIELDS[field](value)
        except ValueError as error:
            raise ValueError(f"{(names or {}).get(field, field)} = {short(value)} {error}") from None
    return found


def short(value: Any) -> str:
    """A value for a message: JSON, cut to 60 characters."""
    written = json.dumps(value)
    return written if len(written) <= 60 else written[:57] + "..."


def number_in(written: str) -> int | float | str:
    """The number that a text is; else the text."""
    if re.fullmatch(r"-?[0-9]{1,20}", written):
        return int(written)
    if re.fullmatch(r"-?[0-9]{0,20}\.?[0-9]{1,20}(?:e[+-]?[0-9]{1,3})?", written, re.IGNORECASE):
        return float(written)
    return written


def read_json(written: str) -> dict[str, Any]:
    """A JSON object from an unknown hand: bounded in depth, finite numbers, valid text."""
    depth = 0
    for found in _STRUCTURE.finditer(written):
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(found[0], 0)
        if depth > DEEPEST:
            raise ValueError(f"nests deeper than {DEEPEST} levels")
    try:
        value = json.loads(written, parse_constant=_refuse, parse_float=_finite, parse_int=_integer)
    except json.JSONDecodeError as error:
        raise ValueError(f"is no JSON ({error.msg} at {error.pos})") from None
    if not isinstance(value, dict):
        raise ValueError("is no JSON object")
    text(json.dumps(value, ensure_ascii=False))
    return value


def _refuse(name: str) -> float:
    raise ValueError(f"holds {name}, which is no number")


def _finite(digits: str) -> float:
    if not math.isfinite(value := float(digits)):
        raise ValueError(f"holds {digits[:20]}, which is too large")
    return value


def _integer(digits: str) -> int:
    if len(digits) > 40:
        raise ValueError(f"holds a number of {len(digits)} digits")
    return int(digits)
