"""`t2i finetune`: fine-tunes a model on a user's images; takes the flags of diffusers' and kohya's scripts too."""

import difflib
from pathlib import Path
from typing import Annotated, Any

import typer

from t2i.cli.options import find_recipe, recipe_file
from t2i.errors import ConfigError
from t2i.pipeline.find import SHIPPED, find_model
from t2i.progress import say

Option = typer.Option
# Flags of other programs, and the keys of a recipe that they stand for.
KEYS = {
    "seed": "seed",
    "resolution": "size",
    "train_batch_size": "train.micro_batch",
    "max_train_steps": "train.steps",
    "num_train_epochs": "train.epochs",
    "learning_rate": "train.lr",
    "lr_scheduler": "train.lr_schedule",
    "lr_warmup_steps": "train.warmup_steps",
    "adam_weight_decay": "train.weight_decay",
    "max_grad_norm": "train.clip_norm",
    "mixed_precision": "train.mixed_precision",
    "checkpointing_steps": "train.save_every",
    "checkpoints_total_limit": "train.keep",
    "validation_steps": "train.validate_every",
    "image_column": "data.image_column",
    "caption_column": "data.caption_column",
    "rank": "lora.rank",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "unet_lr": "train.lr",
    "max_train_epochs": "train.epochs",
    "network_dim": "lora.rank",
    "network_alpha": "lora.alpha",
    "conv_dim": "lora.conv_rank",
    "conv_alpha": "lora.conv_alpha",
    "class_prompt": "prior.prompt",
    "class_data_dir": "prior.folder",
    "num_class_images": "prior.count",
    "prior_loss_weight": "prior.weight",
    "placeholder_token": "inversion.token",
    "initializer_token": "inversion.initializer",
    "num_vectors": "inversion.vectors",
    "keep_tokens": "tags.keep",
}
SWITCHES: dict[str, tuple[str, Any]] = {
    "gradient_checkpointing": ("train.gradient_checkpointing", True),
    "random_flip": ("flip", True),
    "use_ema": ("train.ema", 0.9999),
    "shuffle_caption": ("tags.shuffle", True),
    "enable_xformers_memory_efficient_attention": ("train.attention", "xformers"),
}
# Flags without effect on the result here, and whether they take a value.
IGNORED = {
    "center_crop": False,
    "allow_tf32": False,
    "resume_from_checkpoint": True,
    "report_to": True,
    "dataloader_num_workers": True,
    "logging_dir": True,
    "cache_dir": True,
    "repeats": True,
    "save_as_full_pipeline": False,
    "learnable_property": True,
    "num_validation_images": True,
    "validation_epochs": True,
}
SPECIAL = ("gradient_accumulation_steps", "with_prior_preservation", "train_text_encoder", "validation_prompt")
# Flags of diffusers for the options of this command.
OPTIONS = {
    "pretrained_model_name_or_path": "model",
    "train_data_dir": "data",
    "instance_data_dir": "data",
    "dataset_name": "data",
    "output_dir": "out",
    "instance_prompt": "instance_prompt",
}
# Flags whose values are text, not YAML.
TEXTS = ("class_prompt", "class_data_dir", "placeholder_token", "initializer_token", "validation_prompt")
TEXTS += ("mixed_precision", "lr_scheduler")
SCHEDULES = {"constant_with_warmup": "constant"}


def finetune(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE] [KEY=VALUE]...",
            help="A YAML recipe, and keys that override it, for example train.steps=500.",
        ),
    ] = None,
    model: Annotated[
        str | None, Option("-m", "--model", help=f"A folder, a single file or a hub name. Default: {SHIPPED}.")
    ] = None,
    data: Annotated[str | None, Option(help="A folder, FILE.parquet or a hub name.")] = None,
    method: Annotated[str | None, Option(help="lora, dreambooth, textual-inversion or full. Default: lora.")] = None,
    out: Annotated[Path | None, Option("-o", "--out", help="The folder of the run. Default: runs/DATA-METHOD.")] = None,
    instance_prompt: Annotated[str | None, Option(help="Caption of images without one.")] = None,
) -> None:
    """Fine-tune a model on your own images; the same command resumes. Then: t2i generate PROMPT -m RUN.

    For images without captions give --instance-prompt. The flags of diffusers' training scripts are accepted too, for
    example --max_train_steps, --learning_rate, --train_batch_size, --rank, --class_prompt, --with_prior_preservation.
    """
    given = {"model": model, "data": data, "method": method, "instance_prompt": instance_prompt}
    given["out"] = None if out is None else str(out)
    values = gather(arguments or [], {name: value for name, value in given.items() if value is not None})
    from t2i.training.finetune.run import finetune

    for line in finetune(values):
        typer.echo(line)


