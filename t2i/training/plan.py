"""How a global batch is cut."""

from dataclasses import dataclass
from typing import Self

from t2i.config import TrainConfig


@dataclass(frozen=True)
class Plan:
    """Micro-batches of a fixed size, dealt to the ranks in turn."""

    micro: int
    accumulation: int
    ranks: int

    @classmethod
    def of(cls, config: TrainConfig, ranks: int, couples_batch: bool) -> Self:
        """micro-batch x accumulation x ranks = global batch, or a ValueError that names the numbers."""
        total, micro = config.global_batch, config.micro_batch
        if micro is None and total % ranks:
            raise ValueError(f"train.global_batch={total} cannot be dealt to {ranks} processes: choose a multiple")
        micro = micro or total // ranks
        if total % (micro * ranks):
            raise ValueError(
                f"train.global_batch={total} is not a multiple of train.micro_batch={micro} x {ranks} processes"
            )
        accumulation = total // (micro * ranks)
        if couples_batch and accumulation > 1:
            raise ValueError(
                f"this loss compares all samples of a batch, so it cannot be accumulated: leave train.micro_batch "
                f"out, or set it to {total // ranks}"
            )
        return cls(micro, accumulation, ranks)
