"""Reading of settings from untrusted texts: numbers, JSON, and solvers by the names of other programs."""

import json
import math
import re
from typing import Any, Literal, NamedTuple

from t2i.diffusion.names import parse_solver
from t2i.pipeline.settings import text

SCHEMA = 1
MOST_TEXT = 2**20  # bytes of an image's text that are read or written
DEEPEST = 32  # levels of nesting in JSON
_STRUCTURE = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)  # a string, whole or not; brackets


class PngSettings(NamedTuple):
    """The settings inside an image, by our names; `ignored` lists everything else in it."""

    settings: dict[str, Any]
    source: Literal["t2i", "a1111", "invokeai", "fooocus", "swarmui"]
    raw: str
    ignored: list[str]


def solver_settings(name: str) -> dict[str, str]:
    """Returns `solver`, and `sigmas` where the name ends in a curve; empty for a solver that is not ours."""
    try:
        solver, sigmas = parse_solver(name)
    except ValueError:
        return {}
    return {"solver": solver} | ({} if sigmas is None else {"sigmas": sigmas})


def number_in(written: str) -> int | float | str:
    """Returns the number that a text stands for, else the text."""
    if re.fullmatch(r"-?[0-9]{1,20}", written):
        return int(written)
    if re.fullmatch(r"-?[0-9]{0,20}\.?[0-9]{1,20}(?:e[+-]?[0-9]{1,3})?", written, re.IGNORECASE):
        return float(written)
    return written


def read_json(written: str) -> dict[str, Any]:
    """Returns an untrusted JSON object: bounded in depth, with finite numbers and valid text."""
    depth = 0
    for token in _STRUCTURE.finditer(written):
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(token[0], 0)
        if depth > DEEPEST:
            raise ValueError(f"nests deeper than {DEEPEST} levels")
    try:
        value = json.loads(written, parse_constant=_refuse, parse_float=_finite, parse_int=_integer)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON ({error.msg} at {error.pos})") from None
    if not isinstance(value, dict):
        raise ValueError("is not a JSON object")
    text(json.dumps(value, ensure_ascii=False))
    return value


def _refuse(name: str) -> float:
    raise ValueError(f"holds {name}, which is not a number")


def _finite(digits: str) -> float:
    if not math.isfinite(value := float(digits)):
        raise ValueError(f"holds {digits[:20]}, which is too large")
    return value


def _integer(digits: str) -> int:
    if len(digits) > 40:
        raise ValueError(f"holds a number of {len(digits)} digits")
    return int(digits)
