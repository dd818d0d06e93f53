"""The Typer app and its commands."""

import typer
from typer.core import TyperGroup

from t2i.cli import convert, data, doctor, evaluate, finetune, generate, grid, pnginfo, recipes, study, train

COMMANDS = (
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


class OrderedCommands(TyperGroup):
    """Lists the commands in the order of COMMANDS; Typer would list groups first."""

    def list_commands(self, ctx) -> list[str]:
        return sorted(super().list_commands(ctx), key=COMMANDS.index)


app = typer.Typer(
    cls=OrderedCommands,
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
