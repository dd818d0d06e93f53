"""Distributed training: this process among all of them, and how a global batch is split over them."""

from dataclasses import dataclass
from typing import Self

import torch
from accelerate import PartialState

from t2i.config import TrainConfig


def on_cpu() -> bool:
    """Returns True if there is no accelerator; without `cpu=True` Accelerate does not connect processes on the CPU."""
    return not torch.accelerator.is_available()


def process_state() -> PartialState:
    """Returns this process's rank and device among those that torchrun or `accelerate launch` started."""
    return PartialState(cpu=on_cpu())


@dataclass(frozen=True)
class BatchSplit:
    """Micro-batches of a fixed size, dealt to the processes in turn."""

    micro: int
    accumulation: int
    processes: int

    @classmethod
    def of(cls, config: TrainConfig, processes: int, couples_batch: bool) -> Self:
        """Splits a batch: micro-batch x accumulation x processes = global batch, or a ValueError with the numbers."""
        total, micro = config.global_batch, config.micro_batch
        if micro is None and total % processes:
            raise ValueError(
                f"train.global_batch={total} cannot be split over {processes} processes: choose a multiple of it"
            )
        micro = micro or total // processes
        if total % (micro * processes):
            raise ValueError(
                f"train.global_batch={total} is not a multiple of train.micro_batch={micro} x {processes} processes"
            )
        accumulation = total // (micro * processes)
        if couples_batch and accumulation > 1:
            raise ValueError(
                f"this loss compares all samples of a batch, so it cannot be accumulated: leave train.micro_batch "
                f"out, or set it to {total // processes}"
            )
        return cls(micro, accumulation, processes)
