"""Which runs a study has, and in which order: what the sensitivity check needs first, then one seed of everything."""

from dataclasses import dataclass
from pathlib import Path

from t2i.study.recipe import StudyRecipe


@dataclass(frozen=True)
class Run:
    """One training of a U-Net on the states of an encoder."""

    encoder: str
    unet: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.encoder}.{self.unet}.{self.seed}"

    def folder(self, recipe: StudyRecipe) -> Path:
        """Where it is trained and evaluated."""
        return recipe.folder / "runs" / self.name


def runs_of(recipe: StudyRecipe) -> list[Run]:
    """Every run once, so that each beginning of the list is a study already: see `_rank`."""
    found = {
        Run(name, recipe.base, seed): None for name, encoder in recipe.encoders.items() for seed in range(encoder.seeds)
    }
    for name, network in recipe.unets.items():
        found |= {Run(recipe.unets_with, name, seed): None for seed in range(network.seeds)}
    return sorted(found, key=lambda run: _rank(recipe, run))


def _rank(recipe: StudyRecipe, run: Run) -> tuple[int, int, int]:
    """By seed; within one the pair of the sensitivity check, then encoders, then U-Nets, as the recipe has them."""
    pair = (recipe.sensitivity.sees, recipe.sensitivity.blind)
    encoders, unets = list(recipe.encoders), list(recipe.unets)
    if run.unet != recipe.base:
        return run.seed, 2, unets.index(run.unet)
    if run.encoder in pair:
        return run.seed, 0, pair.index(run.encoder)
    return run.seed, 1, encoders.index(run.encoder)


def axis_of(recipe: StudyRecipe, run: Run) -> tuple[str, ...]:
    """The axes that a run is a point of: "encoder", "unet" or both."""
    axes = ("encoder",) if run.unet == recipe.base else ()
    return axes + (("unet",) if run.encoder == recipe.unets_with else ())
