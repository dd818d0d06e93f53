"""Jobs: prompts with their settings, from files of prompts, from images, over axes of a grid. Torch is not needed."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from t2i.errors import ConfigError, RunFailed
from t2i.files import read_bytes
from t2i.pipeline.find import find_file, find_model, local_model
from t2i.pipeline.settings import BY_PARAMETER, FILES, checked
from t2i.progress import counted, say

LINE = ("prompt", "negative", "seed", "cfg", "steps", "size")  # the keys of a line of JSON


@dataclass(frozen=True)
class Job:
    """Prompts with the same settings, by their names; `where` is the line or cell of the job, for messages."""

    prompts: list[str]
    options: dict[str, Any] = field(default_factory=dict)
    count: int = 1
    interpolate: int | None = None
    where: str = ""
    made_with: dict[str, Any] = field(default_factory=dict)  # of the image that it repeats

    @contextmanager
    def located(self) -> Iterator[None]:
        """Prefixes errors with `where`, if there is one; settings have their names there."""
        try:
            yield
        except (ValueError, RunFailed) as error:
            if not self.where:
                raise
            if isinstance(error, ConfigError):
                setting = BY_PARAMETER.get(error.key)
                raise error.under(f"{self.where}: {setting.name if setting else error.key}") from None
            kind = RunFailed if isinstance(error, RunFailed) else ValueError
            raise kind(f"{self.where}: {error}") from None


@dataclass(frozen=True)
class Axis:
    """A setting and its values, as they were written and as the pipeline takes them; None is the model's default."""

    flag: str
    name: str
    written: list[str]
    values: list[Any]

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels beside the images."""
        return tuple(f"{self.name} = {value}" if self.name else "" for value in self.written)


def cell_jobs(axes: list[Axis], prompt: str | None, options: dict[str, Any]) -> Iterator[Job]:
    """Yields the job of each cell of a grid, the last axis fastest; `options` are the settings that all cells share."""
    for indices in product(*(range(len(axis.values)) for axis in axes)):
        at = [(axis, i) for axis, i in zip(axes, indices, strict=True) if axis.name]
        values = options | {axis.name: axis.values[i] for axis, i in at}
        text = values.pop("prompt", prompt)
        assert isinstance(text, str)
        where = ", ".join(f"{axis.name} = {axis.written[i]}" for axis, i in at)
        yield Job([text], {k: v for k, v in values.items() if v is not None}, where=where)


def with_seeds(jobs: list[Job], first: int | None) -> list[Job]:
    """Returns the jobs with the seeds of their first images, counted up over all images from `first`, or a random one.

    A line of JSON keeps its own seed.
    """
    seed, seeded = secrets.randbelow(2**32) if first is None else first, []
    for job in jobs:
        own_seed = job.where and "seed" in job.options
        seeded.append(job if own_seed else replace(job, options=job.options | {"seed": seed}))
        seed += len(job.prompts) * job.count
    return seeded


def read_jobs(path: Path, job: Job) -> list[Job]:
    """Returns a job for each line of JSON, whose keys override the options of `job`, except its seed."""
    from t2i.pipeline.metadata.fields import read_json

    options = {name: value for name, value in job.options.items() if name != "seed"}
    jobs = []
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        try:
            values = read_json(line)
            if unknown := values.keys() - set(LINE):
                raise ValueError(f"unknown key {min(unknown)!r}; allowed are {', '.join(LINE)}")
            if "prompt" not in values:
                raise ValueError('has no "prompt"')
            checked(values)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        jobs.append(Job([values.pop("prompt")], options | values, job.count, where=where))
    return jobs


def read_prompts(path: Path) -> list[str]:
    """Returns a prompt for each line; blank lines and comments, which begin with #, are skipped and counted."""
    return [line for _, line in _lines(path)]


def _lines(path: Path) -> list[tuple[int, str]]:
    try:
        lines = [line.strip() for line in read_bytes(path).decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
    if lines[-1] == "":
        lines.pop()  # nothing follows the last newline
    prompts = [(number, line) for number, line in enumerate(lines, 1) if line and not line.startswith("#")]
    comments = sum(line.startswith("#") for line in lines)
    for number, kind in ((lines.count(""), "blank"), (comments, "comment")):
        if number:
            say(f"{path}: {counted(number, f'{kind} line')} skipped")
    if not prompts:
        raise ValueError(f"{path}: no prompt in it")
    return prompts


def repeat(job: Job, path: Path, model: Path | None) -> tuple[Job, Path | None]:
    """Returns the job with an image's settings wherever it has none, and the image's model if it can be found."""
    from t2i.pipeline.metadata import read_png, request_from

    image = read_png(path)
    if image.ignored:
        say(f"{path}: {counted(len(image.ignored), 'setting')} ignored: {', '.join(image.ignored)}")
    settings = image.settings
    try:
        options = request_from(settings)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    prompts = options.pop("prompts")
    if job.prompts:
        options.pop("towards", None)
    options |= {name: settings[name] for name in ("vae_tile", "attention") if name in settings}
    if "embeddings" in settings and "embeddings" not in job.options:
        options["embeddings"] = [find_file(path, "embeddings", *known) for known in settings["embeddings"]]
    if "loras" in settings and "loras" not in job.options:
        from t2i.interop.lora import lora_files

        known = settings["loras"]
        options["loras"] = [(find_file(path, "loras", name, digest, lora_files), w) for name, digest, w in known]
    for name in FILES:
        if name in settings and name not in job.options:
            options[name] = find_file(path, name, settings[name], settings[f"{name}_sha256"])
    ours = image.source == "t2i"
    if image.source == "a1111" and not job.prompts and "prompt_syntax" not in options | job.options:
        say(f"{path}: its prompt is read with A1111's syntax; --prompt-syntax plain takes brackets as they stand")
        options["prompt_syntax"] = "a1111"
    if model is None and ours and (name := str(settings.get("model"))) != find_model(None).resolve().name:
        model = local_model(name)
        if model is None:
            raise ValueError(f"{path}: was made with the model {name!r:.80}; give it with -m FOLDER")
        say(f"{path}: its model is {name!r} in the current folder")
    made_with = {"file": str(path), "model_sha256": settings.get("model_sha256") if ours else None}
    made_with |= {name: settings.get(name) for name in ("prediction_type", "model_config")}
    return replace(job, prompts=job.prompts or prompts, options=options | job.options, made_with=made_with), model
