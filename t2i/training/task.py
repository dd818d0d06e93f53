"""The interface between the loop and a task: networks, batches that are functions of (indices, step), and losses."""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor, nn


@runtime_checkable
class Task(Protocol):
    """Defines the training of one component."""

    networks: dict[str, nn.Module]
    """The trained networks by name, in the order in which their losses are computed; each has its own optimiser."""

    couples_batch: bool
    """True if the loss couples the samples of a batch (contrastive), so that gradients cannot be accumulated."""

    def __len__(self) -> int:
        """Returns the number of training samples."""
        ...

    def order(self, step: int, global_batch: int, seed: int) -> Int[Tensor, " b"]:
        """Returns the sample indices of optimiser step `step`; they do not depend on the number of processes."""
        ...

    def batch(self, indices: Int[Tensor, " b"], step: int) -> dict[str, Any]:
        """Returns the micro-batch of these samples on the CPU: tensors, or objects that have `.to(device)`."""
        ...

    def loss(
        self, name: str, networks: dict[str, nn.Module], batch: dict[str, Any]
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Returns the loss of network `name` (mean over the micro-batch) and terms to report.

        `networks[name]` is wrapped for data parallelism: call it, do not reach into it. The others are frozen.
        """
        ...

    def validate(self, networks: dict[str, nn.Module]) -> dict[str, float]:
        """Returns deterministic figures on the validation data (EMA weights, eval mode)."""
        ...

    def samples(self, networks: dict[str, nn.Module]) -> Float[Tensor, "b 3 h w"] | None:
        """Returns images in [-1, 1] for a grid, from the same prompts and noise at every call, or None."""
        ...

    def export(self, networks: dict[str, nn.Module], folder: Path) -> None:
        """Writes the trained component under `folder`."""
        ...

    def finish(self, networks: dict[str, nn.Module]) -> dict[str, Any]:
        """Returns the report, which is computed once, after the last export."""
        ...
