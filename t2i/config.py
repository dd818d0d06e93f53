"""Recipes: a YAML file and `key=value` overrides, validated by pydantic; an unknown key is an error."""

import difflib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

R = TypeVar("R", bound="Section")
MOST_FAULTS = 20  # errors that a message lists
# The verb of a recipe, by the first of these sections that it has; to other verbs `vae` is the folder of one.
VERBS = {
    "method": "finetune",
    "encoders": "study text-encoder",
    "unet": "train unet",
    "tokenizer": "train text-encoder",
    "text": "train text-encoder",
    "t5": "train text-encoder",
    "vae": "train vae",
}


class Section(BaseModel):
    """A section of a recipe: frozen, unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _no(value: Any) -> Any:
    """Returns "no" for YAML's false, which is how YAML reads a bare `no`."""
    return "no" if value is False else value


class TrainConfig(Section):
    """Settings of any training; progress is counted in optimiser steps and samples."""

    steps: int = Field(gt=0, le=10**9, description="total number of optimiser steps")
    global_batch: int = Field(gt=0, le=10**6, description="samples per optimiser step, over all processes")
    micro_batch: int | None = Field(
        default=None, gt=0, description="samples per forward pass; default global_batch / processes"
    )
    optimizer: Literal["adamw", "muon"] = Field(
        default="adamw", description="muon: for weight matrices and kernels, with AdamW for the other parameters"
    )
    lr: float = Field(gt=0, description="peak learning rate")
    lr_schedule: Literal["constant", "cosine", "linear"] = "cosine"
    lr_floor: float = Field(default=0.0, ge=0, le=1, description="the last learning rate, as a fraction of the peak")
    warmup_steps: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float | None = Field(default=1.0, gt=0, description="maximum norm of the gradient")
    ema: float | None = Field(default=None, gt=0, lt=1, description="decay of the EMA weights")
    mixed_precision: Annotated[Literal["no", "fp16", "bf16"], BeforeValidator(_no)] = "no"
    gradient_checkpointing: bool = Field(
        default=False, description="U-Net: recompute layers in the backward pass to save memory"
    )
    attention: Literal["sdpa", "xformers"] = Field(
        default="sdpa", description="xformers is compared with sdpa at the start"
    )
    init: str | None = Field(
        default=None, description="folder of a component to initialise from, instead of random weights"
    )
    log_every: int = Field(default=50, gt=0)
    validate_every: int = Field(default=1000, gt=0)
    sample_every: int = Field(default=1000, gt=0)
    save_every: int = Field(default=1000, gt=0)
    keep: int = Field(default=2, gt=0, description="number of checkpoints kept")


def read_recipe(path: Path) -> dict[str, Any]:
    """Returns the mapping in a recipe file."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf8")) or {}
    except FileNotFoundError:
        raise ValueError(f"{path}: no such recipe; the ones shipped are in configs/") from None
    except RecursionError:
        raise ValueError(f"{path}: not readable YAML (nested too deeply)") from None
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        raise ValueError(f"{path}: not readable YAML ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: a recipe is a mapping of keys to values")
    return values


def load_recipe(path: str | Path, overrides: Sequence[str], model: type[R]) -> R:
    """Loads a YAML recipe with dotted `key=value` overrides; raises a ValueError that names every wrong key."""
    values = read_recipe(Path(path))
    check_verb(path, values, _verb(model.model_fields))
    for text in overrides:
        override(values, text)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{path}: {explain(error, model)}") from None


def check_verb(path: str | Path, values: dict[str, Any], verb: str | None) -> None:
    """Raises a ValueError for a recipe of another verb than `verb`, by the sections that only one verb has."""
    recipe_verb = _verb([key for key, value in values.items() if key != "vae" or isinstance(value, dict)])
    if recipe_verb not in (None, verb):
        raise ValueError(f"{path}: this is a recipe for `t2i {recipe_verb}`")


def _verb(keys: Collection[str]) -> str | None:
    return next((verb for key, verb in VERBS.items() if key in keys), None)


def override(values: dict[str, Any], text: str) -> None:
    """Sets one dotted `key=value` in place; the value is parsed as YAML."""
    key, sep, raw = text.partition("=")
    if not sep or not key:
        raise ValueError(f"{text!r}: an override has the form key=value, for example train.steps=1000")
    *parents, last = key.split(".")
    for part in parents:
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ValueError(f"{text!r}: `{part}` is a value, not a section")
        values = inner
    try:
        values[last] = yaml.safe_load(raw)
    except RecursionError:
        raise ValueError(f"{text[:60]!r}...: the value is not readable YAML (nested too deeply)") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{text[:200]!r}: the value is not readable YAML ({error})") from None


def explain(error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    """Formats a pydantic error, one line per key: the problem, and for an unknown key the nearest known one."""
    lines = []
    faults = error.errors()
    for fault in faults[:MOST_FAULTS]:
        key = (prefix + ".".join(str(part) for part in fault["loc"])).rstrip(".")
        if fault["type"] == "extra_forbidden":
            known = _fields_at(model, fault["loc"][:-1])
            near = difflib.get_close_matches(str(fault["loc"][-1]), known, 1, 0.5)
            where = ".".join([*map(str, fault["loc"][:-1]), *near])
            hint = f"did you mean `{prefix}{where}`?" if near else f"known keys: {', '.join(sorted(known))}"
            lines.append(f"unknown key `{key}`; {hint}")
        else:
            message = fault["msg"].removeprefix("Value error, ")
            lines.append(f"`{key}`: {message}" if key else message)
    more = [f"and {len(faults) - MOST_FAULTS} more"] if len(faults) > MOST_FAULTS else []
    return "\n  ".join([*lines, *more])


def _fields_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    for part in loc:
        inner = model.model_fields[str(part)].annotation
        candidates = [inner, *getattr(inner, "__args__", ())]
        models = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not models:
            return []
        model = models[0]
    return list(model.model_fields)
