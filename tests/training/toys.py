"""Tasks small enough to work out by hand."""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i import randomness
from t2i.data.dataset import batch_indices

Loss = tuple[Tensor, dict[str, Tensor]]


class Regression:
    """y = x W; `fault` at step `when` (0-based): the "loss" or only its "gradient" is not finite."""

    couples_batch = False

    def __init__(self, fault: str = "", when: int = 2) -> None:
        torch.manual_seed(0)
        self.networks: dict[str, nn.Module] = {"line": nn.Linear(3, 1, bias=False)}
        self.x = randomness.normal((16, 3), 0, "x")
        self.fault, self.when = fault, when

    def __len__(self) -> int:
        return 16

    def order(self, step: int, global_batch: int, seed: int) -> Tensor:
        return batch_indices(16, global_batch, step, seed)

    def batch(self, indices: Tensor, step: int) -> dict[str, Any]:
        return {"x": self.x[indices], "bad": torch.tensor(step == self.when)}

    def loss(
        self, name: str, networks: dict[str, nn.Module], batch: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        out = networks["line"](batch["x"])
        loss = (out - batch["x"].sum(1, keepdim=True)).square().mean()
        if batch["bad"] and self.fault == "loss":
            loss = loss * torch.nan
        if batch["bad"] and self.fault == "gradient":
            loss = loss + (out * 0).sqrt().sum()  # the root of 0 has an infinite slope
        return loss, {}

    def validate(self, networks: dict[str, nn.Module]) -> dict[str, float]:
        return {}

    def samples(self, networks: dict[str, nn.Module]) -> None:
        return None

    def export(self, networks: dict[str, nn.Module], folder: Path) -> None:
        weights = {name: [p.tolist() for p in network.parameters()] for name, network in networks.items()}
        (folder / "weights.json").write_text(json.dumps(weights))

    def finish(self, networks: dict[str, nn.Module]) -> dict[str, Any]:
        return {}


class Duel(Regression):
    """A generator against a critic (Goodfellow et al. 2014): each loss passes through the other's network."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        critic = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        critic[0].bias.requires_grad_(False)  # pyright: ignore[reportCallIssue]
        self.networks = {"generator": nn.Linear(3, 3), "critic": critic}

    def loss(self, name: str, networks: dict[str, nn.Module], batch: dict[str, Any]) -> Loss:
        made = networks["critic"](networks["generator"](batch["x"]))
        if name == "generator":
            return F.softplus(-made).mean(), {}
        return F.softplus(made).mean() + F.softplus(-networks["critic"](batch["x"] * 2)).mean(), {}
