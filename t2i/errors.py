"""Errors by exit code: bad input is a `ValueError` (2), a run that failed is `RunFailed` (1)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_NOTHING: Any = object()


class RunFailed(RuntimeError):
    """A run that was asked for correctly cannot continue: non-finite loss, non-finite pixels, a full disk."""


class WriteFailed(RunFailed, OSError):
    """A file or a folder could not be written (a full disk, no permission); also an OSError, as it was before."""


def check_finite(x: "Tensor", stage: str) -> None:
    """Raises RunFailed naming the stage if x has non-finite values."""
    if not x.isfinite().all():
        raise RunFailed(f"the {stage} put out non-finite values: use dtype float32 or bfloat16, or other weights")


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
