"""A tiny pipeline, a few pictures, and `t2i finetune` on them in this process."""

from pathlib import Path

import torch
from PIL import Image
from pipeline.tiny import make_pipeline

from t2i.cli.finetune import gather
from t2i.training.finetune.before_after import measure_before
from t2i.training.finetune.run import check_data, complete
from t2i.training.finetune.task import FinetuneTask
from t2i.training.loop import train

COLOURS = ["red", "green", "blue", "gray", "white", "black", "yellow", "purple", "orange", "pink"]
FAST = ["train.steps=4", "train.global_batch=4", "train.log_every=1", "sample.steps=2", "draws=4", "train.lr=0.01"]


def make_model(folder: Path) -> Path:
    """A model's folder."""
    torch.manual_seed(0)
    make_pipeline().save_pretrained(folder)
    return folder


def make_pictures(folder: Path, count: int = 8, captions: bool = True) -> Path:
    """Coloured pictures of many sizes, with captions beside them."""
    folder.mkdir(parents=True)
    for k in range(count):
        image = Image.new("RGB", (20 + 3 * k, 24 + k % 3), COLOURS[k % len(COLOURS)])
        for place in range(min(k + 1, 20)):
            image.putpixel((place, place), (255, max(255 - 20 * place, 0), 0))
        image.save(folder / f"{k}.png")
        if captions:
            (folder / f"{k}.txt").write_text(f"a {COLOURS[k % len(COLOURS)]} square")
    return folder


def prepare(model: Path, data: Path, out: Path, *arguments: str) -> FinetuneTask:
    """The task of a command line."""
    from t2i.pipeline import Pipeline

    values = gather([*FAST, *arguments], {"model": str(model), "data": str(data), "out": str(out)})
    pipeline = Pipeline.from_pretrained(values["model"])
    recipe, sources = complete(values, pipeline, check_data(values, pipeline, quiet=True))
    recipe.run.mkdir(parents=True, exist_ok=True)
    return FinetuneTask(recipe, pipeline, sources, quiet=True)


def run(model: Path, data: Path, out: Path, *arguments: str) -> FinetuneTask:
    """Fine-tune as the command line does."""
    task = prepare(model, data, out, *arguments)
    measure_before(task)
    train(task, task.recipe)
    return task
