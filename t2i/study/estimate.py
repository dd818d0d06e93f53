"""`--plan`: what a study would do and take, from its recipe alone; no network, no data, no weights."""

from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from t2i.conditioning import Conditioning
from t2i.config import override
from t2i.generator.unet import UNet
from t2i.generator.unet_config import UNetConfig
from t2i.study.encoder_sizes import Known, find
from t2i.study.plan import runs_of
from t2i.study.recipe import ORACLE, Encoder, Prepared, StudyRecipe
from t2i.text.towers import T5TowerConfig, TextTowerConfig, TowerSize

TOKENS = 32  # where an encoder is not known
FACTOR, CHANNELS = 8, 4  # of an autoencoder that is not here: as Stable Diffusion's


class Cost(NamedTuple):
    """A U-Net's parameters and multiply-adds of one picture, both without the projector."""

    parameters: int
    flops: int


def lines(recipe: StudyRecipe) -> list[str]:
    """The plan as text; its last line is `runs: N  evaluations: M  hours: H`."""
    runs, ask = runs_of(recipe), recipe.evaluate
    costs = {name: cost(network.unet, *latent(recipe)) for name, network in recipe.unets.items()}
    drawn = drawings(recipe)
    prepared = sum(entry.minutes for entry in recipe.prepare.values()) / 60
    each = {name: hours(recipe, found, drawn) for name, found in costs.items()}
    said = [f"{recipe.out}: {len(runs)} trainings of {recipe.train.steps} steps of {recipe.train.global_batch}", ""]
    if recipe.prepare:
        said.append("prepared first, where it is not there:")
        said += [f"  {name:16} {entry.recipe}  {' '.join(entry.set)}" for name, entry in recipe.prepare.items()]
        said.append("")
    said.append(f"encoders, each with the U-Net {recipe.base}:")
    said += [encoder_line(recipe, name, entry) for name, entry in recipe.encoders.items()]
    said += ["", f"U-Nets, each with the encoder {recipe.unets_with}:"]
    for name, found in costs.items():
        seeds = recipe.unets[name].seeds
        size = f"{si(found.parameters):>8} parameters  {si(found.flops):>8} FLOPs a picture and step"
        said.append(f"  {name:16} {size}  {seeds} seeds  {each[name]:.2f} h a run")
    said += ["", "ranges: " + ", ".join(ranges(recipe, costs)), ""]
    said += ["runs, in this order:"] + [f"  {k:3} {run.name}" for k, run in enumerate(runs, 1)]
    total = prepared + sum(each[run.unet] for run in runs)
    scales = ", ".join(f"{w:g}" for w in ask.guidance)
    said += ["", f"each is drawn at guidance {scales}; {ask.alignment} is compared at {ask.at:g}, FD at {ask.at_fd:g}"]
    return [*said, f"runs: {len(runs)}  evaluations: {len(runs) * len(ask.guidance)}  hours: {total:.1f}"]


def latent(recipe: StudyRecipe) -> tuple[int, int]:
    """(side, channels) of the latents, as the preparation of the autoencoder has them."""
    for entry in recipe.prepare.values():
        values = read(entry)
        if isinstance(vae := values.get("vae"), dict):
            factor = 2 ** (len(vae.get("block_out_channels", (0,))) - 1)
            return recipe.size // factor, vae.get("latent_channels", CHANNELS)
    return recipe.size // FACTOR, CHANNELS


