"""What a study stands on: trained components, the oracle of its captions, and its encoders, each opened and cached."""

import hashlib
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState

from t2i.config import load_recipe
from t2i.data.data_config import DataConfig
from t2i.data.open import open_source
from t2i.data.scenes import attributes_of, minimal_captions
from t2i.files import read_json, write_json
from t2i.study.recipe import ORACLE, Encoder, Prepared, StudyRecipe
from t2i.text.base import TextEncoder
from t2i.text.controls import OracleTextEncoder, oracle
from t2i.text.encoder import load_text_encoder
from t2i.training.generator import GeneratorRecipe, build_caches, load_frozen
from t2i.training.loop import train
from t2i.training.objectives import text_encoder_training
from t2i.training.precompute import Frozen
from t2i.training.recipes import Recipe
from t2i.training.resume import check_run
from t2i.training.task import Task
from t2i.training.vae import VAERecipe, VAETask

TIMED = 256  # captions


def preparation(entry: Prepared) -> tuple[Recipe, Any]:
    """The recipe of a preparation with what the study sets, and its task; a folder of another recipe is refused."""
    kind, task = text_encoder_training(Path(entry.recipe))
    try:
        recipe: Recipe = load_recipe(entry.recipe, entry.set, kind)
    except ValueError as error:
        if "`t2i train vae`" not in str(error):
            raise
        recipe, task = load_recipe(entry.recipe, entry.set, VAERecipe), VAETask
    check_run(recipe, task.couples_batch)
    return recipe, task


def prepared(entry: Prepared) -> bool:
    """Whether its training has ended."""
    return (preparation(entry)[0].run / "report.json").is_file()


def prepare(entry: Prepared) -> None:
    """Train it, or go on with its training."""
    recipe, task = preparation(entry)
    train_next(task(recipe), recipe)


def train_next(task: Task, recipe: Recipe) -> None:
    """Train as a process of its own would: accelerate keeps the precision of a process's first training for good."""
    AcceleratorState._reset_state()
    train(task, recipe)


def check_encoders(recipe: StudyRecipe) -> None:
    """Open every encoder that no preparation makes, before anything else is done."""
    made = [str(preparation(entry)[0].run) for entry in recipe.prepare.values()]
    faults = []
    for name, entry in recipe.encoders.items():
        if entry.text_encoder == ORACLE or any(run in entry.text_encoder for run in made):
            continue
        try:
            load_text_encoder(entry.text_encoder, entry.text_layer)
        except ValueError as error:
            faults.append(f"{name}: {error}")
    if faults:
        raise ValueError("encoders that do not resolve, nothing was begun:\n  " + "\n  ".join(faults))


def resolved(recipe: StudyRecipe, entry: Encoder) -> str:
    """The text encoder of an entry as others open it; the oracle's folder is named by the captions that it knows."""
    if entry.text_encoder != ORACLE:
        return entry.text_encoder
    captions = captions_of(recipe)
    digest = hashlib.sha256("\0".join(captions).encode()).hexdigest()[:12]
    return f"{ORACLE}:{recipe.folder / 'encoders' / f'oracle-{digest}'}"


def captions_of(recipe: StudyRecipe) -> list[str]:
    """Every caption that a run is asked for, each once; minimal pairs too, which the bound asks for."""
    asked = recipe.evaluate
    sources = [recipe.data, recipe.validation, *asked.only.values()]
    if any(config is not None and config.source != "scenes" for config in (*sources, asked.test)):
        raise ValueError(f"{ORACLE}: only captions of built-in scenes say what an oracle has to know: leave it out")
    if recipe.validation is None:
        raise ValueError(f"{ORACLE}: name `validation`, so that its captions are known")
    known = tuple(config.model_dump_json() for config in sources if config is not None)
    return list(_captions(known, asked.test.model_dump_json(), bool(asked.bound)))


@lru_cache(maxsize=1)  # asked for at every look at what is done
def _captions(known: tuple[str, ...], test: str, pairs: bool) -> tuple[str, ...]:
    found = [text for config in known for text in texts(DataConfig.model_validate_json(config))]
    asked = texts(DataConfig.model_validate_json(test))
    other = [pair for caption in asked for pair in minimal_captions(caption).values()] if pairs else []
    return tuple(dict.fromkeys([*found, *asked, *other]))


def texts(config: DataConfig) -> list[str]:
    """The captions of a source."""
    return open_source(config).texts()


def encoder_file(recipe: StudyRecipe, name: str) -> Path:
    """Where what is known of an encoder is written, once its states are cached."""
    return recipe.folder / "encoders" / f"{name}.json"


def encoder_ready(recipe: StudyRecipe, name: str) -> bool:
    """Whether it was opened and its text states are cached."""
    path = encoder_file(recipe, name)
    return path.is_file() and read_json(path)["text_encoder"] == resolved(recipe, recipe.encoders[name])


def ready_encoder(recipe: StudyRecipe, name: str, train_recipe: GeneratorRecipe) -> None:
    """Open an encoder (the oracle is made here), cache its states of all captions, and write down what it costs."""
    entry = recipe.encoders[name]
    if entry.text_encoder == ORACLE:
        folder = Path(resolved(recipe, entry).removeprefix(f"{ORACLE}:"))
        oracle(captions_of(recipe), attributes_of).save(folder)
    frozen = load_frozen(train_recipe)
    began = time.monotonic()
    build_caches(train_recipe, frozen)
    about = described(recipe, frozen, entry) | {"seconds": time.monotonic() - began}
    write_json(encoder_file(recipe, name), about)


def described(recipe: StudyRecipe, frozen: Frozen, entry: Encoder) -> dict[str, Any]:
    """An encoder's size and cost, its fingerprint, and how many captions it cuts."""
    text, captions = frozen.text, texts(recipe.evaluate.test)
    sample = captions[:TIMED]
    began = time.monotonic()
    for start in range(0, len(sample), 64):
        text(sample[start : start + 64])
    seconds = time.monotonic() - began
    return {
        "text_encoder": resolved(recipe, entry),
        "family": entry.family,
        "parameters": parameters(text),
        "width": text.width,
        "tokens": text.max_tokens,
        "fingerprint": text.fingerprint(),
        "milliseconds_a_caption": round(1000 * seconds / len(sample), 4),
        "cut": sum(bool(rest) for rest in text(captions).truncated),
    }


def parameters(encoder: TextEncoder) -> int:
    """What its states are computed with; the oracle's table of words is no network."""
    return 0 if isinstance(encoder, OracleTextEncoder) else sum(p.numel() for p in encoder.tower.parameters())
