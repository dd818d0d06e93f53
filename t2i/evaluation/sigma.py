"""The variance of Algorithm 2 (Ho et al. 2020): sigma_t^2 = beta_t, beta_tilde_t or 0 on the same noise, and DDIM.

"Why not take the mean?" sigma_t = 0 follows the mean of p(x_{t-1} | x_t) alone: it has no bound, and is not DDIM, whose
deterministic step has another mean.
"""

import hashlib
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from t2i.data.data_config import DataConfig
from t2i.data.dataset import ImageDataset
from t2i.data.open import open_source
from t2i.data.transforms import to_pixels
from t2i.diffusion import ddim, ddpm
from t2i.diffusion.guidance import guided
from t2i.diffusion.prediction import Prediction, to_prediction
from t2i.diffusion.schedule import Level
from t2i.errors import check_finite
from t2i.evaluation.bound import around, latent_bound, sample_latents
from t2i.generator.prepared import remember_text
from t2i.pipeline import Pipeline, Request
from t2i.pipeline.job import Job
from t2i.progress import progress

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


@dataclass(frozen=True)
class Ask:
    """What is sampled: `copies` pictures of each prompt (else of `captions` of the reference's), in `steps` (else all
    of the schedule's); the bound judges `judged` pictures of the reference, each at `draws` t."""

    prompts: Sequence[str] = ()
    captions: int = 8
    copies: int = 4
    steps: int | None = None
    guidance: float | None = None
    seed: int = 0
    batch_size: int = 32
    judged: int = 64
    draws: int = 64


@dataclass(frozen=True)
class SigmaStudy:
    """Every number as a row of metrics.json; the pictures of each way, prompt by prompt, `copies` of each."""

    rows: list[dict[str, Any]]
    prompts: Sequence[str]
    copies: int
    pictures: dict[str, list[Image.Image]]
    steps: int
    guidance: float


def open_reference(path: str | Path, size: tuple[int, int]) -> ImageDataset:
    """The captioned pictures of a parquet file or a folder, as (width, height); all are read once."""
    if not Path(path).exists():
        raise ValueError(f"{path}: no such file or folder; a reference is a parquet file or a folder with captions")
    source = "parquet" if Path(path).suffix == ".parquet" else "folder"
    pictures = ImageDataset(open_source(DataConfig.model_validate({"source": source, "path": str(path)})), size)
    found = pictures.scan()
    print(f"reference: {pictures.source.report}; {found}", file=sys.stderr, flush=True)
    return pictures


def study_sigma(pipeline: Pipeline, reference: ImageDataset | None, ask: Ask, quiet: bool = False) -> SigmaStudy:
    """Draw the prompts in every way from the same noise and measure the samples; a bound needs a reference."""
    rows_of_prompts = [] if reference is None or ask.prompts else _spread(reference, ask.captions)
    prompts = ask.prompts or ([] if reference is None else [reference.texts()[i] for i in rows_of_prompts])
    if len(set(prompts)) < 3:
        raise ValueError(
            f"{len(set(prompts))} different prompts: intervals need 3; give them, or a reference of pictures"
        )
    job = _job(pipeline, prompts, ask)
    groups = torch.arange(job.count) // ask.copies
    common = {"steps": job.steps, "cfg": job.guidance.scale, "seed": ask.seed, "prompts_sha256": _sha256(prompts)}
    found = {way: _Samples(pipeline, latents, groups) for way, latents in _sample(pipeline, job, quiet)}
    rows = [row | common for way, samples in found.items() for row in samples.rows(way, found["beta"])]
    columns = {WAYS[way]: samples.pictures for way, samples in found.items()}
    if reference is not None:
        rows += _judge(pipeline, reference, ask, quiet)
        if rows_of_prompts:
            real = to_pixels(reference.batch(rows_of_prompts))
            columns = {DATA: [picture for picture in real for _ in range(ask.copies)]} | columns
    return SigmaStudy(rows, prompts, ask.copies, columns, job.steps, job.guidance.scale)


def _job(pipeline: Pipeline, prompts: Sequence[str], ask: Ask) -> Job:
    """Algorithm 2's levels and noise, and the texts."""
    request = Request(
        prompts=list(prompts),
        num_images_per_prompt=ask.copies,
        num_inference_steps=pipeline.generator.schedule.T if ask.steps is None else ask.steps,
        guidance_scale=ask.guidance,
        solver="ddpm",
        seeds=ask.seed,
        batch_size=ask.batch_size,
    )
    job = pipeline.prepare(request)
    if cut := sum(bool(rest) for rest in job.texts.truncated):
        limit = pipeline.text_encoder.max_tokens
        warnings.warn(f"{cut} prompts are longer than the text encoder's {limit} tokens: cut off", stacklevel=3)
    return job


def _sample(pipeline: Pipeline, job: Job, quiet: bool) -> Iterator[tuple[str, Float[Tensor, "n c h w"]]]:
    """(way, latents), a way after the other."""
    total, done = len(WAYS) * len(job.batches) * (len(job.levels) - 1), 0
    with progress("sampling: steps", total, quiet=quiet) as report:
        for way in WAYS:
            parts = []
            for first, last in job.batches:
                x = torch.empty(0)
                for x in draw(pipeline, job, way, first, last):  # noqa: B007
                    done += 1
                    report(done, way)
                check_finite(x, "U-Net")
                parts.append(x)
            yield way, torch.cat(parts)


