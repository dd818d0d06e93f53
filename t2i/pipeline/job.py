"""A request on its way: checked and filled in, then with its texts and its picture encoded."""

from dataclasses import dataclass

from torch import Tensor

from t2i.diffusion.guidance import Guidance
from t2i.diffusion.schedule import Level
from t2i.pipeline.encode import Texts
from t2i.pipeline.init_image import Init, Plan
from t2i.pipeline.noise import Noise
from t2i.pipeline.request import Request


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A checked request with what the model says where it says nothing; sampling walks `levels` from `begin.start`."""

    request: Request
    prompts: list[str] | Tensor
    negatives: list[str] | Tensor | None
    count: int
    steps: int
    guidance: Guidance
    solver: str
    spacing: str | None
    sigmas: str | None
    seeds: list[int] | None
    noise: Noise
    height: int
    width: int
    levels: list[Level]
    begin: Plan

    @property
    def copies(self) -> int:
        """Pictures a prompt."""
        return self.request.num_images_per_prompt

    @property
    def batches(self) -> list[tuple[int, int]]:
        """The pictures cut into batches, (first, the one after the last)."""
        size = self.request.batch_size
        return [(a, min(a + size, self.count)) for a in range(0, self.count, size)]

    @property
    def timesteps(self) -> list[int]:
        """Where each step begins, as the family counts."""
        return [int(level.t) - 1 for level in self.levels[self.begin.start : -1]]


@dataclass(frozen=True, kw_only=True)
class Job(Resolved):
    """A request that is ready to be sampled."""

    texts: Texts
    init: Init | None
