"""What `t2i doctor` finds, a check at a time."""

from collections.abc import Iterator
from dataclasses import dataclass

OK, NOTE, BAD = "ok", "note", "bad"


@dataclass(frozen=True)
class Check:
    """One finding; `way_out` is what to do about a bad one."""

    name: str
    status: str
    text: str
    way_out: str = ""


Checks = Iterator[Check]


def cause_of(error: Exception) -> str:
    """An error's class and first line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e9:.1f} GB" if count >= 10**8 else f"{count / 1e6:.1f} MB"
