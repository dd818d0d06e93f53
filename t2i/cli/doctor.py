"""`t2i doctor`: prints what works on this machine, and a remedy for what does not."""

import json
import textwrap
from dataclasses import asdict
from typing import Annotated

import typer

from t2i.pipeline.doctor import BAD, NOTE, OK, Check, run_checks
from t2i.pipeline.settings import checked

MARKS = {OK: "  ok  ", NOTE: " note ", BAD: " BAD  "}
COLUMNS = 80


def doctor(
    attention: Annotated[str | None, typer.Option(help="The backend that must work: sdpa or xformers.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check what works on this machine: packages, devices, dtypes, attention, disk space, the shipped model.

    Needs no network. Exits with 1 if something that generation or training needs does not work; a missing optional
    part is a note.
    """
    backend = checked({"attention": attention or "sdpa"}, {"attention": "--attention"})["attention"]
    checks = []
    for check in run_checks(backend):
        checks.append(check)
        if not as_json:
            typer.echo(format_check(check))
    bad = [check.name for check in checks if check.status == BAD]
    if as_json:
        typer.echo(json.dumps({"ok": not bad, "checks": [asdict(check) for check in checks]}))
    else:
        summary = f"does not work: {', '.join(bad)}" if bad else "everything that t2i needs works"
        typer.echo(textwrap.fill(summary, COLUMNS))
    if bad:
        raise typer.Exit(1)


def format_check(check: Check) -> str:
    """Formats a check in lines of at most COLUMNS; longer paths are not broken."""
    lines = [(MARKS[check.status], f"{check.name}: {check.text}")]
    lines += [("        -> ", check.way_out)] if check.way_out else []
    return "\n".join(
        textwrap.fill(
            text,
            COLUMNS,
            initial_indent=start,
            subsequent_indent=" " * (len(start) + (2 if start in MARKS.values() else 0)),
            break_long_words=False,
            break_on_hyphens=False,
        )
        for start, text in lines
    )
