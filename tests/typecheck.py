"""The checker of jaxtyping's shapes under pytest: beartype, which accepts an int for a float and passes over `Self`."""

import functools
from collections.abc import Callable
from typing import Any, Self

import torch
from beartype import BeartypeConf, BeartypeHintOverrides, beartype

_beartype: Any = beartype(conf=BeartypeConf(is_pep484_tower=True, hint_overrides=BeartypeHintOverrides({Self: object})))


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Checks the arguments of `function`, except while torch traces a network, when sizes are tensors."""
    checked = _beartype(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return (function if torch.jit.is_tracing() else checked)(*args, **kwargs)

    return call
