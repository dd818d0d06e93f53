"""The typer app and its groups of verbs."""

import typer

from t2i.cli import convert, doctor, generate, grid, pnginfo, study, train

app = typer.Typer(
    help="Train the three components of a latent text-to-image pipeline, and generate pictures from prompts.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(train.app, name="train")
app.add_typer(study.app, name="study")
app.command()(train.precompute)
app.command()(generate.generate)
app.command()(grid.grid)
app.command()(convert.convert)
app.command()(pnginfo.pnginfo)
app.command()(doctor.doctor)
