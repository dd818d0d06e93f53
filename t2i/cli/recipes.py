"""`t2i recipes` lists the shipped recipes, `t2i recipes copy NAME` copies one."""

import re
from pathlib import Path
from typing import Annotated

import typer

PLACE = "configs"
NAMED = re.compile(rf"\b{PLACE}/[\w./-]+\.txt\b")  # the files that a recipe reads


def recipes(
    verb: Annotated[
        str | None, typer.Argument(metavar="copy", help="Copy a recipe; by default all are listed.")
    ] = None,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="As listed, for example scenes/vae.")] = None,
    to: Annotated[
        Path | None, typer.Argument(metavar="DST", help=f"A file or a folder. Default: {PLACE}/NAME.yaml.")
    ] = None,
) -> None:
    """List the recipes with the first line of each (hardware, time, result), or copy one."""
    if verb is None:
        rows = [(name_of(path), header(path)) for path in paths()]
        width = max(len(name) for name, _ in rows)
        for name, line in rows:
            typer.echo(f"{name:{width}}  {line}".rstrip())
    elif verb != "copy" or name is None:
        raise ValueError(f"t2i recipes {verb}: write `t2i recipes`, or `t2i recipes copy NAME [DST]`")
    else:
        copy(name, to)


def copy(name: str, to: Path | None) -> None:
    """Copies a recipe, and the files that it reads unless they exist in the current folder."""
    recipe = find(name)
    if to is None:
        to = Path(PLACE, f"{name_of(recipe)}.yaml")
    elif to.is_dir():
        to = to / recipe.name
    if to.exists() and to.samefile(recipe):
        typer.echo(f"{to}: the recipe itself is here; `t2i recipes copy {name} DST` makes another")
        return
    if to.exists():
        raise ValueError(f"{to}: exists and is kept; give another DST: t2i recipes copy {name} DST")
    text = recipe.read_text(encoding="utf8")
    # Recipes name these files by their path from the current folder; existing ones belong to the user.
    named = [Path(file) for file in sorted(set(NAMED.findall(text)))]
    sources = {file: home().parent / file for file in named if not file.exists()}
    texts = {to: text} | {file: s.read_text(encoding="utf8") for file, s in sources.items() if s.is_file()}
    for place, content in texts.items():
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(content, encoding="utf8")
        except OSError as error:
            raise ValueError(f"{place}: cannot be written ({error.strerror})") from None
        typer.echo(str(place))


def home() -> Path:
    """Returns the folder of the recipes: inside an installed package, or beside it in a checkout."""
    import t2i

    package = Path(t2i.__file__).parent
    for place in (package / PLACE, package.parent / PLACE):
        if place.is_dir():
            return place
    raise ValueError(f"no recipes: {PLACE}/ is neither in {package} nor beside it; install t2i again")


def paths() -> list[Path]:
    """Returns the paths of all recipes, sorted."""
    return sorted(home().rglob("*.yaml"))


def name_of(path: Path) -> str:
    """Returns the name of a recipe: its path in `configs/` without the suffix."""
    return path.relative_to(home()).with_suffix("").as_posix()


def find(name: str) -> Path:
    """Returns the path of the recipe called `name` or `configs/NAME.yaml`."""
    import difflib

    known = {name_of(path): path for path in paths()}
    short = name.removeprefix(f"{PLACE}/").removesuffix(".yaml")
    if short in known:
        return known[short]
    near = difflib.get_close_matches(short, known, 3, 0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else "`t2i recipes` lists them"
    raise ValueError(f"{name!r} is not a recipe: {hint}")


def recipe_file(name: str) -> Path:
    """Returns the path of a recipe, given as a path or as the name of a shipped one."""
    return Path(name) if Path(name).exists() else find(name)


def header(path: Path) -> str:
    """Returns the first line of the comment at the top of a recipe, or ""."""
    first = path.read_text(encoding="utf8").split("\n", 1)[0]
    return first.lstrip("#").strip() if first.startswith("#") else ""
