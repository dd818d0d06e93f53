"""Messages for the user on stderr: errors by the flags of the command line, and warnings."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from t2i.errors import ConfigError
from t2i.pipeline.settings import FLAGS
from t2i.progress import say

# The flags of keys that are no settings of images.
FLAGS = FLAGS | {
    key: f"--{key}" for key in ("model", "out", "reference", "metrics", "judge", "features", "variance", "prompts", "n")
}


def message_of(error: Exception) -> str:
    """Returns the text of an error, in which the key of a setting is replaced by its flag."""
    if isinstance(error, ConfigError) and error.key in FLAGS:
        error = error.under(FLAGS[error.key])
    return str(error)


@contextmanager
def warnings_as_messages(quiet: bool = False) -> Iterator[list[str]]:
    """Prints every warning as a message, once, unless `quiet`; yields the list that they are added to."""
    messages: list[str] = []

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if str(message) not in messages:
            messages.append(str(message))
            if not quiet:
                say(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield messages
