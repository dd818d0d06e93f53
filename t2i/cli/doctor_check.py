"""The result of one check of `t2i doctor`."""

from collections.abc import Iterator
from dataclasses import dataclass

OK, NOTE, BAD = "ok", "note", "bad"


@dataclass(frozen=True)
class Check:
    """The result of a check; `way_out` is the remedy if it failed."""

    name: str
    status: str
    text: str
    way_out: str = ""


Checks = Iterator[Check]


def cause_of(error: Exception) -> str:
    """Returns an error's class and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def size(count: int) -> str:
    """Formats a number of bytes in MB or GB."""
    return f"{count / 1e9:.1f} GB" if count >= 10**8 else f"{count / 1e6:.1f} MB"
