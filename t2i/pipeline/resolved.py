"""Requests on their way: checked, with the model's defaults filled in; then with prompts and start image encoded."""

from dataclasses import dataclass

from torch import Tensor

from t2i.diffusion.guidance import Guidance
from t2i.generator.base import SamplingPlan
from t2i.pipeline.encode import Texts
from t2i.pipeline.init_image import Init
from t2i.pipeline.noise import NoiseSource
from t2i.pipeline.request import Request


@dataclass(frozen=True, kw_only=True)
class ResolvedRequest:
    """A checked request with the model's defaults filled in, and the steps and the noise that follow from it."""

    request: Request
    prompts: list[str] | Tensor
    negatives: list[str] | Tensor | None
    count: int
    guidance: Guidance
    plan: SamplingPlan
    noise: NoiseSource

    @property
    def seeds(self) -> list[int] | None:
        """The seed of each image; None where the request has generators."""
        assert not isinstance(self.request.seeds, int)
        return None if self.request.seeds is None else list(self.request.seeds)

    @property
    def steps(self) -> int:
        """The number of steps that was asked for, from which a strength and the solver may leave some out."""
        assert self.request.num_inference_steps is not None
        return self.request.num_inference_steps

    @property
    def height(self) -> int:
        """The height of the images, in pixels."""
        assert self.request.height is not None
        return self.request.height

    @property
    def width(self) -> int:
        """The width of the images, in pixels."""
        assert self.request.width is not None
        return self.request.width

    @property
    def copies(self) -> int:
        """The number of images of each prompt."""
        return self.request.num_images_per_prompt

    @property
    def batches(self) -> list[tuple[int, int]]:
        """The images cut into batches, (first, the one after the last)."""
        size = self.request.batch_size
        return [(a, min(a + size, self.count)) for a in range(0, self.count, size)]


@dataclass(frozen=True, kw_only=True)
class PreparedRequest(ResolvedRequest):
    """A request whose prompts and start image are encoded: it is ready to be sampled."""

    texts: Texts
    init: Init | None
