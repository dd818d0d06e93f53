"""The checker of jaxtyping's shapes under pytest: beartype, which accepts an int for a float and passes over `Self`."""

from typing import Any, Self

from beartype import BeartypeConf, BeartypeHintOverrides, beartype

check: Any = beartype(conf=BeartypeConf(is_pep484_tower=True, hint_overrides=BeartypeHintOverrides({Self: object})))
