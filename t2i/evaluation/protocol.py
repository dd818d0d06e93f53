"""What a number depends on beside the model: only numbers of one protocol stand in one table."""

import hashlib
from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict

# What one table may vary, where it says so; everything else has to be the same for all of its numbers.
FREE = ("model", "text_encoder", "solver", "steps", "guidance", "seeds", "ema", "dtype")


# What statistics of a reference have to say of themselves.
IDENTITY: tuple[str, ...] = ("features", "fingerprint", "resize", "size", "preparation", "reference")


class Protocol(BaseModel):
    """The identity of a number; None: it plays no part in it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    n: int
    n_ref: int | None = None  # also where a file of statistics does not say
    features: str | None = None  # as `open_features` names them
    fingerprint: str | None = None
    resize: str | None = None
    size: tuple[int, int] | None = None  # (width, height) of the pictures
    preparation: str | None = None  # of the reference's pictures
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
        """What a Fréchet distance under it is called."""
        return "FID" if self.verified else f"FD[{self.named}]"

    @property
    def named(self) -> str:
        """The features and the beginning of their fingerprint."""
        return f"{self.features}@{(self.fingerprint or '')[:8]}"

    def identity(self) -> dict[str, str]:
        """What statistics of a reference carry with them."""
        assert self.size is not None
        said = {"size": f"{self.size[0]}x{self.size[1]}"}
        return said | {key: getattr(self, key) or "" for key in IDENTITY if key != "size"}


def prompts_hash(prompts: Iterable[str]) -> str:
    """sha256 of prompts, in their order."""
    digest = hashlib.sha256()
    for prompt in prompts:
        data = prompt.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def check_alike(protocols: Sequence[Protocol], varies: Sequence[str] = ()) -> None:
    """Refuse to compare unlike numbers: the error names the field; those in `varies` (of FREE) may differ."""
    if strange := [name for name in varies if name not in FREE]:
        raise ValueError(f"{strange[0]} cannot vary within one table; what can: {', '.join(FREE)}")
    for other in protocols[1:]:
        for name in Protocol.model_fields:
            a, b = getattr(protocols[0], name), getattr(other, name)
            if name not in varies and a != b:
                raise ValueError(f"{name} = {a} and {name} = {b} do not stand in one table: evaluate both alike")
