"""Compares a pipeline before and after fine-tuning: the same losses and images, and the nearest training images."""

import json
import math
import resource
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor, nn

from t2i.component import fingerprint, read_safetensors, save_weights
from t2i.data.dataset import ImageDataset
from t2i.data.decode import decode
from t2i.data.transforms import prepare, to_pixels
from t2i.files import atomic_folder, read_json, write_json
from t2i.report.grid import image_grid
from t2i.training.conditioned import timestep_bins
from t2i.training.finetune.task import NAME, FinetuneTask

LEVEL = 0.95  # of the intervals
SIDE = 32  # of the thumbnails by which images are compared
COMPARED = 20_000  # training images that a sample is compared with, at most
WHEN = ("before", "after")


def measure_before(task: FinetuneTask) -> None:
    """Writes losses and images of the untrained pipeline to RUN/before, unless they are there already."""
    folder = task.recipe.run / "before"
    key = {"key": identity(task), "prompts": task.prompts, "old_prompts": list(task.recipe.sample.old_prompts)}
    if (folder / "before.json").is_file() and read_json(folder / "before.json") == key:
        return
    task.trainable.eval()
    losses, _ = task.validation_losses({NAME: task.trainable})
    with atomic_folder(folder) as tmp:
        save_images(tmp, task)
        save_weights({"losses": losses}, tmp / "losses.safetensors")
        write_json(tmp / "before.json", key)


def identity(task: FinetuneTask) -> str:
    """Returns a fingerprint of what RUN/before depends on: the recipe without `train`, the images and the model."""
    recipe = task.recipe.model_dump(mode="json", exclude={"train", "out", "cache"})
    weights = {name: weight for name, weight in task.generator.unet.state_dict().items() if "lora_" not in name}
    return fingerprint(weights, json.dumps(recipe, sort_keys=True), task.data.held_out.source.fingerprint())


def save_images(folder: Path, task: FinetuneTask) -> None:
    """Generates the sample prompts, new and old, into one file each."""
    for name, prompts in (("new", task.prompts), ("old", list(task.recipe.sample.old_prompts))):
        images = to_pixels(task.generate(prompts)) if prompts else []
        for k, image in enumerate(images):
            image.save(folder / f"{name}_{k:02}.png")


def measure_after(task: FinetuneTask, networks: dict[str, nn.Module]) -> dict[str, Any]:
    """Measures the fine-tuned pipeline; returns the whole report."""
    run, recipe, pipe = task.recipe.run, task.recipe, task.pipeline
    before = read_safetensors(run / "before" / "losses.safetensors")["losses"]
    after, t = task.validation_losses(networks)
    with atomic_folder(run / "after") as tmp:
        save_images(tmp, task)
    old = list(recipe.sample.old_prompts)
    for name, prompts in (("new", task.prompts), ("old", old)):
        if prompts:
            images = [open_png(run / when / f"{name}_{k:02}.png") for k in range(len(prompts)) for when in WHEN]
            image_grid(images, 2 * math.ceil(math.sqrt(len(prompts) / 2))).save(run / f"ab_{name}.png")
    trained = sum(p.numel() for p in task.trainable.parameters())
    networks_of = (task.generator.unet, pipe.text_encoder, pipe.autoencoder)
    total = sum(p.numel() for network in networks_of for p in network.parameters() if not p.requires_grad) + trained
    bins = timestep_bins(t, task.generator.schedule.T)
    return {
        "method": recipe.method,
        "model": recipe.model,
        "training_pictures": len(task),
        "held_out_pictures": len(before),
        "held_out_are_training": task.data.same,
        "trained_parameters": trained,
        "trained_share": trained / total,
        "loss": paired(before, after),
        "bins": {name: paired(before, after, mask) for name, mask in bins.items()},
        "prompts": task.prompts,
        "old_prompts": old,
        "old_change": [change(run, f"old_{k:02}.png") for k in range(len(old))],
        "new_change": [change(run, f"new_{k:02}.png") for k in range(len(task.prompts))],
        "nearest": nearest(task),
        "train": recipe.train.model_dump(mode="json"),
        "seconds": trained_seconds(run),
        "peak_memory_mib": peak_mib(),
    }


