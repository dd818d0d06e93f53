"""`t2i study text-encoder RECIPE` and `t2i study report DIR`."""

from pathlib import Path
from typing import Annotated

import typer


def text_encoder(
    recipe: Annotated[Path, typer.Argument(help="a YAML recipe, for example configs/study/scenes.yaml")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value overrides of the recipe")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="print runs, sizes and hours; reads only the recipe")] = False,
) -> None:
    """Study the effect of the text encoder's size and the U-Net's: train, sample and measure all on equal terms.

    The same command resumes an interrupted study; several processes of it share the runs.
    """
    from t2i.config import load_recipe
    from t2i.study.recipe import StudyRecipe

    values = load_recipe(recipe, overrides or [], StudyRecipe)
    if plan:
        from t2i.study.plan import plan_lines

        for line in plan_lines(values):
            typer.echo(line)
        return
    from t2i.study.results import REPORT
    from t2i.study.run import study

    done = study(values)
    folder = values.folder / REPORT
    typer.echo(f"{folder}: complete; this process did {len(done)} stages")
    report(folder)


def report(
    folder: Annotated[Path, typer.Argument(help="a study's folder, or one with its rows: results.csv, study.json")],
) -> None:
    """Write a study's report from its rows: report.html, and its figures as PNGs."""
    from t2i.study.report import write

    for line in write(folder):
        typer.echo(line)
