"""The variance of Algorithm 2 (Ho et al. 2020): sigma_t^2 = beta_t, beta_tilde_t or 0 on the same noise, and DDIM.

sigma_t = 0 follows the mean of p(x_{t-1} | x_t) alone: it has no bound, and is not DDIM, whose deterministic step has
another mean.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from t2i.conditioning import Conditioning
from t2i.data.transforms import to_pixels
from t2i.diffusion import ddim, ddpm
from t2i.diffusion.guidance import guided
from t2i.diffusion.prediction import Prediction, to_prediction
from t2i.diffusion.schedule import Level
from t2i.errors import check_finite
from t2i.evaluation.bound import CAPTION, sample_latents
from t2i.evaluation.evaluation import Evaluation
from t2i.evaluation.generated import ModelSamples
from t2i.evaluation.image_sets import batches, gathered
from t2i.evaluation.jackknife import around, numbered
from t2i.evaluation.protocol import Protocol, prompts_hash
from t2i.evaluation.reference import ReferenceImages
from t2i.evaluation.rows import Row
from t2i.evaluation.store import Arrays, Task, digest, fill, is_main_rank
from t2i.generator.kv_cache import cached_text
from t2i.generator.latent_diffusion import require_diffusion
from t2i.pipeline import Pipeline
from t2i.pipeline.resolved import PreparedRequest

WAYS = {
    "beta": "sigma^2 = beta",
    "beta_tilde": "sigma^2 = beta tilde",
    "zero": "sigma = 0",
    "ddim": "DDIM, for comparison",
}
DATA = "data"
NO_BOUND = {
    "zero": "none: with sigma_t = 0 every KL divergence is infinite",
    "ddim": "none: a deterministic step has no density",
}
STAGE = "variance"  # of the store
DECODED = 32  # images that are decoded at once


def variance_rows(subject: ModelSamples, evaluation: Evaluation, quiet: bool = False) -> list[Row] | None:
    """Samples the subject's prompts with each variance; returns statistics, and their paired differences from beta.

    The number of steps is all of the schedule's by default, the guidance the subject's first. The images are left in
    `evaluation.columns`. Returns None on all ranks but the first.
    """
    job = prepare(subject)
    parts = batches(job.count, job.request.batch_size)
    tasks = {way: [_task(subject, job, way, part) for part in parts] for way in WAYS}
    fill(evaluation.store, STAGE, [task for way in WAYS for task in tasks[way]], quiet)
    if not is_main_rank():
        return None
    groups = numbered(subject.prompts)
    latents = {way: gathered(evaluation.store, STAGE, tasks[way], "latents") for way in WAYS}
    samples = {way: Samples(subject.pipeline, latents[way], groups) for way in WAYS}
    evaluation.columns |= {WAYS[way]: samples[way].images for way in WAYS}
    identity = subject.identity(job.guidance.scale) | {"solver": "ddpm", "steps": job.steps}
    protocol = Protocol(n=job.count, size=subject.size, **identity)
    rows = [row for way in WAYS for row in samples[way].rows(way, protocol, samples["beta"])]
    images = evaluation.bound_images or evaluation.reference
    if isinstance(images, ReferenceImages):
        n = len(images) if evaluation.bound_images else min(len(subject.prompts), len(images))
        indices = list(range(n))
        chunks = [indices[a : a + DECODED] for a in range(0, n, DECODED)]
        seed = subject.sampling.seed
        real = torch.cat([sample_latents(subject.pipeline, images.batch(part), part, seed) for part in chunks])
        fields: dict[str, Any] = {
            "prompts": prompts_hash(images.captions[:n]),
            "reference": images.hash,
            "seeds": str(seed),
        }
        protocol = Protocol(n=n, size=images.size, model=subject.fingerprint, dtype=subject.dtype, **fields)
        rows += Samples(subject.pipeline, real, torch.arange(n)).rows(DATA, protocol)
    return rows


def prepare(subject: ModelSamples) -> PreparedRequest:
    """Returns the levels and noise of Algorithm 2, and the encoded texts, for all of the subject's prompts."""
    T = subject.pipeline.generator.schedule.T
    steps = T if subject.sampling.steps is None else subject.sampling.steps
    ancestral = copy(subject)
    ancestral.sampling = replace(subject.sampling, solver="ddpm", steps=steps)
    request = ancestral.request(subject.prompts, range(len(subject.prompts)), subject.guidances[0])
    return subject.pipeline.prepare(replace(request, batch_size=subject.sampling.batch))


def _task(subject: ModelSamples, job: PreparedRequest, way: str, part: range) -> Task:
    prompts, seeds = [subject.prompts[i] for i in part], [subject.sampling.seed + i for i in part]
    where = (subject.dtype, subject.pipeline.device.type)
    key = digest(subject.fingerprint, prompts, seeds, job.guidance.scale, job.steps, list(subject.size), way, *where)

    @torch.no_grad()
    def make() -> Arrays:
        [latents] = deque(sample(subject.pipeline, job, way, part.start, part.stop), maxlen=1)
        check_finite(latents, "U-Net")
        return {"latents": latents.cpu().numpy()}

    return Task(key, len(part), make)


