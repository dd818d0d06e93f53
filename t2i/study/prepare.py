"""The preparations of a study: trained components, the oracle of its captions, and cached states of its encoders."""

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
    """Returns the recipe of a preparation, with overrides, and its task; raises if its folder has another recipe."""
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
    """Returns True if the preparation is trained."""
    return (preparation(entry)[0].run / "report.json").is_file()


def prepare(entry: Prepared) -> None:
    """Trains a preparation, or resumes its training."""
    recipe, task = preparation(entry)
    train_next(task(recipe), recipe)


def train_next(task: Task, recipe: Recipe) -> None:
    """Trains with fresh accelerate state, which otherwise keeps the precision of the process's first training."""
    AcceleratorState._reset_state()
    train(task, recipe)


def check_encoders(recipe: StudyRecipe) -> None:
    """Opens every encoder that no preparation makes; raises ValueError that lists those that fail."""
    outputs = [str(preparation(entry)[0].run) for entry in recipe.prepare.values()]
    faults = []
    for name, entry in recipe.encoders.items():
        if entry.text_encoder == ORACLE or any(run in entry.text_encoder for run in outputs):
            continue
        try:
            load_text_encoder(entry.text_encoder, entry.text_layer)
        except ValueError as error:
            faults.append(f"{name}: {error}")
    if faults:
        raise ValueError("encoders that cannot be opened, nothing was begun:\n  " + "\n  ".join(faults))


def resolved(recipe: StudyRecipe, entry: Encoder) -> str:
    """Returns the name that opens an entry's text encoder; the oracle's folder is named by the hash of its captions."""
    if entry.text_encoder != ORACLE:
        return entry.text_encoder
    captions = captions_of(recipe)
    digest = hashlib.sha256("\0".join(captions).encode()).hexdigest()[:12]
    return f"{ORACLE}:{recipe.folder / 'encoders' / f'oracle-{digest}'}"


def captions_of(recipe: StudyRecipe) -> list[str]:
    """Returns every caption that a run needs, each once, with the minimal pairs that the bound needs."""
    evaluation = recipe.evaluate
    sources = [recipe.data, recipe.validation, *evaluation.only.values()]
    if any(config is not None and config.source != "scenes" for config in (*sources, evaluation.test)):
        raise ValueError(f"{ORACLE}: an oracle needs captions of built-in scenes: leave it out")
    if recipe.validation is None:
        raise ValueError(f"{ORACLE}: give `validation`, so that its captions are known")
    known = tuple(config.model_dump_json() for config in sources if config is not None)
    return list(_captions(known, evaluation.test.model_dump_json(), bool(evaluation.bound)))


@lru_cache(maxsize=1)  # needed each time that stages are checked
def _captions(known: tuple[str, ...], test: str, pairs: bool) -> tuple[str, ...]:
    training = [text for config in known for text in texts(DataConfig.model_validate_json(config))]
    tested = texts(DataConfig.model_validate_json(test))
    other = [pair for caption in tested for pair in minimal_captions(caption).values()] if pairs else []
    return tuple(dict.fromkeys([*training, *tested, *other]))


def texts(config: DataConfig) -> list[str]:
    """Returns the captions of a source."""
    return open_source(config).texts()


def encoder_file(recipe: StudyRecipe, name: str) -> Path:
    """Returns the file that describes an encoder; it exists once the encoder's states are cached."""
    return recipe.folder / "encoders" / f"{name}.json"


def encoder_ready(recipe: StudyRecipe, name: str) -> bool:
    """Returns True if an encoder's states are cached."""
    path = encoder_file(recipe, name)
    return path.is_file() and read_json(path)["text_encoder"] == resolved(recipe, recipe.encoders[name])


def ready_encoder(recipe: StudyRecipe, name: str, train_recipe: GeneratorRecipe) -> None:
    """Opens an encoder (creates the oracle), caches its states of all captions, and writes its size and cost."""
    entry = recipe.encoders[name]
    if entry.text_encoder == ORACLE:
        folder = Path(resolved(recipe, entry).removeprefix(f"{ORACLE}:"))
        oracle(captions_of(recipe), attributes_of).save(folder)
    frozen = load_frozen(train_recipe)
    began = time.monotonic()
    build_caches(train_recipe, frozen)
    about = describe(recipe, frozen, entry) | {"seconds": time.monotonic() - began}
    write_json(encoder_file(recipe, name), about)


def describe(recipe: StudyRecipe, frozen: Frozen, entry: Encoder) -> dict[str, Any]:
    """Returns an encoder's size, cost and fingerprint, and the number of captions that it truncates."""
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
        "cut": sum(map(bool, text(captions).truncated)),
    }


def parameters(encoder: TextEncoder) -> int:
    """Returns the number of parameters that states are computed with; 0 for the oracle, a table of words."""
    return 0 if isinstance(encoder, OracleTextEncoder) else sum(p.numel() for p in encoder.tower.parameters())