def paired(
    before: Float[Tensor, "n k"], after: Float[Tensor, "n k"], mask: Bool[Tensor, "n k"] | None = None
) -> dict[str, Any]:
    """Returns the means before and after, and the mean difference with Student's interval over images as pairs."""
    from scipy.stats import t as student

    mask = torch.ones_like(before, dtype=torch.bool) if mask is None else mask
    rows = [i for i in range(len(before)) if mask[i].any()]
    a, b = (torch.stack([x[i][mask[i]].double().mean() for i in rows]) for x in (before, after))
    d, n = b - a, len(rows)
    half = None if n < 2 else float(student.ppf((1 + LEVEL) / 2, n - 1) * d.std() / math.sqrt(n))
    mean = d.mean().item()
    return {
        "before": a.mean().item(),
        "after": b.mean().item(),
        "difference": mean,
        "interval": None if half is None else [mean - half, mean + half],
        "relative": mean / a.mean().item(),
        "pictures": n,
    }


def change(run: Path, name: str) -> float:
    """Returns the root mean square difference of an image before and after, with pixels in [0, 1]."""
    a, b = (prepare_png(run / when / name) for when in WHEN)
    return (a - b).square().mean().sqrt().item() / 2


def nearest(task: FinetuneTask) -> dict[str, Any]:
    """Finds the nearest training image of each sample, and of each held-out image for comparison."""
    data, run = task.data, task.recipe.run
    usable = data.train.usable[:COMPARED]
    training = thumbnails(data.train, usable)
    folder = run / "nearest"
    folder.mkdir(exist_ok=True)
    samples = []
    for k in range(len(task.prompts)):
        distance, row = distances(thumbnail(prepare_png(run / "after" / f"new_{k:02}.png")[None]), training)
        place = int(usable[row])
        to_pixels(data.train.load(place)[None])[0].save(folder / f"{k:02}.png")
        key = data.train.source[place].key
        samples.append({"distance": distance, "picture": key, "caption": data.captions[row]})
    median = None
    if not data.same:
        held_out = thumbnails(data.held_out, data.held_out.usable[:COMPARED])
        ordered = sorted(distances(one[None], training)[0] for one in held_out)
        median = ordered[len(ordered) // 2]
    return {"samples": samples, "held_out_median": median, "compared": len(training)}


def thumbnails(images: ImageDataset, rows: Tensor) -> Float[Tensor, "n d"]:
    """Returns the thumbnails of some images."""
    return torch.cat([thumbnail(images.batch(part)) for part in rows.split(256)])


def thumbnail(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
    """Returns images in [-1, 1] scaled to SIDE x SIDE pixels in [0, 1], flat."""
    return nn.functional.interpolate(images / 2 + 0.5, (SIDE, SIDE), mode="area").flatten(1)


def distances(one: Float[Tensor, "1 d"], others: Float[Tensor, "n d"]) -> tuple[float, int]:
    """Returns the smallest root mean square difference of an image to the others, and the row of that other."""
    errors = (others - one).square().mean(1).sqrt()
    row = int(errors.argmin())
    return errors[row].item(), row


def open_png(path: Path) -> Image.Image:
    """Opens an image of a run."""
    return decode(path.read_bytes())


def prepare_png(path: Path) -> Float[Tensor, "3 h w"]:
    """Returns an image of a run in [-1, 1]."""
    image = open_png(path)
    return prepare(image, image.size)


def trained_seconds(run: Path) -> float:
    """Returns the duration of all steps by the run's log, whether or not the run was interrupted."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf8").splitlines()]
    rows = [row for row in rows if "samples_per_second" in row]
    starts = [0, *(row["samples"] for row in rows)]
    pairs = zip(rows, starts, strict=False)
    return sum((row["samples"] - start) / max(row["samples_per_second"], 1e-9) for row, start in pairs)


def peak_mib() -> float:
    """Returns this process's peak memory in MiB: of the GPU if there is one, else resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
