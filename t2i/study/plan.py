"""The runs of a study and their order, and `--plan`: sizes and hours from the recipe alone, without data or weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from t2i.conditioning import Conditioning
from t2i.config import override
from t2i.generator.unet import UNet
from t2i.generator.unet_config import UNetConfig
from t2i.study.encoder_sizes import EncoderSize, find
from t2i.study.recipe import ORACLE, Encoder, Prepared, StudyRecipe
from t2i.text.towers import T5TowerConfig, TextTowerConfig, TowerSize

TOKENS = 32  # of an encoder whose size is not known
FACTOR, CHANNELS = 8, 4  # of an autoencoder that is not available: as Stable Diffusion's
UNKNOWN_LENGTH = 10_000  # images that a file counts as


@dataclass(frozen=True)
class Run:
    """One training of a U-Net on the states of an encoder."""

    encoder: str
    unet: str
    seed: int

    @property
    def name(self) -> str:
        """Identifies the run in its study."""
        return f"{self.encoder}.{self.unet}.{self.seed}"

    def folder(self, recipe: StudyRecipe) -> Path:
        """Returns the folder of its training and evaluation."""
        return recipe.folder / "runs" / self.name


def runs_of(recipe: StudyRecipe) -> list[Run]:
    """Returns every run once, in an order of which each beginning is a study of its own.

    By seed; within one the pair of the sensitivity check, then encoders, then U-Nets, in the order of the recipe.
    """
    pair = (recipe.sensitivity.sees, recipe.sensitivity.blind)
    encoders, unets = list(recipe.encoders), list(recipe.unets)

    def rank(run: Run) -> tuple[int, int, int]:
        if run.unet != recipe.base:
            return run.seed, 2, unets.index(run.unet)
        if run.encoder in pair:
            return run.seed, 0, pair.index(run.encoder)
        return run.seed, 1, encoders.index(run.encoder)

    runs: dict[Run, None] = {}
    for name, entry in recipe.encoders.items():
        runs |= {Run(name, recipe.base, seed): None for seed in range(entry.seeds)}
    for name, network in recipe.unets.items():
        runs |= {Run(recipe.unets_with, name, seed): None for seed in range(network.seeds)}
    return sorted(runs, key=rank)


def axis_of(recipe: StudyRecipe, run: Run) -> tuple[str, ...]:
    """Returns the axes that a run is a point of: "encoder", "unet" or both."""
    axes = ("encoder",) if run.unet == recipe.base else ()
    return axes + (("unet",) if run.encoder == recipe.unets_with else ())


class Cost(NamedTuple):
    """A U-Net's parameters and FLOPs for one image, both without the projector."""

    parameters: int
    flops: int


def plan_lines(recipe: StudyRecipe) -> list[str]:
    """Returns the plan as text; its last line is `runs: N  evaluations: M  hours: H`."""
    runs, settings = runs_of(recipe), recipe.evaluate
    costs = {name: cost(network.unet, *latent_shape(recipe)) for name, network in recipe.unets.items()}
    hours = {name: run_hours(recipe, unet) for name, unet in costs.items()}
    lines = [f"{recipe.out}: {len(runs)} trainings of {recipe.train.steps} steps of {recipe.train.global_batch}", ""]
    if recipe.prepare:
        lines.append("prepared first, if missing:")
        lines += [f"  {name:16} {entry.recipe}  {' '.join(entry.set)}" for name, entry in recipe.prepare.items()]
        lines.append("")
    lines.append(f"encoders, each with the U-Net {recipe.base}:")
    lines += [encoder_line(recipe, name, entry) for name, entry in recipe.encoders.items()]
    lines += ["", f"U-Nets, each with the encoder {recipe.unets_with}:"]
    for name, unet in costs.items():
        size = f"{si(unet.parameters):>8} parameters  {si(unet.flops):>8} FLOPs an image and step"
        lines.append(f"  {name:16} {size}  {recipe.unets[name].seeds} seeds  {hours[name]:.2f} h a run")
    lines += ["", "ranges: " + ", ".join(ranges(recipe, costs)), ""]
    lines += ["runs, in this order:"] + [f"  {k:3} {run.name}" for k, run in enumerate(runs, 1)]
    total = sum(entry.minutes for entry in recipe.prepare.values()) / 60 + sum(hours[run.unet] for run in runs)
    scales = ", ".join(f"{w:g}" for w in settings.guidance)
    compared = f"{settings.alignment} is compared at {settings.at:g}, FD at {settings.at_fd:g}"
    lines += ["", f"each is sampled at guidance {scales}; {compared}"]
    return [*lines, f"runs: {len(runs)}  evaluations: {len(runs) * len(settings.guidance)}  hours: {total:.1f}"]


