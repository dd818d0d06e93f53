"""`t2i study text-encoder RECIPE` and `t2i study report DIR`."""

from pathlib import Path
from typing import Annotated

import typer


def text_encoder(
    recipe: Annotated[Path, typer.Argument(help="a YAML recipe, for example configs/study/scenes.yaml")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value over the recipe")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="say what it would do and take; reads the recipe alone")] = False,
) -> None:
    """What the size of the text encoder does, and that of the U-Net: train, draw and measure each on the same terms.

    The same command goes on with an interrupted study; started several times at once, the processes share its runs.
    """
    from t2i.config import load_recipe
    from t2i.study.recipe import StudyRecipe

    wanted = load_recipe(recipe, overrides or [], StudyRecipe)
    if plan:
        from t2i.study.estimate import lines

        for line in lines(wanted):
            typer.echo(line)
        return
    from t2i.study.results import REPORT
    from t2i.study.run import study

    done = study(wanted)
    folder = wanted.folder / REPORT
    typer.echo(f"{folder}: complete; {len(done)} stages were done here")
    report(folder)


def report(
    folder: Annotated[Path, typer.Argument(help="a study's folder, or one with its rows: results.csv, study.json")],
) -> None:
    """Draw a study's report from its rows: report.html, and its figures as PNGs."""
    from t2i.study.report import write

    for line in write(folder):
        typer.echo(line)
