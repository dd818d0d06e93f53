"""`t2i train text-encoder|vae|generator RECIPE [key=value ...]` and `t2i precompute RECIPE`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from t2i.cli.options import recipe_file

app = typer.Typer(
    help="Train a component from a recipe. The same command resumes an interrupted run.", no_args_is_help=True
)

RecipePath = Annotated[
    Path, typer.Argument(callback=recipe_file, help="A YAML recipe, for example configs/scenes/vae.yaml.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Keys that override the recipe, for example train.steps=1000.")
]


@app.command("vae")
def vae(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Train the autoencoder."""
    from t2i.training.vae import VAERecipe, VAETask

    _run(recipe, overrides, VAERecipe, VAETask)


@app.command("text-encoder")
def text_encoder(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Train a text encoder: CLIP on captioned images, or T5 on captions if the recipe has a section `t5`."""
    from t2i.training.objectives import text_encoder_training

    _run(recipe, overrides, *text_encoder_training(recipe))


@app.command("unet", help="The same as `generator`.")
@app.command("generator")
def generator(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Train the generator on the latents of a trained autoencoder, with a frozen text encoder."""
    from t2i.training.generator import GeneratorRecipe, GeneratorTask

    _run(recipe, overrides, GeneratorRecipe, GeneratorTask)


def precompute(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Write the cache of latents and text states for `t2i train generator`."""
    from t2i.config import load_recipe
    from t2i.training.generator import GeneratorRecipe, build_caches, load_frozen

    loaded = load_recipe(recipe, overrides or [], GeneratorRecipe)
    caches = build_caches(loaded, load_frozen(loaded))
    typer.echo(f"{loaded.cache}: latents and text states of {len(caches.train)} and {len(caches.validation)} images")


def _run(path: Path, overrides: list[str] | None, model: Any, task: Any) -> None:
    """Loads the recipe, prints it and trains."""
    import yaml

    from t2i.config import load_recipe
    from t2i.training.distributed import process_state
    from t2i.training.loop import train
    from t2i.training.resume import check_run

    recipe = load_recipe(path, overrides or [], model)
    quiet = not process_state().is_main_process
    if not quiet:
        changed = recipe.model_dump(mode="json", exclude_defaults=True)
        typer.echo(f"# {path}, without defaults\n{yaml.safe_dump(changed, sort_keys=False)}")
    check_run(recipe, task.couples_batch)
    train(task(recipe, quiet=quiet), recipe)
