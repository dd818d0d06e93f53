"""The interface between text encoders and generators: token states and their mask."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """Token states and their mask (True = a real token, False = padding); `pooled` is one vector per prompt."""

    tokens: Float[Tensor, "b n d"]
    mask: Bool[Tensor, "b n"]
    pooled: Float[Tensor, "b p"] | None = None

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def __getitem__(self, index: slice | Tensor) -> "Conditioning":
        """Returns the prompts at `index`, which keeps the batch dimension."""
        return self._map(lambda x: x[index])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Conditioning":
        """Moves to `device`; `dtype` applies to the states, never to the mask."""
        return self._map(lambda x: x.to(device=device, dtype=dtype if x.is_floating_point() else None))

    def repeat(self, n: int) -> "Conditioning":
        """Repeats every prompt `n` times in a row (prompt-major)."""
        return self._map(lambda x: x.repeat_interleave(n, 0))

    def expand(self, b: int) -> "Conditioning":
        """Returns one prompt as a batch of `b`, without a copy."""
        return self._map(lambda x: x.expand(b, *x.shape[1:]))

    def drop(self, keep: Bool[Tensor, "b"], uncond: "Conditioning") -> "Conditioning":
        """Replaces every prompt that is not kept by `uncond` (one prompt): dropout for classifier-free guidance."""

        def choose(x: Tensor, y: Tensor) -> Tensor:
            return torch.where(keep.view(-1, *[1] * (x.dim() - 1)), x, y.to(x.dtype))

        pooled = None if self.pooled is None or uncond.pooled is None else choose(self.pooled, uncond.pooled)
        return Conditioning(choose(self.tokens, uncond.tokens), choose(self.mask, uncond.mask), pooled)

    @classmethod
    def cat(cls, parts: Sequence["Conditioning"]) -> "Conditioning":
        """Concatenates the prompts of all parts, in order."""
        pooled = [p.pooled for p in parts if p.pooled is not None]
        return cls(
            torch.cat([p.tokens for p in parts]),
            torch.cat([p.mask for p in parts]),
            torch.cat(pooled) if len(pooled) == len(parts) else None,
        )

    def _map(self, f) -> "Conditioning":
        return Conditioning(f(self.tokens), f(self.mask), None if self.pooled is None else f(self.pooled))
