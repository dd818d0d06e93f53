"""The optimiser, and the learning rate as a pure function of the step."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from t2i.config import TrainConfig
from t2i.errors import ConfigError


def learning_rate(step: int, config: TrainConfig) -> float:
    """Returns the rate of optimiser step `step` (0-based): linear warm-up, then constant, cosine or linear decay."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    shape = {"constant": 1.0, "cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done}[config.lr_schedule]
    return config.lr * (config.lr_floor + (1 - config.lr_floor) * shape)


def optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Returns the optimiser that `train.optimizer` names, over the trainable parameters of `network`."""
    return muon(network, config) if config.optimizer == "muon" else adamw(network.parameters(), config)


def adamw(parameters: Iterable[nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    """Returns AdamW (Loshchilov & Hutter 2019) without weight decay on vectors and scalars (norms, biases)."""
    trained = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=config.betas, fused=True)


def muon(network: nn.Module, config: TrainConfig) -> "MuonAdamW":
    """Returns Muon for the weights of linear and convolutional layers, AdamW for embeddings, norms and biases."""
    embeddings = {id(m.weight) for m in network.modules() if isinstance(m, nn.Embedding)}
    trained = [p for p in network.parameters() if p.requires_grad]
    weights = [p for p in trained if p.dim() > 1 and id(p) not in embeddings]
    ids = {id(p) for p in weights}
    return MuonAdamW(weights, [p for p in trained if id(p) not in ids], config)


class MuonAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` (Jordan et al. 2024) for some parameters and AdamW for the others, in one optimiser.

    A convolution's kernel (out, in, h, w), which torch.optim.Muon refuses, is updated as the matrix (out, in * h * w).
    Updates are scaled to AdamW's root mean square (Liu et al. 2025, arXiv 2502.16982), so that both parts share one
    learning rate and weight decay.
    """

    def __init__(self, weights: list[nn.Parameter], others: list[nn.Parameter], config: TrainConfig) -> None:
        if not weights:
            raise ConfigError("train.optimizer", "no weight matrix is trained: set train.optimizer=adamw", "muon")
        super().__init__([{"params": weights}, *([{"params": others}] if others else [])], {"lr": config.lr})
        self.weights = weights
        self.matrices = [nn.Parameter(p.detach().view(len(p), -1)) for p in weights]  # they share the weights' memory
        self.muon = torch.optim.Muon(
            self.matrices, config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        self.adamw = adamw(others, config) if others else None

    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Updates every parameter that has a gradient, at the learning rate of the parameter groups."""
        for matrix, weight in zip(self.matrices, self.weights, strict=True):
            matrix.grad = None if weight.grad is None else weight.grad.view(len(weight), -1)
        for part in self._parts():
            for group in part.param_groups:
                group["lr"] = self.param_groups[0]["lr"]
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Returns the states of Muon's parameters, then of AdamW's, numbered consecutively."""
        states, first = {}, 0
        for part in self._parts():
            states |= {first + i: state for i, state in part.state_dict()["state"].items()}
            first += sum(len(group["params"]) for group in part.param_groups)
        return {"state": states, "param_groups": super().state_dict()["param_groups"]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads the result of `state_dict`."""
        first = 0
        for part in self._parts():
            groups = part.state_dict()["param_groups"]
            count = sum(len(group["params"]) for group in groups)
            states = {i - first: state for i, state in state_dict["state"].items() if first <= i < first + count}
            part.load_state_dict({"state": states, "param_groups": groups})
            first += count

    def _parts(self) -> list[torch.optim.Optimizer]:
        return [self.muon, self.adamw] if self.adamw is not None else [self.muon]