def latent_shape(recipe: StudyRecipe) -> tuple[int, int]:
    """Returns (side, channels) of the latents, from the preparation of the autoencoder."""
    for entry in recipe.prepare.values():
        if isinstance(vae := recipe_values(entry).get("vae"), dict):
            factor = 2 ** (len(vae.get("block_out_channels", (0,))) - 1)
            return recipe.size // factor, vae.get("latent_channels", CHANNELS)
    return recipe.size // FACTOR, CHANNELS


def recipe_values(entry: Prepared) -> dict:
    """Reads a preparation's recipe with the values that the study overrides."""
    try:
        values = yaml.safe_load(Path(entry.recipe).read_text(encoding="utf8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{entry.recipe}: not a readable recipe ({error})") from None
    for text in entry.set:
        override(values, text)
    return values


def cost(config: UNetConfig, side: int, channels: int) -> Cost:
    """Counts on a network without memory."""
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


def run_hours(recipe: StudyRecipe, unet: Cost) -> float:
    """Estimates the hours of one run: a training step costs three forward passes, in FLOPs and in overhead."""
    settings, samples, speed = recipe.evaluate, recipe.train.steps * recipe.train.global_batch, recipe.speed
    sources = [settings.test, *settings.only.values()]
    n = sum(config.count if config.source == "scenes" else settings.n or UNKNOWN_LENGTH for config in sources)
    passes = sum(1 if w == 1 else 2 for w in settings.guidance)
    evaluated = n * settings.steps * passes + settings.bound * (settings.draws + 1) * (3 if settings.skills else 2)
    overhead = 1 / (3 * recipe.train.global_batch * speed.steps)
    return (3 * samples + evaluated) * (unet.flops / speed.flops + overhead) / 3600


def encoder_line(recipe: StudyRecipe, name: str, entry: Encoder) -> str:
    """Returns the line of an encoder: its size and where it comes from."""
    known, origin = locate(recipe, entry)
    size = f"{si(known.parameters):>8} parameters  width {known.width:5}" if known else " " * 32
    curve = f"  {entry.family} curve" if entry.family else "  control" if ":" in entry.text_encoder else ""
    return f"  {name:16} {size}  {entry.seeds} seeds{curve}  {origin}"


def locate(recipe: StudyRecipe, entry: Encoder) -> tuple[EncoderSize | None, str]:
    """Returns an encoder's size if known, and its origin: the hub, a preparation, a folder, or the captions."""
    name = entry.text_encoder
    if known := find(name):
        return known, "not here: comes from the hub"
    for label, prepared in recipe.prepare.items():
        values = recipe_values(prepared)
        if values.get("out") == name:
            ready = (Path(name) / "report.json").is_file()
            return prepared_size(values), "here" if ready else f"not here: prepared ({label})"
    if name.startswith("control:"):
        _, _, base = name.removeprefix("control:").partition(":")
        origin = "made of the captions" if name == ORACLE else "made here"
        twin = locate(recipe, entry.model_copy(update={"text_encoder": base}))[0] if base else None
        return (twin if "random" in name else None), f"{name.split(':')[1]}: {origin}"
    return None, "here" if Path(name).is_dir() else "not here: a folder, or a hub name of unknown size"


def prepared_size(values: dict) -> EncoderSize | None:
    """Estimates the size of a recipe's encoder, with a full vocabulary."""
    words = values.get("tokenizer", {})
    vocabulary, tokens = words.get("vocab_size", 4096), words.get("max_tokens", 32)
    if "t5" in values:
        config: TowerSize = T5TowerConfig.model_validate(values["t5"])
    elif "text" in values:
        config = TextTowerConfig.model_validate(values["text"])
    else:
        return None
    layers = config.layers * (4 + 2 * config.mlp_ratio) * config.width**2
    return EncoderSize(layers + (vocabulary + tokens) * config.width, config.width, tokens)


def ranges(recipe: StudyRecipe, costs: dict[str, Cost]) -> list[str]:
    """Returns the ratio of the largest to the smallest size, of each family of encoders and of the U-Nets."""
    sizes: dict[str, list[int]] = {}
    for entry in recipe.encoders.values():
        known, _ = locate(recipe, entry)
        if entry.family and known:
            sizes.setdefault(f"{entry.family} encoders", []).append(known.parameters)
    sizes["U-Nets"] = [unet.parameters for unet in costs.values()]
    return [f"{name} {max(each) / min(each):.0f} times" for name, each in sizes.items()]


def si(number: float) -> str:
    """Formats a number with three digits and an SI prefix."""
    for limit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{letter}"
    return f"{number:.3g}"
