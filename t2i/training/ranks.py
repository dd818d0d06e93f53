"""The processes of a training."""

import torch
from accelerate import PartialState


def on_cpu() -> bool:
    """Whether there is no accelerator. Accelerate has to be told, or ranks on the CPU train as strangers."""
    return not torch.accelerator.is_available()


def ranks() -> PartialState:
    """This process among the ranks of the training (launched by torchrun or `accelerate launch`), and its device."""
    return PartialState(cpu=on_cpu())
