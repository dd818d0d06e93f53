"""Errors by exit code: bad input is a `ValueError` (2), a run that failed is `RunFailed` (1)."""

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_NOTHING: Any = object()
MOST_TEXT = 100_000  # characters of a prompt or a caption
SURROGATE = re.compile("[\ud800-\udfff]")


class RunFailed(RuntimeError):
    """A run that was asked for correctly cannot continue: non-finite loss, non-finite pixels, a full disk."""


class WriteFailed(RunFailed, OSError):
    """A file or a folder could not be written (a full disk, no permission); also an OSError, as it was before."""


def check_finite(x: "Tensor", stage: str) -> None:
    """Raises RunFailed naming the stage if x has non-finite values."""
    if not x.isfinite().all():
        raise RunFailed(f"the {stage} put out non-finite values: use dtype float32 or bfloat16, or other weights")


def check_text(text: str, where: str) -> None:
    """Raises a ValueError that names `where` for text that no text encoder can read."""
    if len(text) > MOST_TEXT:
        raise ValueError(f"{where}: {len(text):,} characters of text; {MOST_TEXT:,} are allowed")
    if not text.isascii() and (match := SURROGATE.search(text)):
        raise ValueError(
            f"{where}: character {match.start() + 1} of {text[: match.start() + 20]!r:.100} is no Unicode text (a byte "
            "of another encoding, or half of a pair): write it in UTF-8"
        )


class ConfigError(ValueError):
    """A value that the user gave under a key (`data.path`, `num_inference_steps`) cannot be used.

    It is raised where the value enters, with the key that is known there. A caller that knows a longer key raises
    `error.under(key)` instead; the command line maps keys to flags in the one place that prints errors. No caller edits
    the text of a message.
    """

    def __init__(self, key: str, problem: str, value: Any = _NOTHING) -> None:
        super().__init__(f"{key}: {problem}" if value is _NOTHING else f"{key} = {value!r}: {problem}")
        self.key, self.problem, self.value = key, problem, value

    def under(self, key: str) -> "ConfigError":
        """Returns the same problem of the same value, known by another key."""
        return ConfigError(key, self.problem, self.value)
