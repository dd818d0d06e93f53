"""Did it learn, did it forget: the same losses and pictures before and after a fine-tuning."""

import json
import math
import resource
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from t2i.component import fingerprint, read_safetensors, save_weights
from t2i.data.decode import decode
from t2i.data.transforms import prepare, to_pixels
from t2i.files import atomic_folder, read_json, write_json
from t2i.report.grid import image_grid
from t2i.training.finetune.data import pixels, small
from t2i.training.finetune.task import NAME, FinetuneTask

LEVEL = 0.95  # of the intervals
SIDE = 32  # of the small copies that pictures are compared by
COMPARED = 20_000  # training pictures that a sample is compared with, at most


class Finetuning(FinetuneTask):
    """A fine-tuning that ends with its report."""

    def finish(self, networks: dict[str, nn.Module]) -> dict[str, Any]:
        """Before and after: the report as numbers, and RUN/report.html."""
        from t2i.training.finetune.report import write_report

        found = measure_after(self, networks)
        write_json(self.recipe.run / "report.json", found)
        write_report(self.recipe.run, found)
        return found


def measure_before(task: FinetuneTask) -> None:
    """Losses and pictures of the model as it is, in RUN/before; what is there already is kept."""
    folder = task.recipe.run / "before"
    key = {"key": identity(task), "prompts": task.prompts, "old_prompts": list(task.recipe.sample.old_prompts)}
    if (folder / "before.json").is_file() and read_json(folder / "before.json") == key:
        return
    task.trainable.eval()
    losses = task.held_losses({NAME: task.trainable})
    with atomic_folder(folder) as tmp:
        draw_into(tmp, task)
        save_weights({"losses": losses}, tmp / "losses.safetensors")
        write_json(tmp / "before.json", key)


def identity(task: FinetuneTask) -> str:
    """What the figures before depend on: all of the recipe but the training itself, pictures and the model."""
    recipe = task.recipe.model_dump(mode="json", exclude={"train", "out", "cache"})
    weights = {name: weight for name, weight in task.generator.unet.state_dict().items() if "lora_" not in name}
    return fingerprint(weights, json.dumps(recipe, sort_keys=True), task.material.held.source.fingerprint())


def draw_into(folder: Path, task: FinetuneTask) -> None:
    """The pictures of the prompts, new and old, one file each."""
    for name, prompts in (("new", task.prompts), ("old", list(task.recipe.sample.old_prompts))):
        images = to_pixels(task.draw(prompts)) if prompts else []
        for k, image in enumerate(images):
            image.save(folder / f"{name}_{k:02}.png")


def measure_after(task: FinetuneTask, networks: dict[str, nn.Module]) -> dict[str, Any]:
    """Everything of the report."""
    run, recipe = task.recipe.run, task.recipe
    before = read_safetensors(run / "before" / "losses.safetensors")["losses"]
    after = task.held_losses(networks)
    with atomic_folder(run / "after") as tmp:
        draw_into(tmp, task)
    old = list(recipe.sample.old_prompts)
    for name, prompts in (("new", task.prompts), ("old", old)):
        if prompts:
            pictures = [open_png(run / when / f"{name}_{k:02}.png") for k in range(len(prompts)) for when in WHEN]
            image_grid(pictures, 2 * math.ceil(math.sqrt(len(prompts) / 2))).save(run / f"ab_{name}.png")
    trained = sum(p.numel() for p in task.trainable.parameters())
    networks_of = (task.generator.unet, task.pipeline.text_encoder, task.pipeline.autoencoder)
    total = sum(p.numel() for network in networks_of for p in network.parameters() if not p.requires_grad) + trained
    bins = task.held_bins()
    return {
        "method": recipe.method,
        "model": recipe.model,
        "training_pictures": len(task),
        "held_out_pictures": len(before),
        "held_out_are_training": task.material.same,
        "trained_parameters": trained,
        "trained_share": trained / total,
        "loss": paired(before, after),
        "bins": {
            name: paired(before, after, bins == b) for b, name in enumerate(task.bin_names()) if (bins == b).any()
        },
        "prompts": task.prompts,
        "old_prompts": old,
        "old_change": [moved(run, "old", k) for k in range(len(old))],
        "new_change": [moved(run, "new", k) for k in range(len(task.prompts))],
        "nearest": nearest(task),
        "train": recipe.train.model_dump(mode="json"),
        "seconds": trained_seconds(run),
        "peak_memory_mib": peak_mib(),
    }


WHEN = ("before", "after")


def paired(before: Float[Tensor, "n k"], after: Float[Tensor, "n k"], of: Tensor | None = None) -> dict[str, Any]:
    """Means before and after, and the mean difference with Student's interval over pictures, each its own pair."""
    from scipy.stats import t as student

    kept = torch.ones_like(before, dtype=torch.bool) if of is None else of
    rows = [i for i in range(len(before)) if kept[i].any()]
    a, b = (torch.stack([x[i][kept[i]].double().mean() for i in rows]) for x in (before, after))
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


def moved(run: Path, name: str, k: int) -> float:
    """Root mean square difference of a prompt's pictures before and after, in [0, 1]."""
    a, b = (prepare_png(run / when / f"{name}_{k:02}.png") for when in WHEN)
    return (a - b).square().mean().sqrt().item() / 2


def nearest(task: FinetuneTask) -> dict[str, Any]:
    """The nearest training picture of each sample after, and of each held-out picture for comparison."""
    material, run = task.material, task.recipe.run
    usable = material.train.usable[:COMPARED]
    known = pixels(material.train, usable, SIDE)
    folder = run / "nearest"
    folder.mkdir(exist_ok=True)
    found = []
    for k in range(len(task.prompts)):
        image = prepare_png(run / "after" / f"new_{k:02}.png")[None]
        distance, row = distances(small(image, SIDE), known)
        place = int(usable[row])
        to_pixels(material.train.load(place)[None])[0].save(folder / f"{k:02}.png")
        found.append(
            {"distance": distance, "picture": material.train.source[place].key, "caption": material.captions[row]}
        )
    apart = None
    if not material.same:
        held = pixels(material.held, material.held.usable[:COMPARED], SIDE)
        apart = sorted(distances(one[None], known)[0] for one in held)
    return {"samples": found, "held_out_median": apart and apart[len(apart) // 2], "compared": len(known)}


def distances(one: Float[Tensor, "1 d"], known: Float[Tensor, "n d"]) -> tuple[float, int]:
    """The smallest root mean square difference of a picture to the known ones, in [0, 1], and which it is."""
    found = (known - one).square().mean(1).sqrt()
    row = int(found.argmin())
    return found[row].item(), row


def open_png(path: Path) -> Image.Image:
    """A picture of a run."""
    return decode(path.read_bytes())


def prepare_png(path: Path) -> Float[Tensor, "3 h w"]:
    """A picture of a run, in [-1, 1]."""
    image = open_png(path)
    return prepare(image, image.size)


def trained_seconds(run: Path) -> float:
    """The time that the steps took, by the run's log, whether or not it was interrupted."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf8").splitlines()]
    rows = [row for row in rows if "samples_per_second" in row]
    seen = [0, *(row["samples"] for row in rows)]
    return sum((row["samples"] - s) / max(row["samples_per_second"], 1e-9) for row, s in zip(rows, seen, strict=False))


def peak_mib() -> float:
    """The most memory of this process: of the device where there is one, else of the machine."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
