"""One run's training: the U-Net of a seed is the same, bit for bit, whatever encoder it reads."""

import json
from pathlib import Path

import torch

from t2i import randomness
from t2i.files import read_json
from t2i.generator.unet import UNet
from t2i.generator.unet_config import UNetConfig
from t2i.study.plan import Run
from t2i.study.prepare import encoder_file, resolved, train_next
from t2i.study.recipe import StudyRecipe
from t2i.training.generator import STATES, GeneratorRecipe, GeneratorTask, Sampling, build_caches, load_frozen
from t2i.training.precompute import Frozen, whitening_projector

BEGIN, TRAINED = "begin", "train"


def train_recipe(recipe: StudyRecipe, run: Run) -> GeneratorRecipe:
    """The U-Net recipe of a run; only the encoder, the network and the seed differ from run to run."""
    entry, network, asked = recipe.encoders[run.encoder], recipe.unets[run.unet], recipe.evaluate
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
        sample=Sampling(solver=asked.solver, steps=asked.steps, guidance=asked.at),
    )


def is_trained(recipe: StudyRecipe, run: Run) -> bool:
    """Whether its training has ended."""
    return (run.folder(recipe) / TRAINED / "report.json").is_file()


def train_run(recipe: StudyRecipe, run: Run) -> None:
    """Train it, or go on with its training."""
    wanted = train_recipe(recipe, run)
    begin = run.folder(recipe) / BEGIN
    if not begin.is_dir():
        frozen = load_frozen(wanted)
        known = read_json(encoder_file(recipe, run.encoder))["fingerprint"]
        if frozen.text.fingerprint() != known:
            raise ValueError(
                f"{run.encoder}: {wanted.text_encoder} is another encoder than when this study was begun: put that one "
                f"back, or begin a new study with out=FOLDER"
            )
        begin_with(wanted, frozen).save(begin)
    train_next(GeneratorTask(wanted), wanted)


def begin_with(recipe: GeneratorRecipe, frozen: Frozen) -> UNet:
    """The U-Net that a run begins from: the body of its seed alone, the projector whitening the encoder's states."""
    config = network_config(recipe, frozen)
    torch.manual_seed(randomness.generator(recipe.seed, "init").initial_seed())
    body = UNet(config)
    width = config.cross_attention_dim
    assert isinstance(width, int)
    cache = build_caches(recipe, frozen, quiet=True).train
    states = cache.conditioning(torch.arange(min(STATES, len(cache)))).tokens.flatten(0, 1)
    weight = randomness.normal((width, frozen.text.width), recipe.seed, "projector")
    unet = UNet(config.model_copy(update={"encoder_hid_dim": frozen.text.width, "encoder_hid_dim_type": "text_proj"}))
    projector = {f"encoder_hid_proj.{name}": value for name, value in whitening_projector(states, weight).items()}
    unet.load_state_dict(body.state_dict() | projector)
    return unet


def network_config(recipe: GeneratorRecipe, frozen: Frozen) -> UNetConfig:
    """The U-Net proper, which knows nothing of the encoder's width."""
    channels = frozen.vae.config.latent_channels
    update = {"in_channels": channels, "out_channels": channels, "sample_size": recipe.size // frozen.vae.factor}
    return recipe.unet.model_copy(update=update)


def train_seconds(folder: Path) -> float:
    """How long the steps of a run took, whatever interrupted it: samples over samples a second, line by line."""
    seconds, before = 0.0, 0
    for line in (folder / TRAINED / "metrics.jsonl").read_text(encoding="utf8").splitlines():
        row = json.loads(line)
        if "samples_per_second" in row:
            seconds += (row["samples"] - before) / row["samples_per_second"]
            before = row["samples"]
    return seconds


def trained_steps(folder: Path) -> int:
    """How many steps a finished run went, whatever its recipe says by now."""
    lines = (folder / TRAINED / "metrics.jsonl").read_text(encoding="utf8").splitlines()
    return json.loads(lines[-1])["step"]


def network_parameters(unet: UNet) -> tuple[int, int]:
    """(of the U-Net proper, of the projector in front of it)."""
    projector = sum(p.numel() for p in unet.encoder_hid_proj.parameters()) if unet.encoder_hid_proj is not None else 0
    return sum(p.numel() for p in unet.parameters()) - projector, projector