def read(entry: Prepared) -> dict:
    """The values of a preparation's recipe with what the study sets."""
    try:
        values = yaml.safe_load(Path(entry.recipe).read_text(encoding="utf8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{entry.recipe}: not a readable recipe ({error})") from None
    for text in entry.set:
        override(values, text)
    return values


def cost(config: UNetConfig, side: int, channels: int) -> Cost:
    """Counted on a network without memory."""
    config = config.model_copy(update={"in_channels": channels, "out_channels": channels, "encoder_hid_dim": None})
    with torch.device("meta"):
        unet = UNet(config)
        width = config.cross_attention_dim
        assert isinstance(width, int)
        cond = Conditioning(torch.zeros(1, TOKENS, width), torch.ones(1, TOKENS, dtype=torch.bool))
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            unet(torch.zeros(1, channels, side, side), torch.zeros(1), cond)
    return Cost(sum(p.numel() for p in unet.parameters()), counter.get_total_flops())


def drawings(recipe: StudyRecipe) -> int:
    """How many evaluations of a U-Net one run's pictures and bound take; files of unknown length count as 10 000."""
    ask = recipe.evaluate
    sets = [ask.test, *ask.only.values()]
    n = sum(config.count if config.source == "scenes" else ask.n or 10_000 for config in sets)
    passes = sum(1 if w == 1 else 2 for w in ask.guidance)
    return n * ask.steps * passes + ask.bound * (ask.draws + 1) * (3 if ask.skills else 2)


def hours(recipe: StudyRecipe, found: Cost, drawn: int) -> float:
    """Of one run: a step is three times the forward pass, in its operations and in what comes on top of them."""
    samples, speed = recipe.train.steps * recipe.train.global_batch, recipe.speed
    forward = 3 * samples + drawn
    return forward * (found.flops / speed.flops + 1 / (3 * recipe.train.global_batch * speed.steps)) / 3600


def encoder_line(recipe: StudyRecipe, name: str, entry: Encoder) -> str:
    """What is known of an encoder, and whether it is here."""
    known, where = look(recipe, entry)
    size = f"{si(known.parameters):>8} parameters  width {known.width:5}" if known else " " * 32
    curve = f"  {entry.family} curve" if entry.family else "  control" if ":" in entry.text_encoder else ""
    return f"  {name:16} {size}  {entry.seeds} seeds{curve}  {where}"


def look(recipe: StudyRecipe, entry: Encoder) -> tuple[Known | None, str]:
    """An encoder's size, and where it is: known by name, made by a preparation, a folder, or not here."""
    name = entry.text_encoder
    if found := find(name):
        return found, "not here: comes from the hub"
    for label, prepared in recipe.prepare.items():
        values = read(prepared)
        if values.get("out") == name:
            return sized(values), "here" if (Path(name) / "report.json").is_file() else f"not here: prepared ({label})"
    if name.startswith("control:"):
        _, _, base = name.removeprefix("control:").partition(":")
        made = "made of the captions" if name == ORACLE else "made here"
        twin = look(recipe, entry.model_copy(update={"text_encoder": base}))[0] if base else None
        return (twin if "random" in name else None), f"{name.split(':')[1]}: {made}"
    return None, "here" if Path(name).is_dir() else "not here: a folder or a hub name that no table knows"


def sized(values: dict) -> Known | None:
    """About what a recipe's encoder will have, with a full vocabulary."""
    words = values.get("tokenizer", {})
    vocabulary, tokens = words.get("vocab_size", 4096), words.get("max_tokens", 32)
    if "t5" in values:
        config: TowerSize = T5TowerConfig.model_validate(values["t5"])
    elif "text" in values:
        config = TextTowerConfig.model_validate(values["text"])
    else:
        return None
    layers = config.layers * (4 + 2 * config.mlp_ratio) * config.width**2
    return Known(layers + (vocabulary + tokens) * config.width, config.width, tokens)


def ranges(recipe: StudyRecipe, costs: dict[str, Cost]) -> list[str]:
    """Largest over smallest, of the U-Nets and of every family of encoders."""
    families: dict[str, list[int]] = {}
    for entry in recipe.encoders.values():
        known, _ = look(recipe, entry)
        if entry.family and known:
            families.setdefault(entry.family, []).append(known.parameters)
    sizes = {f"{name} encoders": found for name, found in families.items()}
    sizes["U-Nets"] = [found.parameters for found in costs.values()]
    return [f"{name} {max(found) / min(found):.0f} times" for name, found in sizes.items()]


def si(number: float) -> str:
    """A number with three digits and a letter."""
    for limit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{letter}"
    return f"{number:.3g}"