@torch.no_grad()
def draw(pipeline: Pipeline, job: Job, way: str, first: int, last: int) -> Iterator[Float[Tensor, "b c h w"]]:
    """Pictures `first` to `last` of the job in one of the ways, yielding latents after each step."""
    generator, device = pipeline.generator, pipeline.device
    dtype, T = next(generator.unet.parameters()).dtype, generator.schedule.T
    unet, rows = remember_text(generator.unet), torch.arange(first, last) // job.copies
    cond, null = (
        job.texts.states[index[rows].to(device)].to(dtype=dtype) for index in (job.texts.rows, job.texts.null_rows)
    )
    output = guided(lambda x, t, cond: unet(x.to(dtype), t - 1, cond).to(x.dtype), cond, null, job.guidance)

    def predict(x: Tensor, level: Level) -> Prediction:
        t = torch.full(x.shape[:1], level.t, device=x.device)
        return to_prediction(output(x, t, level.t / T), x, level, generator.prediction)

    drawn = job.noise(first, last)
    start = drawn.start.to(device)
    if way == "ddim":
        yield from ddim.sample(predict, start, generator.levels(job.steps, "ddim"))
    else:
        yield from ddpm.sample(predict, start, job.levels, [z.to(device) for z in drawn.steps], variance=way)


class _Samples:
    """Latents and pictures with their statistics; `groups` are those of one prompt."""

    def __init__(self, pipeline: Pipeline, latents: Float[Tensor, "n c h w"], groups: Int[Tensor, " n"]) -> None:
        pixels = torch.cat([pipeline.decode(part) for part in latents.split(32)]).cpu()
        self.pictures, self.groups = to_pixels(pixels), groups
        z = latents.double().flatten(1).cpu()
        self.distance = torch.cdist(z, z) / z.shape[1] ** 0.5
        self.first, self.second = z.mean(1), z.square().mean(1)
        # The eye's "blurred" and "busy": how far neighbouring pixels differ, of 2.
        steps = [pixels.clamp(-1, 1).diff(dim=axis).double().square().flatten(1).mean(1) for axis in (2, 3)]
        self.detail = ((steps[0] + steps[1]) / 2).sqrt()

    def statistics(self, rows: Int[Tensor, " m"]) -> dict[str, float]:
        """Of these rows: the spread of all pictures and of those of one prompt, and what a latent and a pixel do."""
        distance, groups = self.distance[rows][:, rows], self.groups[rows]
        other = ~torch.eye(len(rows), dtype=torch.bool)
        same = other & (groups[:, None] == groups)
        mean = self.first[rows].mean().item()
        found = {"diversity": distance[other].mean().item()}
        if same.any():
            found["diversity_of_a_prompt"] = distance[same].mean().item()
        spread = (self.second[rows].mean().item() - mean**2) ** 0.5
        return found | {"latent_mean": mean, "latent_std": spread, "detail": self.detail[rows].mean().item()}

    def rows(self, way: str, other: "_Samples | None" = None) -> list[dict[str, Any]]:
        """A row a statistic; then its difference from `other`, paired by noise and prompt."""
        everything = torch.arange(len(self.groups))
        left_out = [everything[self.groups != group] for group in self.groups.unique()]
        found = []
        for against in [None] + ([other] if other is not None and other is not self else []):
            full, *left = [self._less(rows, against) for rows in [everything, *left_out]]
            for metric, value in full.items():
                value, se, ci95 = around(value, torch.tensor([part[metric] for part in left], dtype=torch.float64))
                row = {"metric": metric, "value": value, "se": se, "ci95": ci95, "n": len(self.groups)}
                found.append(row | {"features": None, "way": way, "against": None if against is None else "beta"})
        return found

    def _less(self, rows: Int[Tensor, " m"], other: "_Samples | None") -> dict[str, float]:
        own, its = self.statistics(rows), {} if other is None else other.statistics(rows)
        return {metric: value - its.get(metric, 0.0) for metric, value in own.items()}


def _judge(pipeline: Pipeline, reference: ImageDataset, ask: Ask, quiet: bool) -> list[dict[str, Any]]:
    """The data's own statistics, and the bound of every way that has one."""
    rows = _spread(reference, max(ask.judged, 3))
    texts = [reference.texts()[i] for i in rows]
    latents = [
        sample_latents(pipeline, reference.batch(rows[a : a + 32]), list(range(len(rows)))[a : a + 32], ask.seed)
        for a in range(0, len(rows), 32)
    ]
    data = _Samples(pipeline, torch.cat(latents), torch.arange(len(rows)))
    common = {"steps": None, "cfg": None, "seed": ask.seed, "prompts_sha256": _sha256(texts)}
    found = [row | common for row in data.rows(DATA)]
    if ask.judged:
        report = latent_bound(
            pipeline, lambda batch: reference.batch([rows[i] for i in batch]), texts,
            draws=ask.draws, seed=ask.seed, batch_size=ask.batch_size, quiet=quiet,
        )  # fmt: skip
        for row in report.rows():
            way = row["variance"] if row["variance"] in WAYS and row["conditioning"] == "caption" else None
            way = None if "t" in row else way
            found.append(row | common | {"way": way, "against": None, "steps": pipeline.generator.schedule.T})
        none = {"value": None, "se": None, "ci95": None, "n": len(rows), "features": None, "against": None}
        found += [{"metric": "vlb", **none, "way": way, "note": note} | common for way, note in NO_BOUND.items()]
    return found


def _sha256(texts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def _spread(pictures: ImageDataset, count: int) -> list[int]:
    """`count` readable pictures (or all), evenly over the reference, the first of each caption."""
    texts, rows = pictures.texts(), {}
    for i in pictures.usable.tolist():
        rows.setdefault(texts[i], i)
    found = list(rows.values())
    if len(found) < 3:
        raise ValueError(f"the reference has {len(found)} different captions: intervals need 3")
    count = min(count, len(found))
    return [found[k * len(found) // count] for k in range(count)]
