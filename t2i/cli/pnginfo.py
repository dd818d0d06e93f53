"""`t2i pnginfo FILE...`: the settings inside images."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from t2i.files import printable


def pnginfo(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="PNG; also JPEG and WebP of A1111 and Fooocus")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object for each file, one a line")] = False,
) -> None:
    """Print the settings inside images of t2i, A1111, InvokeAI, Fooocus or SwarmUI."""
    from t2i.pipeline.metadata import read_png

    refused = []
    for file in files:
        try:
            image = read_png(file)
        except ValueError as error:
            refused.append(str(error))
            continue
        if as_json:
            typer.echo(json.dumps({"file": str(file), **image._asdict()}))
        else:
            typer.echo(_listing(file, image))
    if refused:
        raise ValueError("\n".join(map(printable, refused)))


def _listing(file: Path, image: Any) -> str:
    """Returns a line for each setting, the lines of a value below each other."""
    rows = [*image.settings.items(), *(("ignored", entry) for entry in image.ignored)]
    width = max(len(name) for name, _ in rows) + 2
    lines = [f"{printable(str(file))}: settings of {image.source}"]
    for name, value in rows:
        written = printable(value if isinstance(value, str) else json.dumps(value))
        lines.append(f"  {name:{width}}" + written.replace("\n", "\n" + " " * (width + 2)))
    return "\n".join(lines)
