"""`t2i recipes` lists the recipes that come with the package, `t2i recipes copy NAME` copies one."""

import re
from pathlib import Path
from typing import Annotated

import typer

PLACE = "configs"
NAMED = re.compile(rf"\b{PLACE}/[\w./-]+\.txt\b")  # files that a recipe reads, by their path from the current folder


def recipes(
    verb: Annotated[str | None, typer.Argument(metavar="copy", help="copy one; without it, all are listed")] = None,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="as listed, for example scenes/vae")] = None,
    to: Annotated[
        Path | None, typer.Argument(metavar="DST", help=f"a file or a folder; by default {PLACE}/NAME.yaml")
    ] = None,
) -> None:
    """List the recipes, each with the first line of its header: hardware, time, result. Or copy one."""
    if verb is None:
        found = [(name_of(path), header(path)) for path in paths()]
        width = max(len(name) for name, _ in found)
        for name, line in found:
            typer.echo(f"{name:{width}}  {line}".rstrip())
    elif verb != "copy" or name is None:
        raise ValueError(f"t2i recipes {verb}: write `t2i recipes`, or `t2i recipes copy NAME [DST]`")
    else:
        copy(name, to)


def copy(name: str, to: Path | None) -> None:
    """Copy a recipe, and the files that it reads from its folder, where they are not here yet."""
    recipe = find(name)
    if to is None:
        to = Path(PLACE, f"{name_of(recipe)}.yaml")
    elif to.is_dir():
        to = to / recipe.name
    if to.exists() and to.samefile(recipe):
        typer.echo(f"{to}: the recipe itself is here; `t2i recipes copy {name} DST` makes another")
        return
    if to.exists():
        raise ValueError(f"{to}: is there already and stays as it is; give another DST: t2i recipes copy {name} DST")
    text = recipe.read_text(encoding="utf8")
    # Keys name these files from the current folder; those already here are the user's own.
    read = [Path(file) for file in sorted(set(NAMED.findall(text)))]
    beside = {file: home().parent / file for file in read if not file.exists()}
    texts = {to: text} | {file: there.read_text(encoding="utf8") for file, there in beside.items() if there.is_file()}
    for place, content in texts.items():
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(content, encoding="utf8")
        except OSError as error:
            raise ValueError(f"{place}: cannot be written ({error.strerror})") from None
        typer.echo(str(place))


def home() -> Path:
    """Where the recipes lie: inside an installed package, or beside it in a checkout."""
    import t2i

    package = Path(t2i.__file__).parent
    for place in (package / PLACE, package.parent / PLACE):
        if place.is_dir():
            return place
    raise ValueError(f"no recipes: {PLACE}/ is neither in {package} nor beside it; install t2i again")


def paths() -> list[Path]:
    """Every recipe, by name."""
    return sorted(home().rglob("*.yaml"))


def name_of(path: Path) -> str:
    """A recipe's name: its path in `configs/`, without the suffix."""
    return path.relative_to(home()).with_suffix("").as_posix()


def find(name: str) -> Path:
    """The recipe called `name`; `configs/NAME.yaml` is understood too."""
    import difflib

    known = {name_of(path): path for path in paths()}
    short = name.removeprefix(f"{PLACE}/").removesuffix(".yaml")
    if short in known:
        return known[short]
    near = difflib.get_close_matches(short, known, 3, 0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else "`t2i recipes` lists them"
    raise ValueError(f"{name!r} is no recipe: {hint}")


def recipe_file(name: str) -> Path:
    """A recipe of one's own by its path, or a shipped one by its name."""
    return Path(name) if Path(name).exists() else find(name)


def header(path: Path) -> str:
    """The first line of the comment that a recipe begins with, "" where it begins with none."""
    first = path.read_text(encoding="utf8").split("\n", 1)[0]
    return first.lstrip("#").strip() if first.startswith("#") else ""