@torch.no_grad()
def sample(
    pipeline: Pipeline, job: PreparedRequest, way: str, first: int, last: int
) -> Iterator[Float[Tensor, "b c h w"]]:
    """Samples images `first` to `last` of the job with one of the variances; yields the latents after each step."""
    generator, device = require_diffusion(pipeline.generator, "a choice of variance"), pipeline.device
    dtype, T = next(generator.unet.parameters()).dtype, generator.schedule.T
    network_for, rows = cached_text(generator.unet), torch.arange(first, last) // job.copies
    cond, uncond = (
        job.texts.states[index[rows].to(device)].to(dtype=dtype) for index in (job.texts.rows, job.texts.uncond_rows)
    )

    def network(x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        return network_for(cond)(x.to(dtype), t - 1, cond).to(x.dtype)

    output = guided(network, cond, uncond, job.guidance)

    def predict(x: Tensor, level: Level) -> Prediction:
        t = torch.full(x.shape[:1], level.t, device=x.device)
        return to_prediction(output(x, t, level.t / T), x, level, generator.prediction)

    drawn = job.noise(first, last)
    start = drawn.start.to(device)
    if way == "ddim":
        yield from ddim.sample(predict, start, generator.plan(job.steps, "ddim").levels)
    else:
        yield from ddpm.sample(predict, start, job.plan.levels, [z.to(device) for z in drawn.steps], variance=way)


class Samples:
    """Latents and their images with statistics; `groups` numbers the prompt of each image."""

    def __init__(self, pipeline: Pipeline, latents: Float[Tensor, "n c h w"], groups: Int[Tensor, " n"]) -> None:
        parts = latents.to(pipeline.device).split(DECODED)
        pixels = torch.cat([pipeline.decode(part) for part in parts]).cpu()
        self.images: list[Image.Image] = to_pixels(pixels)
        self.groups = groups
        z = latents.double().flatten(1).cpu()
        self.distance = torch.cdist(z, z) / z.shape[1] ** 0.5
        self.first, self.second = z.mean(1), z.square().mean(1)
        # Root mean square difference of neighbouring pixels in [-1, 1]: low for blurred images, high for busy ones.
        steps = [pixels.clamp(-1, 1).diff(dim=axis).double().square().flatten(1).mean(1) for axis in (2, 3)]
        self.detail = ((steps[0] + steps[1]) / 2).sqrt()

    def statistics(self, rows: Int[Tensor, " m"]) -> dict[str, float]:
        """Computes the mean distance of all images and of those of one prompt, latent moments, and detail of `rows`."""
        distance, groups = self.distance[rows][:, rows], self.groups[rows]
        other = ~torch.eye(len(rows), dtype=torch.bool)
        same = other & (groups[:, None] == groups)
        mean = self.first[rows].mean().item()
        numbers = {"diversity": distance[other].mean().item()}
        if same.any():
            numbers["diversity_of_a_prompt"] = distance[same].mean().item()
        std = (self.second[rows].mean().item() - mean**2) ** 0.5
        return numbers | {"latent_mean": mean, "latent_std": std, "detail": self.detail[rows].mean().item()}

    def rows(self, way: str, protocol: Protocol, beta: "Samples | None" = None) -> list[Row]:
        """Returns a row a statistic, then one for its difference from `beta`, paired by noise and prompt."""
        every = torch.arange(len(self.groups))
        subsets = [every, *(every[self.groups != group] for group in self.groups.unique())]
        rows = []
        for against in [None] + ([beta] if beta is not None and beta is not self else []):
            full, *without = [self._minus(against, subset) for subset in subsets]
            for metric, value in full.items():
                if not all(metric in part for part in without):
                    continue  # only one prompt has several images
                each = torch.tensor([part[metric] for part in without], dtype=torch.float64)
                value, se, ci95 = around(value, each)
                extra = {"way": way, "against": None if against is None else "beta"}
                fields = {"method": "jackknife by prompt", "protocol": protocol, "extra": extra}
                rows.append(Row(metric=metric, value=value, se=se, ci95=ci95, **fields))
        return rows

    def _minus(self, other: "Samples | None", rows: Int[Tensor, " m"]) -> dict[str, float]:
        ours, theirs = self.statistics(rows), {} if other is None else other.statistics(rows)
        return {metric: value - theirs.get(metric, 0.0) for metric, value in ours.items()}


def variance_table(rows: Sequence[Row]) -> list[list[str]]:
    """Returns a line a metric and a column a variance, of `variance_rows` and of the bound's rows; [] without any."""
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        if (way := way_of(row)) is not None and row.extra.get("against") is None:
            cells.setdefault(row.metric, {})[way] = f"{row.value:.3f} ± {row.se:.3f}"
    if "vlb" in cells:
        cells["vlb"] |= NO_BOUND
    ways = [way for way in (*WAYS, DATA) if any(way in line for line in cells.values())]
    return [["", *ways], *([metric, *(line.get(way, "-") for way in ways)] for metric, line in cells.items())]


def way_of(row: Row) -> str | None:
    """Returns the variance that a row is about: its own, or that of a bound under the captions."""
    if "way" in row.extra:
        return str(row.extra["way"])
    variance = row.extra.get("variance")
    bound = row.extra.get("conditioning") == CAPTION and "t" not in row.extra
    return str(variance) if variance in WAYS and bound else None


def spread(reference: ReferenceImages, count: int) -> list[int]:
    """Returns `count` images (or all), evenly over the reference, the first of each caption."""
    first: dict[str, int] = {}
    for i, caption in enumerate(reference.captions):
        if caption.strip():
            first.setdefault(caption, i)
    rows = list(first.values())
    if len(rows) < 3:
        raise ValueError(f"the reference has {len(rows)} different captions: intervals need 3")
    count = min(count, len(rows))
    return [rows[k * len(rows) // count] for k in range(count)]
