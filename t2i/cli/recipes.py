"""`t2i recipes` lists the shipped recipes, `t2i recipes copy NAME` copies one."""

from pathlib import Path
from typing import Annotated

import typer

from t2i.cli.options import CONFIGS, find_recipe, shipped_recipes
from t2i.files import write_text


def recipes(
    verb: Annotated[
        str | None, typer.Argument(metavar="copy", help="Copy a recipe; by default all are listed.")
    ] = None,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="As listed, for example scenes/vae.")] = None,
    to: Annotated[
        Path | None, typer.Argument(metavar="DST", help=f"A file or a folder. Default: {CONFIGS}/NAME.yaml.")
    ] = None,
) -> None:
    """List the recipes with the first line of each (hardware, time, result), or copy one."""
    if verb is None:
        rows = {name: header(path) for name, path in shipped_recipes().items()}
        for name, line in rows.items():
            typer.echo(f"{name:{max(map(len, rows))}}  {line}".rstrip())
    elif verb != "copy" or name is None:
        raise ValueError(f"t2i recipes {verb}: write `t2i recipes`, or `t2i recipes copy NAME [DST]`")
    else:
        copy(name, to)


def copy(name: str, to: Path | None) -> None:
    """Copies a recipe; an existing file is kept."""
    short, recipe = find_recipe(name)
    if to is None:
        to = Path(CONFIGS, f"{short}.yaml")
    elif to.is_dir():
        to = to / recipe.name
    if to.exists() and to.samefile(recipe):
        typer.echo(f"{to}: the recipe itself is here; `t2i recipes copy {name} DST` makes another")
        return
    if to.exists():
        raise ValueError(f"{to}: exists and is kept; give another DST: t2i recipes copy {name} DST")
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{to}: cannot be written ({error.strerror})") from None
    write_text(to, recipe.read_text(encoding="utf8"), new=True)
    typer.echo(str(to))


def header(path: Path) -> str:
    """Returns the first line of the comment at the top of a recipe, or ""."""
    first = path.read_text(encoding="utf8").split("\n", 1)[0]
    return first.lstrip("#").strip() if first.startswith("#") else ""
