"""The axes of a sheet: a setting and its values, as words of the command line."""

import csv
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

DEFAULT = "default"  # a value: what the model has


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a whole number") from None


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is not a number")
    return value


# Every axis with what reads a value of it; the words are those of `t2i generate`'s settings.
AXES: dict[str, Callable[[str], Any]] = {
    "cfg": _number,
    "steps": _whole,
    "solver": str,
    "spacing": str,
    "sigmas": str,
    "eta": _number,
    "seed": _whole,
    "strength": _number,
    "guidance_rescale": _number,
    "clip_skip": _whole,
    "negative": str,
    "prompt": str,
}
TEXTS = ("prompt", "negative")
NO_DEFAULT = ("prompt", "negative", "seed")


@dataclass(frozen=True)
class Axis:
    """A setting and its values, as they were written and as the pipeline takes them; None is the model's own."""

    flag: str
    name: str
    written: list[str]
    values: list[Any]

    @property
    def labels(self) -> tuple[str, ...]:
        """What stands beside the pictures."""
        return tuple(f"{self.name} = {value}" for value in self.written)


def parse_axis(flag: str, text: str) -> Axis:
    """The axis of "name=value,value"; values are split at | where there is one, and quoted as in CSV."""
    name, equals, rest = text.partition("=")
    name = name.strip()
    allowed = ", ".join(AXES)
    if name == "size":
        raise ValueError(f"{flag} size: the pictures of a sheet have one size, give it by --size; axes are {allowed}")
    if not equals or name not in AXES:
        raise ValueError(f"{flag} {text!r}: {name!r} is no axis; give AXIS=VALUE,VALUE with AXIS one of {allowed}")
    delimiter = "|" if "|" in rest else ","
    try:
        rows = list(csv.reader([rest], delimiter=delimiter, skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise ValueError(f'{flag} {name}: {rest!r} is not a list of values ({error}); quote as in a,"b, c"') from None
    written = [value.strip() for row in rows for value in row]
    if not written or ("" in written and name not in TEXTS):
        raise ValueError(f"{flag} {name}: {rest!r} has an empty value; give for example {name}=a,b")
    values = []
    for value in written:
        try:
            values.append(None if value == DEFAULT and name not in NO_DEFAULT else AXES[name](value))
        except ValueError as error:
            raise ValueError(f"{flag} {name}: {error}") from None
    return Axis(flag, name, written, values)


def check_axes(axes: list[Axis], given: dict[str, Any]) -> None:
    """Refuse what is said twice, what begins nowhere, and a sheet of nothing."""
    if not axes:
        raise ValueError(f"no axis: give -x AXIS=VALUE,VALUE, with AXIS one of {', '.join(AXES)}")
    names = [axis.name for axis in axes]
    for axis in axes:
        if names.count(axis.name) > 1:
            raise ValueError(f"the axis {axis.name} is given {names.count(axis.name)} times: give it once")
        if axis.name in given:
            flag = "--" + axis.name.replace("_", "-")
            raise ValueError(f"{flag} and {axis.flag} {axis.name} are both given: leave one of them out")
    if "image" not in given and ("strength" in names or "strength" in given):
        raise ValueError("strength is how little is left of a picture to begin from: give --init-image FILE")
