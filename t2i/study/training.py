"""The training of a run: U-Nets of one seed begin bit-identical, whichever encoder they read."""

import json
from pathlib import Path
from typing import Any

import torch

from t2i import randomness
from t2i.files import read_json
from t2i.generator.unet import UNet
from t2i.study.plan import Run
from t2i.study.prepare import encoder_file, resolved, train_next
from t2i.study.recipe import StudyRecipe
from t2i.training.generator import STATES, GeneratorRecipe, GeneratorTask, Sampling, build_caches, load_frozen
from t2i.training.precompute import Frozen, whitening_projector

BEGIN, TRAINED = "begin", "train"


def train_recipe(recipe: StudyRecipe, run: Run) -> GeneratorRecipe:
    """Returns the U-Net recipe of a run; runs differ in the encoder, the network and the seed only."""
    entry, network, evaluation = recipe.encoders[run.encoder], recipe.unets[run.unet], recipe.evaluate
    lr = recipe.train.lr if network.lr is None else network.lr
    folder = run.folder(recipe)
    return GeneratorRecipe(
        out=str(folder / TRAINED),
        seed=run.seed,
        size=recipe.size,
        data=recipe.data,
        validation=recipe.validation,
        text_encoder=resolved(recipe, entry),
        text_layer=entry.text_layer,
        vae=recipe.vae,
        cache=recipe.cache,
        unet=network.unet,
        scheduler=recipe.scheduler,
        caption_dropout=recipe.caption_dropout,
        timestep_bias=recipe.timestep_bias,
        train=recipe.train.model_copy(update={"init": str(folder / BEGIN), "lr": lr}),
        sample=Sampling(solver=evaluation.solver, steps=evaluation.steps, guidance=evaluation.at),
    )


def is_trained(recipe: StudyRecipe, run: Run) -> bool:
    """Returns True if the training is finished."""
    return (run.folder(recipe) / TRAINED / "report.json").is_file()


def train_run(recipe: StudyRecipe, run: Run) -> None:
    """Trains a run, or resumes its training."""
    train = train_recipe(recipe, run)
    begin = run.folder(recipe) / BEGIN
    if not begin.is_dir():
        frozen = load_frozen(train)
        recorded = read_json(encoder_file(recipe, run.encoder))["fingerprint"]
        if frozen.text.fingerprint() != recorded:
            raise ValueError(
                f"{run.encoder}: {train.text_encoder} is another encoder than when this study was begun: restore that "
                f"one, or start a new study with out=FOLDER"
            )
        initial_unet(train, frozen).save(begin)
    train_next(GeneratorTask(train), train)


def initial_unet(recipe: GeneratorRecipe, frozen: Frozen) -> UNet:
    """Returns the initial U-Net: the body depends on the seed only, the projector whitens the encoder's states."""
    channels, width = frozen.vae.config.latent_channels, recipe.unet.cross_attention_dim
    update = {"in_channels": channels, "out_channels": channels, "sample_size": recipe.size // frozen.vae.factor}
    config = recipe.unet.model_copy(update=update)
    torch.manual_seed(randomness.generator(recipe.seed, "init").initial_seed())
    body = UNet(config)
    assert isinstance(width, int)
    cache = build_caches(recipe, frozen, quiet=True).train
    states = cache.conditioning(torch.arange(min(STATES, len(cache)))).tokens.flatten(0, 1)
    weight = randomness.normal((width, frozen.text.width), recipe.seed, "projector")
    unet = UNet(config.model_copy(update={"encoder_hid_dim": frozen.text.width, "encoder_hid_dim_type": "text_proj"}))
    projector = {f"encoder_hid_proj.{name}": value for name, value in whitening_projector(states, weight).items()}
    unet.load_state_dict(body.state_dict() | projector)
    return unet


def logged(folder: Path) -> list[dict[str, Any]]:
    """Returns the logged lines of a run's training."""
    text = (folder / TRAINED / "metrics.jsonl").read_text(encoding="utf8")
    return [json.loads(line) for line in text.splitlines()]


def train_seconds(folder: Path) -> float:
    """Returns the seconds of a run's steps without interruptions: samples over samples a second, line by line."""
    seconds, before = 0.0, 0
    for row in logged(folder):
        if "samples_per_second" in row:
            seconds += (row["samples"] - before) / row["samples_per_second"]
            before = row["samples"]
    return seconds


def trained_steps(folder: Path) -> int:
    """Returns the number of steps that a finished run was trained for."""
    return logged(folder)[-1]["step"]


def network_parameters(unet: UNet) -> tuple[int, int]:
    """Returns the numbers of parameters of the U-Net without its projector, and of the projector."""
    projector = sum(p.numel() for p in unet.encoder_hid_proj.parameters()) if unet.encoder_hid_proj is not None else 0
    return sum(p.numel() for p in unet.parameters()) - projector, projector
