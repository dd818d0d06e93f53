"""What a text encoder is to the rest of the project."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from t2i.conditioning import Conditioning


@dataclass(frozen=True)
class Encoded:
    """Token states of prompts; `truncated[i]` is the end of prompt i that did not fit, "" if all of it did."""

    conditioning: Conditioning
    truncated: list[str]


class TextEncoder(Protocol):
    """A frozen map from prompts to token states (b, max_tokens, width)."""

    @property
    def width(self) -> int: ...

    @property
    def max_tokens(self) -> int: ...

    def __call__(self, prompts: list[str]) -> Encoded: ...

    def fingerprint(self) -> str: ...

    def save(self, folder: str | Path) -> None: ...
