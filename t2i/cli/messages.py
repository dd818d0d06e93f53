"""Messages for the user on stderr: errors by the flags of the command line, warnings, notes."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from t2i.errors import ConfigError, RunFailed
from t2i.pipeline.settings import BY_PARAMETER, FLAGS

# The flags of keys that are no settings of images.
FLAGS = FLAGS | {
    key: f"--{key}" for key in ("model", "out", "reference", "metrics", "judge", "features", "variance", "prompts", "n")
}


def say(text: str) -> None:
    """Prints a line for the user on stderr."""
    print(f"t2i: {text}", file=sys.stderr, flush=True)


def message_of(error: Exception) -> str:
    """Returns the text of an error, in which the key of a setting is replaced by its flag."""
    if isinstance(error, ConfigError) and error.key in FLAGS:
        error = error.under(FLAGS[error.key])
    return str(error)


@contextmanager
def located(where: str) -> Iterator[None]:
    """Prefixes errors with `where`, the line or the cell that they are about; settings have their names there."""
    try:
        yield
    except ConfigError as error:
        if not where:
            raise
        setting = BY_PARAMETER.get(error.key)
        raise error.under(f"{where}: {setting.name if setting else error.key}") from None
    except (ValueError, RunFailed) as error:
        if not where:
            raise
        kind = RunFailed if isinstance(error, RunFailed) else ValueError
        raise kind(f"{where}: {error}") from None


@contextmanager
def warnings_as_messages() -> Iterator[None]:
    """Prints every warning as a message, once."""
    printed: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if str(message) not in printed:
            printed.add(str(message))
            say(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield
