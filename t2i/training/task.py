"""What the loop asks of a task: players, batches that are functions of (indices, step), and a loss a player."""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor, nn


@runtime_checkable
class Task(Protocol):
    """One component's training. Each player is a network that the loop gives an optimiser of its own."""

    players: dict[str, nn.Module]
    """The trained networks, in the order in which they act in a step."""

    couples_batch: bool
    """True where the loss couples the samples of a batch (contrast): then nothing is accumulated."""

    def __len__(self) -> int:
        """How many training samples there are."""
        ...

    def order(self, step: int, global_batch: int, seed: int) -> Int[Tensor, " b"]:
        """The sample indices of optimiser step `step`, whatever the number of ranks."""
        ...

    def batch(self, indices: Int[Tensor, " b"], step: int) -> dict[str, Any]:
        """The micro-batch of these samples, on the CPU: tensors, or bundles that have `.to(device)`."""
        ...

    def loss(
        self, player: str, networks: dict[str, nn.Module], batch: dict[str, Any]
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The loss of one player (mean over the micro-batch) and terms to report.

        `networks[player]` is wrapped for data parallelism and must be called, not reached into; the others are frozen.
        """
        ...

    def validate(self, networks: dict[str, nn.Module]) -> dict[str, float]:
        """Deterministic figures on the validation data (averaged weights in place, eval mode)."""
        ...

    def samples(self, networks: dict[str, nn.Module]) -> Float[Tensor, "b 3 h w"] | None:
        """Pictures in [-1, 1] for a grid: the same prompts and noise at every call. None where there are none."""
        ...

    def export(self, networks: dict[str, nn.Module], folder: Path) -> None:
        """Write the component under `folder`, as others load it."""
        ...

    def finish(self, networks: dict[str, nn.Module]) -> dict[str, Any]:
        """What is measured once, at the end of training (after the last export): the report."""
        ...
