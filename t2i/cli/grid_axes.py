"""The axes of a grid: a setting and its values, as words of the command line."""

import csv
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from t2i.errors import ConfigError
from t2i.pipeline.settings import SETTINGS, Number, Setting

DEFAULT = "default"  # the value that stands for the model's default


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


def _reader(setting: Setting) -> Callable[[str], Any]:
    """Returns what reads a value of an axis from the command line."""
    if isinstance(setting.check, Number):
        return _whole if setting.check.whole else _number
    return str


AXES = {name: _reader(setting) for name, setting in SETTINGS.items() if setting.axis}
TEXTS = ("prompt", "negative")
NO_DEFAULT = ("prompt", "negative", "seed")


@dataclass(frozen=True)
class Axis:
    """A setting and its values, as they were written and as the pipeline takes them; None is the model's default."""

    flag: str
    name: str
    written: list[str]
    values: list[Any]

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels beside the images."""
        return tuple(f"{self.name} = {value}" for value in self.written)


def parse_axis(flag: str, text: str) -> Axis:
    """Returns the axis of "name=value,value"; values are split at | where there is one, and quoted as in CSV."""
    name, equals, values_text = text.partition("=")
    name = name.strip()
    allowed = ", ".join(AXES)
    if name == "size":
        raise ValueError(f"{flag} size: the images of a grid have one size, give it by --size; axes are {allowed}")
    if not equals or name not in AXES:
        raise ValueError(f"{flag} {text!r}: {name!r} is not an axis; give AXIS=VALUE,VALUE with AXIS one of {allowed}")
    delimiter = "|" if "|" in values_text else ","
    try:
        rows = list(csv.reader([values_text], delimiter=delimiter, skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise ValueError(
            f'{flag} {name}: {values_text!r} is not a list of values ({error}); quote as in a,"b, c"'
        ) from None
    written = [value.strip() for row in rows for value in row]
    if not written or ("" in written and name not in TEXTS):
        raise ValueError(f"{flag} {name}: {values_text!r} has an empty value; give for example {name}=a,b")
    values = []
    for value in written:
        try:
            values.append(None if value == DEFAULT and name not in NO_DEFAULT else AXES[name](value))
        except ValueError as error:
            raise ValueError(f"{flag} {name}: {error}") from None
    return Axis(flag, name, written, values)


def check_axes(axes: list[Axis], given: dict[str, Any]) -> None:
    """Raises ValueError for a setting that is given twice, a strength without an image, and a grid without an axis."""
    if not axes:
        raise ValueError(f"no axis: give -x AXIS=VALUE,VALUE, with AXIS one of {', '.join(AXES)}")
    names = [axis.name for axis in axes]
    for axis in axes:
        if names.count(axis.name) > 1:
            raise ValueError(f"the axis {axis.name} is given {names.count(axis.name)} times: give it once")
        if axis.name in given:
            flag = SETTINGS[axis.name].flag
            raise ValueError(f"{flag} and {axis.flag} {axis.name} are both given: leave one of them out")
    if "image" not in given and ("strength" in names or "strength" in given):
        raise ConfigError("image", "needed where strength is given: give --init-image FILE")
