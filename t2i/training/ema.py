"""EMA weights: the exponential moving average of a network's parameters."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """Shadow weights s <- d s + (1 - d) w with d = min(decay, (1 + n) / (10 + n)) at the n-th update."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.network = network
        self.shadow = {k: v.detach().clone() for k, v in network.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        """Updates the EMA weights after an optimiser step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.shadow.values()), [p.detach() for p in self.network.parameters()], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Gives the network its EMA weights within the block."""
        live = {k: v.detach().clone() for k, v in self.network.named_parameters()}
        self._write(self.shadow)
        try:
            yield
        finally:
            self._write(live)

    @torch.no_grad()
    def _write(self, weights: dict[str, Tensor]) -> None:
        for name, parameter in self.network.named_parameters():
            parameter.copy_(weights[name])
