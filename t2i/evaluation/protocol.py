"""The protocol of a number: everything that it depends on. Only numbers of one protocol share a table."""

import hashlib
from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict

# Fields that may vary within a table that asks for it; all others are equal for all of its numbers.
FREE = ("model", "text_encoder", "solver", "steps", "guidance", "seeds", "ema", "dtype")

# Fields that a file of reference statistics records.
IDENTITY: tuple[str, ...] = ("features", "fingerprint", "resize", "size", "preparation", "reference")


class Protocol(BaseModel):
    """The identity of a number; a field that does not apply is None."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    n: int
    n_ref: int | None = None  # also None where a file of statistics does not record it
    features: str | None = None  # as `open_features` names them
    fingerprint: str | None = None
    resize: str | None = None
    size: tuple[int, int] | None = None  # (width, height) of the images
    preparation: str | None = None  # of the reference's images
    reference: str | None = None  # hash of its pixels, or of its statistics
    prompts: str | None = None  # hash, with their order
    judge: str | None = None
    model: str | None = None
    text_encoder: str | None = None
    solver: str | None = None
    steps: int | None = None
    guidance: float | None = None
    seeds: str | None = None
    ema: bool | None = None
    dtype: str | None = None
    verified: bool = False  # the Inception weights of published FIDs

    @property
    def label(self) -> str:
        """The name of a Fréchet distance under this protocol."""
        return "FID" if self.verified else f"FD[{self.named}]"

    @property
    def named(self) -> str:
        """The name of the features and the beginning of their fingerprint."""
        return f"{self.features}@{(self.fingerprint or '')[:8]}"

    def identity(self) -> dict[str, str]:
        """Returns the fields that reference statistics are stored with."""
        assert self.size is not None
        size = {"size": f"{self.size[0]}x{self.size[1]}"}
        return size | {key: getattr(self, key) or "" for key in IDENTITY if key != "size"}


def prompts_hash(prompts: Iterable[str]) -> str:
    """Returns the sha256 of prompts in their order."""
    digest = hashlib.sha256()
    for prompt in prompts:
        data = prompt.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def check_alike(protocols: Sequence[Protocol], varies: Sequence[str] = ()) -> None:
    """Raises ValueError that names the first field in which protocols differ, apart from `varies` (some of FREE)."""
    if unknown := [name for name in varies if name not in FREE]:
        raise ValueError(f"{unknown[0]} cannot vary within one table; what can: {', '.join(FREE)}")
    for other in protocols[1:]:
        for name in Protocol.model_fields:
            a, b = getattr(protocols[0], name), getattr(other, name)
            if name not in varies and a != b:
                raise ValueError(f"{name} = {a} and {name} = {b} do not share a table: evaluate both alike")
