"""Runs a fine-tuning: checks its data, fills in the recipe's defaults, prints the plan, trains."""

import shlex
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from t2i.config import explain
from t2i.data.check import MAX_LOST, Check, TokenCounter, check_folder
from t2i.data.check_page import write_check
from t2i.data.data_config import DataConfig
from t2i.errors import ConfigError
from t2i.files import read_json
from t2i.pipeline import Pipeline
from t2i.pipeline.request import LARGEST_SIDE
from t2i.progress import say
from t2i.text.tokenizer import count_tokens
from t2i.training.distributed import process_state
from t2i.training.finetune.before_after import measure_before
from t2i.training.finetune.data import Sources, check_prompts, split_source
from t2i.training.finetune.estimate import plan_lines
from t2i.training.finetune.recipe import FinetuneRecipe, fill
from t2i.training.finetune.task import FinetuneTask
from t2i.training.loop import train
from t2i.training.resume import alone_in, check_run


def finetune(values: dict[str, Any]) -> list[str]:
    """Fine-tunes by the values of a recipe; returns lines about the result, in the main process only."""
    quiet = not process_state().is_main_process
    pipeline = Pipeline.from_pretrained(values["model"])
    check = check_data(values, pipeline, quiet)
    recipe, sources = complete(values, pipeline, check)
    if not quiet:
        for line in [*(f"model: {line}" for line in pipeline.report), *check.lines()]:
            say(line)
        changed = recipe.model_dump(mode="json", exclude_defaults=True)
        print(f"# the recipe, without defaults\n{yaml.safe_dump(changed, sort_keys=False)}", flush=True)
    check_run(recipe, couples_batch=False)
    try:
        recipe.run.mkdir(parents=True, exist_ok=True)
        (recipe.run / ".lock").touch()
    except OSError as error:
        problem = f"cannot be written ({error.strerror}): give another folder with -o"
        raise ConfigError("out", problem, str(recipe.run)) from None
    task = FinetuneTask(recipe, pipeline, sources, quiet=quiet)
    if not quiet:
        with alone_in(recipe.run):  # as in the training itself, which locks the folder again
            write_check(check, recipe.run / "check")
            print("\n".join(["", *plan_lines(task), ""]), flush=True)
            measure_before(task)
    process_state().wait_for_everyone()
    train(task, recipe)
    prompt = shlex.quote(task.prompts[0] if task.prompts else "PROMPT")
    lines = [f"{recipe.run / 'report.html'}", f"t2i generate {prompt} -m {shlex.quote(str(recipe.run))}"]
    return [] if quiet else lines


def check_data(values: dict[str, Any], pipeline: Pipeline, quiet: bool) -> Check:
    """Checks every training image; raises if too many are unusable."""
    check_out(values["out"], values["data"].get("path"))
    if values.get("size") is None:
        size = pipeline.default_size()
        if size is None or size[0] != size[1]:
            raise ValueError(f"{values['model']}: has no square default size: give size=PIXELS")
        values["size"] = size[0]
    if not isinstance(values["size"], int) or not 1 <= values["size"] <= LARGEST_SIDE:
        raise ConfigError("size", f"not a number of pixels in 1..{LARGEST_SIDE}", values["size"])
    if values.get("method") == "textual-inversion":
        if values["data"].get("instance_prompt") is not None:
            raise ConfigError(
                "data.instance_prompt",
                "(--instance-prompt) does not apply to textual-inversion, whose captions are inversion.templates: give "
                "inversion.templates=['a photo of {token}']",
            )
        values["data"].setdefault("allow_empty_captions", True)
    try:
        config = DataConfig.model_validate(values["data"])
    except ValidationError as error:
        raise ValueError(explain(error, DataConfig, "data.")) from None
    check_prompts(pipeline, {"data.instance_prompt": config.instance_prompt})
    text = pipeline.text_encoder
    words = TokenCounter(lambda texts: count_tokens(text.tokenizer, texts), text.max_tokens, str(values["model"]))
    size = (values["size"], values["size"])
    check = check_folder(config, size=size, words=words, max_lost=max(MAX_LOST, config.max_bad_share), quiet=quiet)
    if not check.ok:
        summary = f"{check.lost} of {check.total} images are unusable, more than a fraction of {check.max_lost:g}"
        problem = f"{summary}: repair or remove them, or raise data.max_bad_share"
        raise ConfigError("data.path", "\n".join([problem, *check.lines()[1:]]), config.path)
    return check


def complete(values: dict[str, Any], pipeline: Pipeline, check: Check) -> tuple[FinetuneRecipe, Sources]:
    """Returns the complete recipe, with defaults by the model and the number of images, and the split of the rows."""
    validation = values.get("validation")
    try:
        held_out = None if validation is None else DataConfig.model_validate(validation)
    except ValidationError as error:
        raise ValueError(explain(error, DataConfig, "validation.")) from None
    if not isinstance(values.get("held_out"), int | None):
        raise ConfigError("held_out", "not a number of images", values["held_out"])
    sources = split_source(check.source, check.config, held_out, values.get("held_out"), values.get("seed", 0))
    rms = float(pipeline.text_encoder.embeddings().detach().square().mean().sqrt())
    latents = values["size"] // pipeline.autoencoder.factor
    earlier = Path(values["out"]) / "recipe.json"
    if earlier.is_file() and (warmup := read_json(earlier).get("train", {}).get("warmup_steps")) is not None:
        values["train"].setdefault(
            "warmup_steps", warmup
        )  # its default depends on the number of steps, which may change
    try:
        return FinetuneRecipe.model_validate(fill(values, len(sources.train), latents, rms)), sources
    except ValidationError as error:
        raise ValueError(explain(error, FinetuneRecipe)) from None


def check_out(out: Any, data: Any) -> None:
    """Raises if the run lies in the folder of its training images, which would then include the run's images."""
    run = Path(str(out)).resolve()
    for name in data if isinstance(data, list) else [data]:
        place = Path(str(name)).resolve()
        if name is not None and place.is_dir() and (place == run or place in run.parents):
            raise ConfigError("out", f"lies in the folder of the images, {name}: give another folder with -o", str(out))