def gather(arguments: list[str], given: dict[str, str]) -> dict[str, Any]:
    """Returns the values of the recipe: of the file, then of flags, then of key=value; later ones win."""
    from t2i.config import check_verb, override, read_recipe
    from t2i.data.data_config import config_for

    texts, flags = read_flags(arguments)
    files = [text for text in texts if "=" not in text]
    if len(files) > 1:
        raise ValueError(f"{' and '.join(files)}: give one recipe, then key=value")
    given = {name: flags.pop(f"--{name}") for name in OPTIONS.values() if f"--{name}" in flags} | given
    values: dict[str, Any] = {}
    for name in files:
        path = recipe_file(Path(name)) if Path(name).exists() else find_recipe(name)[1]
        values = read_recipe(path)
        check_verb(path, values, "finetune")
    for name in ("model", "method", "out"):
        if name in given:
            values[name] = given[name]
    if "data" in given:
        keys = {k: v for k, v in section(values, "data").items() if k not in ("source", "path")}
        values["data"] = keys | {"--": given["data"]}
    if "instance_prompt" in given:
        values["data"] = section(values, "data") | {"instance_prompt": given["instance_prompt"]}
    apply_flags(values, flags)
    for text in texts:
        if "=" in text:
            override(values, text)
    values["data"], values["train"] = section(values, "data"), section(values, "train")
    name = values["data"].pop("--", None)
    if name is not None:
        values["data"] = config_for(name).model_dump(exclude_defaults=True) | values["data"]
    values["model"] = str(find_model(None)) if values.get("model") is None else values["model"]
    if not values.get("data"):
        raise ValueError("no images: give --data FOLDER, FILE.parquet or the name of a data set on the hub")
    if values.get("out") is None:
        stem = Path(name or str(values["data"].get("path"))).name
        values["out"] = f"runs/{stem}-{values.get('method', 'lora')}"
    return values


def section(values: dict[str, Any], name: str) -> dict[str, Any]:
    """Returns a copy of a section of a recipe, empty by default."""
    keys = values.get(name) or {}
    if not isinstance(keys, dict):
        raise ConfigError(name, "not a section of keys", keys)
    return dict(keys)


def read_flags(arguments: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Returns the arguments that are not flags, and the keys that the flags stand for."""
    import yaml

    others: list[str] = []
    keys: dict[str, Any] = {}
    todo = list(arguments)
    while todo:
        argument = todo.pop(0)
        if not argument.startswith("--"):
            if argument.startswith("-"):
                raise ValueError(f"{argument}: no such option; see `t2i finetune --help`")
            others.append(argument)
            continue
        flag, equals, value = argument[2:].partition("=")
        name = flag.replace("-", "_")
        if name in SWITCHES:
            keys[SWITCHES[name][0]] = SWITCHES[name][1]
            continue
        if name in ("with_prior_preservation", "train_text_encoder") or IGNORED.get(name) is False:
            keys |= {} if name in IGNORED else {f"--{name}": True}
            _report_ignored(name)
            continue
        if not any(name in names for names in (KEYS, SPECIAL, IGNORED, OPTIONS)):
            known = [*KEYS, *SWITCHES, *SPECIAL, *IGNORED, *OPTIONS, *OPTIONS.values(), "method"]
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean --{near[0]}?" if near else "see `t2i finetune --help`"
            raise ValueError(f"--{flag}: no such option, and none of diffusers' that is supported; {hint}")
        if not equals:
            if not todo or todo[0].startswith("--"):
                raise ValueError(f"--{flag}: needs a value")
            value = todo.pop(0)
        if name in IGNORED:
            _report_ignored(name)
            continue
        key = f"--{OPTIONS[name]}" if name in OPTIONS else KEYS.get(name, f"--{name}")
        try:
            keys[key] = SCHEDULES.get(value, value) if name in TEXTS or name in OPTIONS else yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise ValueError(f"--{flag}: {value!r:.80} is not a value") from None
    return others, keys


def _report_ignored(name: str) -> None:
    if name in IGNORED:
        say(f"--{name}: ignored, it has no effect here")


def apply_flags(values: dict[str, Any], keys: dict[str, Any]) -> None:
    """Sets the keys that flags stand for in the values of a recipe, in place."""
    keys = dict(keys)
    prior, text = keys.pop("--with_prior_preservation", False), keys.pop("--train_text_encoder", False)
    accumulation, prompt = keys.pop("--gradient_accumulation_steps", 1), keys.pop("--validation_prompt", None)
    if not isinstance(accumulation, int) or accumulation < 1:
        raise ConfigError("--gradient_accumulation_steps", "not a whole number above 0", accumulation)
    for key, value in keys.items():
        name, _, last = key.rpartition(".")
        if name:
            values[name] = section(values, name) | {last: value}
        else:
            values[last] = value
    if isinstance(micro := keys.get("train.micro_batch"), int):
        values["train"]["global_batch"] = micro * accumulation
    if prompt is not None:
        values["sample"] = section(values, "sample") | {"prompts": [prompt]}
    if prior and "prompt" not in section(values, "prior"):
        raise ValueError("--with_prior_preservation: give --class_prompt too, for example 'a dog'")
    if not prior and any(key.startswith("prior.") for key in keys):
        say("flags of class images enable prior preservation")
    if text and (values.get("lora") is not None or values.get("method", "lora") == "lora"):
        values["lora"] = section(values, "lora") | {"text_encoder": True}
    elif text:
        values["text_encoder"] = True
