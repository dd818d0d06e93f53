"""The typer app and its groups of verbs."""

import typer

from t2i.cli import convert, data, doctor, evaluate, finetune, generate, grid, pnginfo, recipes, study, train

app = typer.Typer(
    help="Train the three components of a latent text-to-image pipeline, and generate pictures from prompts.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(train.app, name="train")
app.add_typer(study.app, name="study")
app.add_typer(data.app, name="data")
app.command()(train.precompute)
app.command()(recipes.recipes)
app.command(context_settings={"ignore_unknown_options": True})(finetune.finetune)
app.command()(generate.generate)
app.command()(grid.grid)
app.command()(evaluate.evaluate)
app.command()(convert.convert)
app.command()(pnginfo.pnginfo)
app.command()(doctor.doctor)
