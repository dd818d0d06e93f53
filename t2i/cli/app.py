"""The Typer app and its verbs."""

import os
from typing import Annotated

import typer
from typer.core import TyperGroup

from t2i.cli import convert, data, doctor, evaluate, finetune, generate, grid, pnginfo, recipes, study, train

VERBS = (
    "generate",
    "grid",
    "pnginfo",
    "train",
    "finetune",
    "data",
    "evaluate",
    "study",
    "convert",
    "recipes",
    "precompute",
    "doctor",
)


class Verbs(TyperGroup):
    """The verbs in the order of VERBS (Typer would list groups first), and checks that all of them need."""

    def list_commands(self, ctx) -> list[str]:
        return sorted(super().list_commands(ctx), key=VERBS.index)

    def parse_args(self, ctx, args: list[str]) -> list[str]:
        """Raises ValueError for an argument that is not text, and where the current folder is gone."""
        for argument in args:
            if any("\ud800" <= letter <= "\udfff" for letter in argument):
                raise ValueError(f"argument {argument!r:.80} is not valid text: write it in UTF-8")
        try:
            os.getcwd()
        except FileNotFoundError:
            raise ValueError("the current folder has been deleted: change to another one") from None
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=Verbs,
    help="Generate images from prompts with a latent text-to-image pipeline, and train and evaluate its components.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(generate.generate)
app.command()(grid.grid)
app.command()(pnginfo.pnginfo)
app.add_typer(train.app, name="train")
app.command(context_settings={"ignore_unknown_options": True})(finetune.finetune)
app.add_typer(data.app, name="data")
app.command()(evaluate.evaluate)
app.add_typer(study.app, name="study")
app.command()(convert.convert)
app.command()(recipes.recipes)
app.command()(train.precompute)
app.command()(doctor.doctor)


def print_version(asked: bool) -> bool:
    """Prints the version of t2i and ends the program, if asked."""
    if not asked:
        return False
    from importlib import metadata

    try:
        typer.echo(f"t2i {metadata.version('t2i')}")
    except metadata.PackageNotFoundError:
        typer.echo("t2i, not installed: run from its source")
    raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Takes the options that stand before a verb."""
